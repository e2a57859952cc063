//! A response as this scheduler understands it.
//!
//! It waits for ever for an operation whose response lacks a digest of a standard stream or one of the nine times, knows
//! no `output_symlinks`, and reads no more than a message of gRPC's default size. What went wrong on the worker's side
//! goes as an internal error, which the scheduler tries again, here or elsewhere.

use std::time::Duration;

use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::error_details::{Detail as _, RetryInfo};
use longshore_proto::nativelink::execute_result::Result as Outcome;
use longshore_proto::{Message as _, protobuf, reapi, rpc, time};
use tonic::Code;

use crate::status::Failure;

/// The largest response that is sent: gRPC peers take 4 MiB by default, and the rest of the message needs room.
const RESPONSE_BYTES_MAX: usize = (4 << 20) - (16 << 10);
/// How long an internal error is held back: the scheduler sends the action again at once.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause that an error can ask for.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);
/// The exit code of a result whose command was not run.
const EXIT_CODE_NONE: i32 = -1;

/// What the scheduler is told, and when.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) outcome: Outcome,
    /// Whether the scheduler passes it on, and does not try again.
    pub(super) is_final: bool,
    /// How long to hold it back.
    pub(super) pause: Duration,
}

impl Reply {
    /// The reply to an action whose digests are of `function`.
    pub(super) fn new(mut response: reapi::ExecuteResponse, function: DigestFunction) -> Self {
        let status = response.status.clone().unwrap_or_default();
        let retry_delay = retry_delay(&status);
        if is_ours(&response, &status, retry_delay) {
            let pause = retry_delay.unwrap_or(RETRY_PAUSE).min(RETRY_PAUSE_MAX);
            return Self { outcome: internal_error(status), is_final: false, pause };
        }
        let result = response.result.get_or_insert_with(Default::default);
        fill(result, function);
        let size_bytes = response.encoded_len();
        if size_bytes > RESPONSE_BYTES_MAX {
            let message =
                format!("the result has {size_bytes} bytes, of which a message carries {RESPONSE_BYTES_MAX}");
            let metadata = response.result.take().and_then(|result| result.execution_metadata);
            response = failed(&Failure::new(Code::ResourceExhausted, message), function, metadata);
        }
        Self { outcome: Outcome::ExecuteResponse(response), is_final: true, pause: Duration::ZERO }
    }
}

/// The end of an action that was killed. The scheduler drops it; if it has started the action again in the meantime it
/// must not take this for a result.
pub(super) fn killed() -> Outcome {
    Outcome::InternalError(Failure::cancelled().to_rpc())
}

/// The answer to a request that makes no sense.
pub(super) fn refused(failure: &Failure) -> Outcome {
    Outcome::ExecuteResponse(failed(failure, DigestFunction::Sha256, None))
}

/// An action that goes back: the code is what makes the scheduler leave the worker alone while it has others to end.
pub(super) fn declined() -> Outcome {
    let message = "the worker is shutting down".to_owned();
    Outcome::InternalError(rpc::Status { code: Code::ResourceExhausted as i32, message, details: vec![] })
}

fn failed(
    failure: &Failure,
    function: DigestFunction,
    metadata: Option<reapi::ExecutedActionMetadata>,
) -> reapi::ExecuteResponse {
    let mut result =
        reapi::ActionResult { exit_code: EXIT_CODE_NONE, execution_metadata: metadata, ..Default::default() };
    fill(&mut result, function);
    reapi::ExecuteResponse { result: Some(result), status: Some(failure.to_rpc()), ..Default::default() }
}

/// Whether it went wrong on the worker's side, and another attempt can help.
fn is_ours(response: &reapi::ExecuteResponse, status: &rpc::Status, retry_delay: Option<Duration>) -> bool {
    let metadata = response.result.as_ref().and_then(|result| result.execution_metadata.as_ref());
    let has_run = metadata.is_some_and(|metadata| metadata.execution_completed_timestamp.is_some());
    match Code::from(status.code) {
        Code::Unavailable | Code::Internal | Code::Aborted | Code::Unknown => true,
        // A command that used too much has ended; else it is the worker that has too little.
        Code::ResourceExhausted => retry_delay.is_some() || !has_run,
        _ => false,
    }
}

/// The scheduler sends what comes back as `RESOURCE_EXHAUSTED` again without a pause and without counting.
fn internal_error(mut status: rpc::Status) -> Outcome {
    if Code::from(status.code) == Code::ResourceExhausted {
        status.code = Code::Unavailable as i32;
    }
    Outcome::InternalError(status)
}

fn retry_delay(status: &rpc::Status) -> Option<Duration> {
    let info = status.details.iter().find_map(RetryInfo::from_any)?;
    time::from_duration(&info.retry_delay?)
}

/// Adds what the scheduler insists on.
#[expect(deprecated, reason = "the scheduler reads no other fields")]
fn fill(result: &mut reapi::ActionResult, function: DigestFunction) {
    let empty = || Some(Digest::empty(function).to_wire());
    result.stdout_digest = result.stdout_digest.take().or_else(empty);
    result.stderr_digest = result.stderr_digest.take().or_else(empty);
    // Which kind of symlink it is makes no difference: the scheduler makes `output_symlinks` of both.
    let known = |path: &String, result: &reapi::ActionResult| {
        let mut named = result.output_file_symlinks.iter().chain(&result.output_directory_symlinks);
        named.any(|symlink| symlink.path == *path)
    };
    for symlink in std::mem::take(&mut result.output_symlinks) {
        if !known(&symlink.path, result) {
            result.output_file_symlinks.push(symlink);
        }
    }
    fill_times(result.execution_metadata.get_or_insert_with(Default::default));
}

/// Gives each phase that was not reached the nearest earlier time.
fn fill_times(metadata: &mut reapi::ExecutedActionMetadata) {
    let mut latest = protobuf::Timestamp::default();
    for time in time::of_phases_mut(metadata) {
        latest = *time.get_or_insert(latest);
    }
}

#[cfg(test)]
mod tests;
