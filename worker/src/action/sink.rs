//! Where outputs have to be before a result may name them.

use futures::future::BoxFuture;
use longshore_cas_store::blob::BlobPin;
use longshore_cas_store::digest::Digest;
use longshore_proto::reapi;
use tonic::Code;

use crate::remote::{Remote, RemoteError};

/// The CAS that a client will read the outputs from.
pub trait OutputSink: Send + Sync + 'static {
    /// Completes when every blob of `pins` is where clients read it; uploads what is not.
    fn upload<'a>(&'a self, pins: &'a [BlobPin]) -> BoxFuture<'a, Result<(), UploadError>>;
}

/// The action cache that clients look into, where it is the worker that writes it.
pub trait ResultSink: Send + Sync + 'static {
    /// Whether it has a result of `action`.
    fn has<'a>(&'a self, action: &'a Digest) -> BoxFuture<'a, Result<bool, UploadError>>;

    /// Writes the result of `action`, whose `outputs` were uploaded; they are uploaded again if they turn out to be lost.
    fn put<'a>(
        &'a self,
        action: &'a Digest,
        result: reapi::ActionResult,
        outputs: &'a [BlobPin],
    ) -> BoxFuture<'a, Result<(), UploadError>>;
}

/// Why outputs could not be uploaded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UploadError {
    /// The remote could not be reached or answered with a fault of its own; a retry can help.
    #[error("cannot upload outputs: {origin} is unavailable: {reason}")]
    Unavailable {
        /// Who did not answer.
        origin: String,
        /// What happened.
        reason: String,
    },
    /// The remote will not take them: too large, no quota, no permission.
    #[error("cannot upload outputs: {origin} refused: {reason}")]
    Refused {
        /// Who refused.
        origin: String,
        /// What it said.
        reason: String,
    },
}

/// Standalone mode: the store is the CAS, and outputs are there already.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalSink;

impl OutputSink for LocalSink {
    fn upload<'a>(&'a self, _pins: &'a [BlobPin]) -> BoxFuture<'a, Result<(), UploadError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Clients read from a CAS elsewhere: outputs are uploaded.
impl OutputSink for Remote {
    fn upload<'a>(&'a self, pins: &'a [BlobPin]) -> BoxFuture<'a, Result<(), UploadError>> {
        Box::pin(async move { Ok(Self::upload(self, pins).await?) })
    }
}

impl ResultSink for Remote {
    fn has<'a>(&'a self, action: &'a Digest) -> BoxFuture<'a, Result<bool, UploadError>> {
        Box::pin(async move { Ok(self.get_action_result(action).await?.is_some()) })
    }

    fn put<'a>(
        &'a self,
        action: &'a Digest,
        result: reapi::ActionResult,
        outputs: &'a [BlobPin],
    ) -> BoxFuture<'a, Result<(), UploadError>> {
        Box::pin(async move {
            match self.update_action_result(action, result.clone()).await {
                // What was remembered of the outputs was wrong, and is forgotten.
                Err(RemoteError::Refused { code: Code::FailedPrecondition, .. }) => {
                    Self::upload(self, outputs).await?;
                    Ok(self.update_action_result(action, result).await?)
                }
                updated => Ok(updated?),
            }
        })
    }
}

impl From<RemoteError> for UploadError {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Unavailable { operation, origin, reason, .. } => {
                Self::Unavailable { origin, reason: format!("{operation}: {reason}") }
            }
            RemoteError::Refused { operation, origin, reason, .. } => {
                Self::Refused { origin, reason: format!("{operation}: {reason}") }
            }
            // What is wrong on our side can be right on another worker's.
            error @ (RemoteError::Configuration(_) | RemoteError::Store(_)) => {
                Self::Unavailable { origin: "this worker".to_owned(), reason: error.to_string() }
            }
        }
    }
}
