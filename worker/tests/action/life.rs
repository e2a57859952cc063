//! Commands that run: what they see, and what is told of them.

use std::fs;
use std::time::Duration;

use longshore_proto::{protobuf, reapi};
use tonic::Code;

use crate::bench::{Bench, Job, code, open_folder, result};

fn times(metadata: &reapi::ExecutedActionMetadata) -> [Option<&protobuf::Timestamp>; 9] {
    [
        metadata.queued_timestamp.as_ref(),
        metadata.worker_start_timestamp.as_ref(),
        metadata.input_fetch_start_timestamp.as_ref(),
        metadata.input_fetch_completed_timestamp.as_ref(),
        metadata.execution_start_timestamp.as_ref(),
        metadata.execution_completed_timestamp.as_ref(),
        metadata.output_upload_start_timestamp.as_ref(),
        metadata.output_upload_completed_timestamp.as_ref(),
        metadata.worker_completed_timestamp.as_ref(),
    ]
}

// RES-01, RES-04, OUT-19, OUT-28, MET-01, MET-02: an exit code is no error, and everything named is stored.
#[tokio::test]
async fn a_command_runs_to_its_end() {
    let bench = Bench::new().await;
    let job = Job::shell("cat in; echo oops >&2; echo made > made; exit 3")
        .file("in", "input\n", false)
        .outputs(&["made", "not-made"]);
    let response = bench.run(job).await;
    assert_eq!(code(&response), Code::Ok, "{response:?}");
    let result = result(&response);
    assert_eq!(result.exit_code, 3);
    assert_eq!(bench.text(result.stdout_digest.as_ref()).await, "input\n");
    assert_eq!(bench.text(result.stderr_digest.as_ref()).await, "oops\n");
    assert_eq!(result.output_files.len(), 1);
    assert_eq!(bench.text(result.output_files[0].digest.as_ref()).await, "made\n");
    assert!(result.stdout_raw.is_empty(), "nobody asked for it");

    let metadata = result.execution_metadata.as_ref().unwrap();
    assert_eq!(metadata.worker, "bench");
    let times = times(metadata).map(|time| time.map(|time| (time.seconds, time.nanos)).unwrap());
    assert!(times.is_sorted(), "{times:?}");
    assert!(metadata.virtual_execution_duration.is_some());
}

// CMD-10, CMD-11: nothing of the worker's environment leaks.
#[tokio::test]
async fn the_environment_is_the_commands_alone() {
    let bench = Bench::new().await;
    let mut job = Job::new(&["/usr/bin/env"]);
    job.command.environment_variables =
        vec![reapi::command::EnvironmentVariable { name: "A".to_owned(), value: "1 2".to_owned() }];
    let response = bench.run(job).await;
    assert_eq!(bench.text(result(&response).stdout_digest.as_ref()).await, "A=1 2\n");
}

// CMD-15, OUT-03, OUT-13, OUT-14: parents are there, outputs are not, and paths are the working directory's.
#[tokio::test]
async fn the_working_directory_and_parents_are_made() {
    let bench = Bench::new().await;
    let mut job =
        Job::shell("ls -d x ../y; ls x; echo 1 > x/out; echo 2 > ../y/out").outputs(&["x/out", "../y/out"]);
    job.command.working_directory = "new/dir".to_owned();
    let response = bench.run(job).await;
    let result = result(&response);
    assert_eq!(bench.text(result.stdout_digest.as_ref()).await, "../y\nx\n", "{response:?}");
    let paths: Vec<_> = result.output_files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["../y/out", "x/out"]);
}

// RES-02.
#[tokio::test]
async fn a_signal_is_an_exit_code_and_a_note() {
    let bench = Bench::new().await;
    let response = bench.run(Job::shell("kill -SEGV $$")).await;
    assert_eq!(code(&response), Code::Ok);
    assert_eq!(result(&response).exit_code, 128 + 11);
    assert!(response.message.contains("SIGSEGV"), "{:?}", response.message);
}

// ACT-10, ACT-11: what there is so far comes with the status, and reads as no success.
#[tokio::test]
async fn a_timeout_keeps_what_there_is() {
    let bench = Bench::new().await;
    let mut job = Job::shell("echo started; echo part > part; sleep 1000").outputs(&["part"]);
    job.timeout = Some(Duration::from_millis(300));
    let response = bench.run(job).await;
    assert_eq!(code(&response), Code::DeadlineExceeded);
    let status = response.status.as_ref().unwrap();
    assert!(status.message.contains("exceeded deadline"), "{status:?}");
    let result = result(&response);
    assert_eq!(result.exit_code, 137);
    assert_eq!(bench.text(result.stdout_digest.as_ref()).await, "started\n");
    assert_eq!(result.output_files.len(), 1);
}

// ACT-07: zero is meant, not unset.
#[tokio::test]
async fn a_timeout_of_zero_expires_at_once() {
    let bench = Bench::new().await;
    let mut job = Job::shell("echo ran > out").outputs(&["out"]);
    job.timeout = Some(Duration::ZERO);
    let response = bench.run(job).await;
    assert_eq!(code(&response), Code::DeadlineExceeded);
    assert!(result(&response).output_files.is_empty());
}

// A cancelled action ends, and says so.
#[tokio::test]
async fn a_running_action_can_be_cancelled() {
    let bench = Bench::new().await;
    let (assignment, mut handle) = bench.assign(Job::shell("sleep 1000")).await;
    let cancel = async {
        handle.wait_until_running().await;
        handle.cancelled.cancel();
    };
    let (executed, ()) = tokio::join!(bench.worker.execute(assignment), cancel);
    assert_eq!(code(&executed.response), Code::Cancelled);
}

// OUT-31, OUT-32, RES-05, RES-06: inline on request, and in the store all the same.
#[tokio::test]
async fn content_is_inlined_on_request() {
    let bench = Bench::new().await;
    let job = Job::shell("printf 12; printf 3 >&2; printf a > a; printf b > b").outputs(&["a", "b"]);
    let (mut assignment, _handle) = bench.assign(job).await;
    assignment.inline.stdout = true;
    assignment.inline.output_files = vec!["b".to_owned()];
    let response = bench.worker.execute(assignment).await.response;
    let result = result(&response);
    assert_eq!((&*result.stdout_raw, &*result.stderr_raw), (&b"12"[..], &b""[..]));
    let contents: Vec<_> = result.output_files.iter().map(|file| &*file.contents).collect();
    assert_eq!(contents, [&b""[..], &b"b"[..]]);
    assert_eq!(bench.text(result.output_files[1].digest.as_ref()).await, "b");

    let (mut assignment, _handle) = bench.assign(Job::shell("head -c 2000000 /dev/zero")).await;
    assignment.inline.stdout = true;
    let response = bench.worker.execute(assignment).await.response;
    assert!(response.result.unwrap().stdout_raw.is_empty(), "it does not fit");
}

// ERR, OUT-24: an output that cannot be reported costs neither the exit code nor the logs.
#[tokio::test]
async fn an_impossible_output_keeps_the_logs() {
    let bench = Bench::new().await;
    let job = Job::shell("echo hello; mkfifo out; exit 5").outputs(&["out"]);
    let response = bench.run(job).await;
    assert_eq!(code(&response), Code::InvalidArgument);
    assert!(response.status.as_ref().unwrap().message.contains("\"out\""));
    let result = result(&response);
    assert_eq!(result.exit_code, 5);
    assert_eq!(bench.text(result.stdout_digest.as_ref()).await, "hello\n");
}

// An output with a second name is copied: whoever keeps that name writes to a file of his own.
#[tokio::test]
async fn a_hard_link_of_an_output_does_not_reach_the_store() {
    let bench = Bench::new().await;
    let outside = open_folder();
    let kept = outside.path().join("kept");
    let job = Job::shell(&format!("echo right > out; ln out '{}'", kept.display())).outputs(&["out"]);
    let response = bench.run(job).await;
    let result = result(&response);
    assert_eq!(result.output_files.len(), 1, "{response:?}");
    fs::write(&kept, "WRONG\n").unwrap();
    assert_eq!(bench.text(result.output_files[0].digest.as_ref()).await, "right\n");
}

// A writer that the command leaves behind is dead before its output is read, and does not hold up the action.
#[tokio::test]
async fn a_writer_that_outlives_the_command_does_not_reach_the_store() {
    let bench = Bench::new().await;
    let script = "echo right > out; mkfifo ready; exec 3<>out
        setsid sh -c 'echo up > ready; while :; do echo WRONG >&3; done' & read line < ready";
    let response = bench.run(Job::shell(script).outputs(&["out"])).await;
    let digest = result(&response).output_files[0].digest.clone();
    // Whatever the writer managed before it was killed, the blob is what its digest says, now and later.
    let first = bench.text(digest.as_ref()).await;
    let again = bench.text(digest.as_ref()).await;
    assert_eq!(first, again);
}

// INP-07: an action gets its inputs as they are in the store, whatever another one did to its own.
#[tokio::test]
async fn an_action_cannot_change_anothers_inputs() {
    let bench = Bench::new().await;
    let spoil = "rm -f in; echo WRONG > in; rm -rf d; mkdir d; echo new > d/extra";
    let tree = |job: Job| job.file("in", "right\n", false).file("d/deep", "deep\n", true);
    let first = bench.run(tree(Job::shell(spoil))).await;
    assert_eq!(result(&first).exit_code, 0, "{first:?}");
    let second = bench.run(tree(Job::shell("cat in d/deep; ls d"))).await;
    assert_eq!(bench.text(result(&second).stdout_digest.as_ref()).await, "right\ndeep\ndeep\n");
}

// An absolute link into the folder is known by the path under which the action saw the folder.
#[tokio::test]
#[expect(deprecated, reason = "only clients that speak REAPI 2.0 have such links followed")]
async fn an_older_client_gets_what_an_absolute_link_leads_to() {
    let bench = Bench::new().await;
    let mut job = Job::shell("echo content > hidden; ln -s \"$PWD/hidden\" out; ln -s hidden link");
    job.command.output_files = ["link", "out"].map(str::to_owned).to_vec();
    let response = bench.run(job).await;
    let result = result(&response);
    assert_eq!(result.output_files.len(), 1, "{response:?}");
    assert_eq!(bench.text(result.output_files[0].digest.as_ref()).await, "content\n");
    assert_eq!(result.output_file_symlinks[0].target, "hidden");
}
