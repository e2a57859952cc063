//! Why a remote server could not be made to do something.

use longshore_cas_store::blob::StoreError;
use tonic::Code;

use crate::connect::ConnectError;

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
