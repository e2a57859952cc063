//! Why a remote server could not be made to do something.

use longshore_cas_store::blob::StoreError;
use tonic::{Code, Status};

use crate::connect::{ConnectError, causes};

/// Why a call was in vain. Everything that a retry could help was retried already.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RemoteError {
    /// What is configured makes no client.
    #[error(transparent)]
    Configuration(#[from] ConnectError),
    /// The server could not be reached or answered with a fault of its own; another try later can help.
    #[error("{operation}: {origin} is unavailable: {reason}")]
    Unavailable {
        /// What was asked.
        operation: &'static str,
        /// Who was asked.
        origin: String,
        /// The code of its last answer, `UNAVAILABLE` where there was none.
        code: Code,
        /// What it said last.
        reason: String,
    },
    /// The server will not do it: not found, not permitted, too large, not understood.
    #[error("{operation}: {origin} refused: {reason}")]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// Who was asked.
        origin: String,
        /// The code of its answer.
        code: Code,
        /// What it said.
        reason: String,
    },
    /// Our own store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RemoteError {
    /// The code that the server answered with.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } | Self::Unavailable { code, .. } => Some(*code),
            Self::Configuration(_) | Self::Store(_) => None,
        }
    }
}

/// What a status says, and what was behind it: of a handshake that failed, the status itself says nothing.
pub(super) fn reason(status: &Status) -> String {
    let mut reason = format!("{:?}: {}", status.code(), status.message());
    for cause in causes(status) {
        let text = cause.to_string();
        if !reason.contains(&text) {
            reason = format!("{reason}: {text}");
        }
    }
    reason
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_reason_has_its_causes_once() {
        let status = Status::from_error(Box::new(io::Error::other(io::Error::other("no such certificate"))));
        assert_eq!(reason(&status).matches("no such certificate").count(), 1);
        assert_eq!(reason(&Status::not_found("a blob")), "NotFound: a blob");
    }
}
