//! `Execution.Execute`.
