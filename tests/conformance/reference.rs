//! Behaviour measured elsewhere.
