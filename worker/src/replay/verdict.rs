//! How a record or a replay ended, as an exit code.

use std::process::ExitCode;

/// What others can branch on. 1 is left for what longshore itself could not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All is as it was.
    Equal = 0,
    /// The recording, or a part of it, is not what it should be.
    BadInput = 2,
    /// Results differ from the recording.
    Differences = 3,
    /// Executions failed, or the server lacks something.
    Errors = 4,
    /// Results differ from each other: the actions are not deterministic, and nothing worse was found.
    Nondeterministic = 5,
    /// A signal came before the end.
    Interrupted = 130,
}

impl From<Verdict> for ExitCode {
    fn from(verdict: Verdict) -> Self {
        Self::from(verdict as u8)
    }
}
