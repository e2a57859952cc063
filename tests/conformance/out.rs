//! Outputs: how they are declared and checked.
