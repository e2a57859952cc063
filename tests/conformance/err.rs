//! The error model.
