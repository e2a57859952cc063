//! A response as this scheduler understands it.
//!
//! It waits for ever for an operation whose response lacks a digest of a standard stream or one of the nine times, and
//! knows no `output_symlinks`. What went wrong on the worker's side goes as an internal error, which the scheduler tries
//! again, here or elsewhere.

use std::time::Duration;

use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::error_details::retry_delay;
use longshore_proto::nativelink::execute_result::Result as Outcome;
use longshore_proto::{protobuf, reapi, rpc, time};
use tonic::Code;

use crate::action::EXIT_CODE_NONE;
use crate::frontend::reports::{fitting, retry_pause};
use crate::status::Failure;

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
    pub(super) fn new(response: reapi::ExecuteResponse, function: DigestFunction) -> Self {
        let status = response.status.clone().unwrap_or_default();
        if is_ours(&response, &status) {
            // The scheduler sends the action again at once.
            let pause = retry_pause(&status);
            return Self { outcome: internal_error(status), is_final: false, pause };
        }
        let mut response = fitting(response);
        fill(response.result.get_or_insert_with(Default::default), function);
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
    let mut result = reapi::ActionResult { exit_code: EXIT_CODE_NONE, ..Default::default() };
    fill(&mut result, DigestFunction::Sha256);
    let status = Some(failure.to_rpc());
    Outcome::ExecuteResponse(reapi::ExecuteResponse { result: Some(result), status, ..Default::default() })
}

/// An action that goes back: the code is what makes the scheduler leave the worker alone while it has others to end.
pub(super) fn declined() -> Outcome {
    let message = "the worker is shutting down".to_owned();
    Outcome::InternalError(rpc::Status { code: Code::ResourceExhausted as i32, message, details: vec![] })
}

/// Whether it went wrong on the worker's side, and another attempt can help.
fn is_ours(response: &reapi::ExecuteResponse, status: &rpc::Status) -> bool {
    let metadata = response.result.as_ref().and_then(|result| result.execution_metadata.as_ref());
    let has_run = metadata.is_some_and(|metadata| metadata.execution_completed_timestamp.is_some());
    match Code::from(status.code) {
        Code::Unavailable | Code::Internal | Code::Aborted | Code::Unknown => true,
        // A command that used too much has ended; else it is the worker that has too little.
        Code::ResourceExhausted => retry_delay(status).is_some() || !has_run,
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
