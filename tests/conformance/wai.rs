//! `Execution.WaitExecution` and Operations.
