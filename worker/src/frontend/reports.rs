//! What every frontend keeps to when it reports a result: how large it may be, and how long one is held back after which
//! the scheduler hands the action out again.

use std::time::Duration;

use longshore_proto::error_details::retry_delay;
use longshore_proto::{Message as _, reapi, rpc};
use tonic::Code;

use crate::action::EXIT_CODE_NONE;
use crate::status::Failure;

/// The largest response that is sent: gRPC peers take 4 MiB by default, and what a message says beside it needs room,
/// such as the properties of a worker and the other leases of a large bot.
pub(super) const RESPONSE_BYTES_MAX: usize = (4 << 20) - (256 << 10);
/// The most metadata that is kept of a response that is larger.
const METADATA_BYTES_MAX: usize = RESPONSE_BYTES_MAX / 2;
/// How long a result is held back after which the scheduler hands the action out again: it may do so at once, to the
/// same worker, and has attempts for milliseconds only.
pub(super) const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause that a status can ask for.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);

/// The response, without what is in the CAS as well if it is too large, or an error in its place if it still is. A message
/// that the scheduler cannot read would be sent again and again, and everything else with it.
pub(super) fn fitting(mut response: reapi::ExecuteResponse) -> reapi::ExecuteResponse {
    if response.encoded_len() <= RESPONSE_BYTES_MAX {
        return response;
    }
    if let Some(result) = &mut response.result {
        leave_to_cas(result);
    }
    let size_bytes = response.encoded_len();
    if size_bytes <= RESPONSE_BYTES_MAX {
        return response;
    }
    let message =
        format!("the result has {size_bytes} bytes, of which a message carries {RESPONSE_BYTES_MAX}");
    let metadata = response.result.and_then(|result| result.execution_metadata);
    let result = reapi::ActionResult {
        exit_code: EXIT_CODE_NONE,
        execution_metadata: metadata.filter(|metadata| metadata.encoded_len() <= METADATA_BYTES_MAX),
        ..Default::default()
    };
    let failure = Failure::new(Code::ResourceExhausted, message);
    reapi::ExecuteResponse { result: Some(result), status: Some(failure.to_rpc()), ..Default::default() }
}

/// Takes out the content that digests stand for, too.
fn leave_to_cas(result: &mut reapi::ActionResult) {
    if result.stdout_digest.is_some() {
        result.stdout_raw.clear();
    }
    if result.stderr_digest.is_some() {
        result.stderr_raw.clear();
    }
    for file in result.output_files.iter_mut().filter(|file| file.digest.is_some()) {
        file.contents.clear();
    }
}

/// How long to hold back a result with that status, after which the scheduler hands the action out again.
pub(super) fn retry_pause(status: &rpc::Status) -> Duration {
    retry_delay(status).unwrap_or(RETRY_PAUSE).min(RETRY_PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(worker: String, message: String) -> reapi::ExecuteResponse {
        let metadata = reapi::ExecutedActionMetadata { worker, ..Default::default() };
        let result = reapi::ActionResult { execution_metadata: Some(metadata), ..Default::default() };
        reapi::ExecuteResponse { result: Some(result), message, ..Default::default() }
    }

    // A client reads it from there.
    #[test]
    fn what_is_in_the_cas_as_well_is_left_out_first() {
        let contents = vec![0; RESPONSE_BYTES_MAX / 2];
        let file = reapi::OutputFile {
            digest: Some(reapi::Digest::default()),
            contents: contents.clone(),
            ..Default::default()
        };
        let result = reapi::ActionResult {
            stdout_raw: contents.clone(),
            stdout_digest: Some(reapi::Digest::default()),
            stderr_raw: b"nowhere else".to_vec(),
            output_files: vec![file],
            ..Default::default()
        };
        let response = fitting(reapi::ExecuteResponse { result: Some(result), ..Default::default() });
        let result = response.result.unwrap();
        assert!(result.stdout_raw.is_empty() && result.output_files[0].contents.is_empty());
        assert_eq!((result.stderr_raw.as_slice(), response.status), (&b"nowhere else"[..], None));
    }

    #[test]
    fn what_fits_is_passed_on_and_what_does_not_is_an_error() {
        let small = response("w".to_owned(), "x".repeat(RESPONSE_BYTES_MAX / 2));
        assert_eq!(fitting(small.clone()), small);

        let large = fitting(response("w".to_owned(), "x".repeat(RESPONSE_BYTES_MAX)));
        assert!(large.encoded_len() < 10_000, "{}", large.encoded_len());
        let result = large.result.unwrap();
        assert_eq!((result.exit_code, result.execution_metadata.unwrap().worker.as_str()), (-1, "w"));
        // No RetryInfo: another attempt would end in the same way.
        let status = large.status.unwrap();
        assert_eq!((status.code, retry_delay(&status)), (Code::ResourceExhausted as i32, None));
    }

    #[test]
    fn metadata_that_does_not_fit_goes_too() {
        let large = fitting(response("w".repeat(RESPONSE_BYTES_MAX), String::new()));
        assert!(large.encoded_len() < 10_000, "{}", large.encoded_len());
    }

    #[test]
    fn a_status_says_how_long_to_hold_it_back_within_bounds() {
        let asking = |seconds| Failure::unavailable("full", Duration::from_secs(seconds)).to_rpc();
        for (status, pause_s) in [(asking(3), 3), (asking(3600), 10), (Failure::internal("").to_rpc(), 1)] {
            assert_eq!(retry_pause(&status), Duration::from_secs(pause_s), "{status:?}");
        }
    }
}
