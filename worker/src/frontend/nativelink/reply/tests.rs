use longshore_proto::Message as _;
use longshore_proto::error_details::{Detail as _, RetryInfo};
use longshore_proto::reapi::ExecutedActionMetadata;

use super::*;
use crate::frontend::reports::{RESPONSE_BYTES_MAX, RETRY_PAUSE};

const FUNCTION: DigestFunction = DigestFunction::Blake3;

fn at(seconds: i64) -> protobuf::Timestamp {
    protobuf::Timestamp { seconds, nanos: 0 }
}

/// The response of a command that has run, or of one that never did.
fn response(code: Code, has_run: bool) -> reapi::ExecuteResponse {
    let metadata = ExecutedActionMetadata {
        queued_timestamp: Some(at(1)),
        worker_start_timestamp: Some(at(2)),
        input_fetch_start_timestamp: Some(at(3)),
        execution_completed_timestamp: has_run.then(|| at(5)),
        worker_completed_timestamp: Some(at(9)),
        ..Default::default()
    };
    let result = reapi::ActionResult { execution_metadata: Some(metadata), ..Default::default() };
    let status = rpc::Status { code: code as i32, message: "why".to_owned(), details: vec![] };
    reapi::ExecuteResponse { result: Some(result), status: Some(status), ..Default::default() }
}

fn passed_on(reply: Reply) -> reapi::ExecuteResponse {
    assert!(reply.is_final && reply.pause.is_zero(), "{reply:?}");
    match reply.outcome {
        Outcome::ExecuteResponse(response) => response,
        outcome @ Outcome::InternalError(_) => panic!("{outcome:?}"),
    }
}

fn times(response: &reapi::ExecuteResponse) -> Vec<Option<i64>> {
    let metadata = response.result.as_ref().unwrap().execution_metadata.as_ref().unwrap();
    time::of_phases(metadata).map(|(_, time)| time.map(|time| time.seconds)).to_vec()
}

// With one of them missing the operation hangs.
#[test]
fn every_time_and_both_digests_are_there() {
    let filled = passed_on(Reply::new(response(Code::InvalidArgument, false), FUNCTION));
    assert_eq!(times(&filled), [1, 2, 3, 3, 3, 3, 3, 3, 9].map(Some));
    let result = filled.result.unwrap();
    let empty = Some(Digest::empty(FUNCTION).to_wire());
    assert_eq!((result.stdout_digest, result.stderr_digest), (empty.clone(), empty));

    // A panic of ours leaves not even a result, and is no less an answer.
    let bare =
        reapi::ExecuteResponse { status: response(Code::NotFound, false).status, ..Default::default() };
    assert_eq!(times(&passed_on(Reply::new(bare, FUNCTION))), [Some(0); 9]);
}

// What the command's own times are is not touched.
#[test]
fn what_is_there_stays() {
    let mut whole = response(Code::Ok, true);
    let digest = Some(FUNCTION.digest(b"x").to_wire());
    let result = whole.result.as_mut().unwrap();
    (result.stdout_digest, result.stderr_digest) = (digest.clone(), digest);
    fill_times(result.execution_metadata.as_mut().unwrap());
    assert_eq!(passed_on(Reply::new(whole.clone(), FUNCTION)), whole);
}

#[test]
#[expect(deprecated, reason = "the scheduler reads no other fields")]
fn symlinks_are_in_the_fields_that_are_read() {
    let symlink = |path: &str| reapi::OutputSymlink { path: path.to_owned(), ..Default::default() };
    let mut linked = response(Code::Ok, true);
    let result = linked.result.as_mut().unwrap();
    result.output_symlinks = ["file", "folder", "new"].map(symlink).to_vec();
    result.output_file_symlinks = vec![symlink("file")];
    result.output_directory_symlinks = vec![symlink("folder")];
    let result = passed_on(Reply::new(linked, FUNCTION)).result.unwrap();
    assert_eq!(result.output_symlinks, []);
    assert_eq!(result.output_file_symlinks, ["file", "new"].map(symlink));
    assert_eq!(result.output_directory_symlinks, [symlink("folder")]);
}

// The client's own faults are final; the worker's are tried again, not at once, and never as RESOURCE_EXHAUSTED.
#[test]
fn whose_fault_it_is_decides_who_hears_of_it() {
    for code in
        [Code::Ok, Code::InvalidArgument, Code::FailedPrecondition, Code::NotFound, Code::DeadlineExceeded]
    {
        passed_on(Reply::new(response(code, false), FUNCTION));
    }
    // It wrote too much.
    passed_on(Reply::new(response(Code::ResourceExhausted, true), FUNCTION));
    let ours = [
        (Code::Unavailable, Code::Unavailable),
        (Code::Internal, Code::Internal),
        (Code::ResourceExhausted, Code::Unavailable),
    ];
    for (code, sent) in ours {
        let reply = Reply::new(response(code, false), FUNCTION);
        assert!(!reply.is_final && reply.pause == RETRY_PAUSE, "{reply:?}");
        let Outcome::InternalError(status) = reply.outcome else { panic!("{:?}", reply.outcome) };
        assert_eq!((Code::from(status.code), status.message.as_str()), (sent, "why"));
    }
}

#[test]
fn an_error_says_how_long_to_hold_it_back() {
    let mut full = response(Code::ResourceExhausted, true);
    let asked = RetryInfo { retry_delay: Some(time::duration(Duration::from_secs(3))) };
    full.status.as_mut().unwrap().details = vec![asked.to_any()];
    let reply = Reply::new(full, FUNCTION);
    assert_eq!((reply.is_final, reply.pause), (false, Duration::from_secs(3)));
}

// A message that the scheduler cannot read would break the stream, again and again.
#[test]
fn a_result_that_does_not_fit_is_an_error() {
    let mut large = response(Code::Ok, true);
    large.message = "x".repeat(RESPONSE_BYTES_MAX);
    let sent = passed_on(Reply::new(large, FUNCTION));
    assert!(sent.encoded_len() < 10_000);
    assert_eq!(sent.status.as_ref().unwrap().code, Code::ResourceExhausted as i32);
    assert_eq!(times(&sent), [1, 2, 3, 3, 3, 5, 5, 5, 9].map(Some));
}
