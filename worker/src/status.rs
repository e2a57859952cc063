//! The only place where an error becomes a `google.rpc.Status`.
//!
//! A [`Failure`] says whose fault an error is by its code, as clients act on it: `INVALID_ARGUMENT` is never
//! retried, `FAILED_PRECONDITION` with nothing but `MISSING` violations makes a client upload and try again,
//! `UNAVAILABLE` and anything with a `RetryInfo` is retried as it is, `INTERNAL` is longshore's own.

use std::time::Duration;

use bytes::Bytes;
use longshore_cas_store::blob::StoreError;
use longshore_cas_store::digest::{Digest, DigestError};
use longshore_cas_store::dir::PathError;
use longshore_cas_store::source::FetchError;
use longshore_cas_store::tree_cache::TreeError;
use longshore_proto::error_details::{Detail as _, MISSING, PreconditionFailure, RetryInfo, Violation};
use longshore_proto::{Message as _, protobuf, rpc, time};
use nix::errno::Errno;
use tonic::Code;

use crate::action::UploadError;
use crate::materialize::MaterializeError;
use crate::output::{CollectError, DeclareError};
use crate::run::RunError;

/// How long a client is asked to wait when the store is full of things in use: some action will end.
const FULL_RETRY_DELAY: Duration = Duration::from_secs(1);

/// How long a client is asked to wait when the command got lost with the process that kept it.
const LOST_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The most bytes of violations in a response: below the 4 MiB that gRPC peers accept by default. A client that is
/// told of this many uploads them, and hears of the others in its next attempt.
const VIOLATIONS_BYTES_MAX: usize = 3 << 20;

/// The most bytes of violations in the status of a call, which travels in headers: peers accept 8 KiB of these.
const HEADER_VIOLATIONS_BYTES_MAX: usize = 3 << 10;

/// The most characters of a message: statuses travel in HTTP headers too, whose size is bounded.
const MESSAGE_LEN_MAX: usize = 2048;

/// Why something cannot be done, as a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    code: Code,
    message: String,
    detail: Option<Detail>,
}

/// What a program can read in a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Detail {
    /// Blobs that the client must upload.
    Missing(Vec<Digest>),
    /// A retry can help after that time.
    RetryAfter(Duration),
}

impl Failure {
    /// A failure with that code and no details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: shorten(message.into()), detail: None }
    }

    /// The request is wrong and stays wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// A bug or fault of this worker.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// Nobody wants the result any more.
    pub fn cancelled() -> Self {
        Self::new(Code::Cancelled, "the action was cancelled")
    }

    /// A passing shortage; a retry after `delay` can help.
    pub fn unavailable(message: impl Into<String>, delay: Duration) -> Self {
        Self { detail: Some(Detail::RetryAfter(delay)), ..Self::new(Code::Unavailable, message) }
    }

    /// Something bounded is used up for now; a retry after `delay` can help.
    pub fn exhausted(message: impl Into<String>, delay: Duration) -> Self {
        Self { detail: Some(Detail::RetryAfter(delay)), ..Self::new(Code::ResourceExhausted, message) }
    }

    /// Blobs that an action needs are in no store (REAPI, `Execution.Execute`).
    pub fn missing(what: &str, digests: &[Digest]) -> Self {
        let mut digests = digests.to_vec();
        digests.sort_unstable();
        digests.dedup();
        let first = digests.first().map(ToString::to_string).unwrap_or_default();
        let message = match digests.len() {
            1 => format!("{what} is missing: blob {first}"),
            count => format!("{what} is missing: {count} blobs, {first} among them"),
        };
        Self { detail: Some(Detail::Missing(digests)), ..Self::new(Code::FailedPrecondition, message) }
    }

    /// The same failure of a part, named by its field.
    #[must_use]
    pub fn within(self, field: &str) -> Self {
        Self { message: shorten(format!("{field}: {}", self.message)), ..self }
    }

    /// Both failures as one: all missing blobs together, else the graver one.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (&self.detail, &other.detail) {
            (Some(Detail::Missing(ours)), Some(Detail::Missing(theirs))) => {
                let digests: Vec<_> = ours.iter().chain(theirs).copied().collect();
                Self::missing("what the action refers to", &digests)
            }
            // What a client can put right by an upload says nothing while something else is wrong.
            (Some(Detail::Missing(_)), _) => other,
            _ => self,
        }
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The text for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The message that travels in an `ExecuteResponse` or a batch response.
    pub fn to_rpc(&self) -> rpc::Status {
        self.bounded(VIOLATIONS_BYTES_MAX)
    }

    fn bounded(&self, violations_bytes_max: usize) -> rpc::Status {
        let details = self.detail.iter().map(|detail| detail.to_any(violations_bytes_max)).collect();
        rpc::Status { code: self.code as i32, message: self.message.clone(), details }
    }

    /// The status of a gRPC call, with the details in `grpc-status-details-bin`.
    pub fn to_tonic(&self) -> tonic::Status {
        if self.detail.is_none() {
            return tonic::Status::new(self.code, self.message.clone());
        }
        let details = Bytes::from(self.bounded(HEADER_VIOLATIONS_BYTES_MAX).encode_to_vec());
        tonic::Status::with_details(self.code, self.message.clone(), details)
    }
}

impl Detail {
    fn to_any(&self, violations_bytes_max: usize) -> protobuf::Any {
        match self {
            Self::Missing(digests) => {
                let mut left_bytes = violations_bytes_max;
                let fits = |violation: &Violation| {
                    let left = left_bytes.checked_sub(violation.encoded_len() + VIOLATION_FRAME_BYTES);
                    left_bytes = left.unwrap_or(0);
                    left.is_some()
                };
                let violations = digests.iter().map(violation).take_while(fits).collect();
                PreconditionFailure { violations }.to_any()
            }
            Self::RetryAfter(delay) => RetryInfo { retry_delay: Some(time::duration(*delay)) }.to_any(),
        }
    }
}

/// What a repeated message costs beside its own bytes, at most.
const VIOLATION_FRAME_BYTES: usize = 4;

fn violation(digest: &Digest) -> Violation {
    let function = digest.function();
    let subject = if function.is_named_in_resources() {
        format!("blobs/{function}/{digest}")
    } else {
        format!("blobs/{digest}")
    };
    Violation { r#type: MISSING.to_owned(), subject, description: String::new() }
}

fn shorten(mut message: String) -> String {
    if message.len() > MESSAGE_LEN_MAX {
        let end = (0..=MESSAGE_LEN_MAX).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}

/// The status of an action that went well.
pub fn ok() -> rpc::Status {
    rpc::Status::default()
}

impl From<Failure> for tonic::Status {
    fn from(failure: Failure) -> Self {
        failure.to_tonic()
    }
}

impl From<DigestError> for Failure {
    fn from(error: DigestError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<DeclareError> for Failure {
    fn from(error: DeclareError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<PathError> for Failure {
    fn from(error: PathError) -> Self {
        match error.errno {
            Errno::ENOSPC | Errno::EDQUOT => Self::new(Code::ResourceExhausted, error.to_string()),
            _ => Self::internal(error.to_string()),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Mismatch { .. } | StoreError::TooLarge { .. } => Self::invalid(error.to_string()),
            StoreError::NoSpace { .. } => Self::exhausted(error.to_string(), FULL_RETRY_DELAY),
            StoreError::NeverFits { .. } => Self::new(Code::ResourceExhausted, error.to_string()),
            StoreError::NotFound(_) => Self::new(Code::NotFound, error.to_string()),
            StoreError::Path(error) => error.into(),
        }
    }
}

impl Failure {
    /// Why the blob `digest` that an action names cannot be had.
    pub fn of_fetch(what: &str, digest: &Digest, error: &FetchError) -> Self {
        match error {
            FetchError::Missing => Self::missing(what, &[*digest]),
            FetchError::Unavailable { .. } => Self::new(Code::Unavailable, format!("{what}: {error}")),
            FetchError::Corrupt { .. } => Self::internal(format!("{what}: {error}")),
            FetchError::Store(error) => Self::of_store(what, error),
        }
    }

    /// A store's error while an action runs, where a lost blob is one to upload again.
    pub fn of_store(what: &str, error: &StoreError) -> Self {
        match error {
            StoreError::NotFound(digest) => Self::missing(what, &[*digest]),
            // Nothing that a client sent is ingested here: wrong bytes are a fault on this side.
            StoreError::Mismatch { .. } => Self::internal(format!("{what}: {error}")),
            StoreError::TooLarge { .. } => Self::new(Code::ResourceExhausted, format!("{what}: {error}")),
            error => Self::from(error.clone()).within(what),
        }
    }
}

impl From<TreeError> for Failure {
    fn from(error: TreeError) -> Self {
        let message = error.to_string();
        match error {
            TreeError::Malformed(_) => Self::invalid(message),
            TreeError::Missing { missing, .. } => Self::missing("the input root", &missing),
            TreeError::Fetch { root, reason } => Self::of_fetch("the input root", &root, &reason),
            TreeError::Store { reason, .. } => Self::of_store("the input root", &reason),
            TreeError::Aborted { .. } => Self::internal(message),
        }
    }
}

impl From<MaterializeError> for Failure {
    fn from(error: MaterializeError) -> Self {
        match error {
            MaterializeError::Parent { .. } => Self::invalid(error.to_string()),
            MaterializeError::Store(error) => Self::of_store("the input root", &error),
            MaterializeError::Path(error) | MaterializeError::Damaged(error) => error.into(),
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Program { .. } | RunError::TooLong(_) => Self::invalid(error.to_string()),
            RunError::Start { errno: Errno::EAGAIN | Errno::ENOMEM, .. } => {
                Self::new(Code::Unavailable, error.to_string())
            }
            // Nothing that the client could put right, and nothing that has to happen again.
            RunError::Lost(_) => Self::unavailable(error.to_string(), LOST_RETRY_DELAY),
            RunError::Start { .. } => Self::internal(error.to_string()),
        }
    }
}

impl From<CollectError> for Failure {
    fn from(error: CollectError) -> Self {
        match error {
            CollectError::Undeclarable { precondition: true, .. } => {
                Self::new(Code::FailedPrecondition, error.to_string())
            }
            CollectError::Undeclarable { .. } => Self::invalid(error.to_string()),
            CollectError::Store(error) => Self::of_store("an output", &error),
            CollectError::Path(error) => error.into(),
        }
    }
}

impl From<UploadError> for Failure {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Unavailable { .. } => Self::new(Code::Unavailable, error.to_string()),
            UploadError::Refused { .. } => Self::new(Code::ResourceExhausted, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
