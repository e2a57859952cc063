//! Actions that never run: whose fault it is, and what the client is told.

use longshore_cas_store::digest::DigestFunction;
use longshore_proto::error_details::{Detail as _, PreconditionFailure};
use longshore_proto::reapi;
use tonic::Code;

use crate::bench::{Bench, Job, code, result};

fn missing(response: &reapi::ExecuteResponse) -> Vec<String> {
    let details = &response.status.as_ref().unwrap().details;
    let failure = PreconditionFailure::from_any(&details[0]).unwrap();
    failure.violations.into_iter().map(|violation| violation.subject).collect()
}

async fn code_of(bench: &Bench, job: Job) -> Code {
    let response = bench.run(job).await;
    // MET-04: what was not reached has no time, and the end always has one.
    let metadata = result(&response).execution_metadata.as_ref().unwrap();
    assert!(metadata.worker_completed_timestamp.is_some());
    assert_eq!(metadata.output_upload_start_timestamp, None);
    assert_ne!(result(&response).exit_code, 0, "a client that sees nothing else must not read success");
    code(&response)
}

// ACT-01, ACT-02, INP-11, ERR-05: everything that is missing at once.
#[tokio::test]
async fn missing_blobs_are_all_named() {
    let bench = Bench::new().await;
    let absent = DigestFunction::Sha256.digest(b"absent");

    let (mut assignment, _handle) = bench.assign(Job::shell("true")).await;
    assignment.action_digest = absent;
    let response = bench.worker.execute(assignment).await.response;
    assert_eq!(code(&response), Code::FailedPrecondition);
    assert_eq!(missing(&response), [format!("blobs/{absent}")]);

    let other = DigestFunction::Sha256.digest(b"absent too");
    let (mut assignment, _handle) = bench.assign(Job::shell("true")).await;
    assignment.action = Some(reapi::Action {
        command_digest: Some(absent.to_wire()),
        input_root_digest: Some(other.to_wire()),
        ..Default::default()
    });
    let response = bench.worker.execute(assignment).await.response;
    assert_eq!(code(&response), Code::FailedPrecondition);
    let mut expected = [format!("blobs/{absent}"), format!("blobs/{other}")];
    expected.sort();
    assert_eq!(missing(&response), expected);
}

// ACT-03.
#[tokio::test]
async fn messages_that_cannot_be_parsed_are_the_clients_fault() {
    let bench = Bench::new().await;
    let garbage = bench.put(b"\xff\xff\xff garbage").await;
    let (mut assignment, _handle) = bench.assign(Job::shell("true")).await;
    assignment.action_digest = garbage;
    assert_eq!(code(&bench.worker.execute(assignment).await.response), Code::InvalidArgument);
}

// CMD-01, CMD-06, CMD-16, CMD-17, OUT-04, OUT-15.
#[tokio::test]
async fn commands_that_cannot_be_run_are_the_clients_fault() {
    let bench = Bench::new().await;
    let in_directory = |path: &str| {
        let mut job = Job::shell("true").file("file", "x", false).link("outside", "/etc").link("up", "..");
        job.command.working_directory = path.to_owned();
        job
    };
    let jobs = [
        Job::new(&[]),
        Job::new(&["/no/such/program"]),
        Job::new(&["./file"]).file("file", "x", false),
        Job::new(&["/etc"]),
        in_directory("/"),
        in_directory(".."),
        in_directory("file"),
        in_directory("outside"),
        in_directory("up"),
        Job::shell("true").outputs(&["/etc/passwd"]),
        Job::shell("true").outputs(&["../x"]),
        Job::shell("true").file("file", "x", false).outputs(&["file/x"]),
    ];
    for job in jobs {
        let description = format!("{:?} in {:?}", job.command.arguments, job.command.working_directory);
        assert_eq!(code_of(&bench, job).await, Code::InvalidArgument, "{description}");
    }
}
