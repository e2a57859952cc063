//! `ActionCache`.
