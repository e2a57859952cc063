//! Replays that do not go to their end: by a time, by a signal; and those that go on where another one ended.

use std::cell::RefCell;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::DigestFunction;
use longshore_tests::action::TestAction;
use longshore_tests::fake_cas::{FakeCas, Fault, Method, Told};
use longshore_tests::longshore::{Longshore, binary, run_to_end};
use longshore_tests::proxy::DelayingProxy;
use longshore_tests::wait::eventually;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use tonic::Status;

use super::{BAD_INPUT, Desk, EQUAL, ERRORS, INTERRUPTED, log_of, run_all, run_stable};

/// A folder in which actions leave marks, whoever they run as.
fn marks(desk: &Desk) -> Result<PathBuf> {
    let marks = desk.path("marks");
    std::fs::create_dir(&marks)?;
    std::fs::set_permissions(&marks, Permissions::from_mode(0o777))?;
    std::fs::set_permissions(desk.folder.path(), Permissions::from_mode(0o755))?;
    Ok(marks)
}

/// So often that no test sees the end.
const ENDLESS: [&str; 2] = ["--repeat", "1000000"];

// What does not fit into the time is not executed, said, and left for another time.
#[tokio::test]
async fn a_replay_is_divided_by_time() -> Result<()> {
    let desk = Desk::new()?;
    let longshore = Longshore::start().await?;
    let ran = run_stable(&longshore.client().await?).await?;
    let log = desk.write("log", log_of(&ran).bytes())?;
    let flags = [&ENDLESS[..], &["--jobs", "2", "--for", "1s"]].concat();
    let replayed = desk.replay(&log, longshore.uri(), &flags).await?;
    let report = replayed.expect(EQUAL)?;
    let executions = report["executions"].as_u64().context("a number")?;
    ensure!((1..3_000_000).contains(&executions), "{executions}");
    assert_eq!((&report["planned"], &report["for_s"]), (&3_000_000.into(), &1.into()));
    assert_eq!((&report["stopped"], &report["next"]), (&"time".into(), &executions.into()));
    assert_eq!(report["statuses"]["OK"], executions, "all that were begun have ended");
    let next = format!("--skip {executions} goes on");
    assert!(replayed.output.contains(&next), "{}", replayed.output);

    // Two of three are left out.
    let replayed = desk.replay(&log, longshore.uri(), &["--skip", "2"]).await?;
    let report = replayed.expect(EQUAL)?;
    assert_eq!(
        (&report["executions"], &report["planned"], &report["skipped"]),
        (&1.into(), &1.into(), &2.into())
    );
    assert_eq!((&report["equal"], &report["without_result"]), (&1.into(), &2.into()));
    assert_eq!((&report["stopped"], &report["next"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    let replayed = desk.replay(&log, longshore.uri(), &["--skip", "3"]).await?;
    assert!(replayed.code == BAD_INPUT && replayed.output.contains("leaves nothing"), "{}", replayed.output);
    Ok(())
}

// Whoever has fallen behind has no more time than others: the actions of a list all start at once.
#[tokio::test]
async fn starts_that_are_late_do_not_outlast_the_time() -> Result<()> {
    let desk = Desk::new()?;
    let server = FakeCas::executing([Told::Done(Box::default())]).await?;
    let built = TestAction::shell("true").build(DigestFunction::Sha256);
    server.put_all(&built.blobs);
    let list = desk.write("list", built.digest.to_string())?;
    for pace in [["--speed", "1"], ["--rate", "1000000"]] {
        let flags = [&ENDLESS[..], &pace, &["--jobs", "2", "--for", "1s"]].concat();
        let replayed = desk.replay(&list, server.uri(), &flags).await?;
        assert_eq!(replayed.expect(EQUAL)?["stopped"], "time", "{}", replayed.output);
    }
    Ok(())
}

// Whoever has seen enough has the report of what there was.
#[tokio::test]
async fn an_interrupted_replay_reports_what_has_ended() -> Result<()> {
    let desk = Desk::new()?;
    let longshore = Longshore::start().await?;
    let marks = marks(&desk)?;
    let action = TestAction::shell(&format!("touch {}/$$.$(date +%N)", marks.display()));
    let ran = run_all(&longshore.client().await?, &[action]).await?;
    let log = desk.write("log", log_of(&ran).bytes())?;
    let replay = Command::new(binary()?)
        .arg("replay")
        .arg(&log)
        .args(["--json", "-", "--jobs", "1", "--server", longshore.uri()])
        .args(ENDLESS)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let begun =
        eventually("an action is executed for the third time", || Ok(std::fs::read_dir(&marks)?.count() > 3));
    let outcome = begun.await;
    kill(Pid::from_raw(replay.id().cast_signed()), Signal::SIGINT)?;
    let output = replay.wait_with_output()?;
    outcome?;
    assert_eq!(output.status.code(), Some(INTERRUPTED));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["stopped"], "interrupted");
    assert_eq!((&report["equal"], &report["next"]), (&1.into(), &report["executions"]));
    ensure!(report["executions"].as_u64().context("a number")? >= 2, "{report}");
    Ok(())
}

// An action whose connection is reset runs once, and its result arrives.
#[tokio::test]
async fn a_connection_that_is_reset_costs_nothing() -> Result<()> {
    let desk = Desk::new()?;
    let longshore = Longshore::start().await?;
    let target = longshore.uri().trim_start_matches("http://");
    let proxy = DelayingProxy::start(target, Duration::ZERO).await?;
    let marks = marks(&desk)?;
    let wait =
        format!("echo > $(mktemp {0}/XXXXXX); while [ ! -e {0}/go ]; do sleep 0.05; done", marks.display());
    let built = TestAction::shell(&wait).build(DigestFunction::Sha256);
    longshore.client().await?.upload(&built.blobs).await?;
    let list = desk.write("list", built.digest.to_string())?;
    let uri = format!("grpc://{}", proxy.address());
    let replay = desk.replay(&list, &uri, &[]);
    let disturb = async {
        eventually("the action runs", || Ok(std::fs::read_dir(&marks)?.count() == 1)).await?;
        proxy.cut();
        std::fs::write(marks.join("go"), "")?;
        anyhow::Ok(())
    };
    let (replayed, ()) = futures::future::try_join(replay, disturb).await?;
    let report = replayed.expect(EQUAL)?;
    assert_eq!((&report["rejoined"], &report["begun_anew"]), (&1.into(), &0.into()), "{}", replayed.output);
    assert_eq!(std::fs::read_dir(&marks)?.count(), 2, "its mark, and ours");
    Ok(())
}

// What a server's restarts cost is in the report.
#[tokio::test]
async fn broken_streams_are_counted() -> Result<()> {
    let breaks = |name: &str| Told::Breaks(name.to_owned(), Status::unavailable("restarting"));
    let told = [breaks("one"), breaks("one"), breaks("two"), Told::Done(Box::default())];
    let server = FakeCas::executing(told).await?;
    let built = TestAction::shell("true").build(DigestFunction::Sha256);
    server.put_all(&built.blobs);
    let desk = Desk::new()?;
    let list = desk.write("list", built.digest.to_string())?;
    // The first call goes as told, to which that fault does nothing; the second time, the server has forgotten.
    server.once(Method::WaitExecution, Fault::Truncate(0));
    server.once(Method::WaitExecution, Fault::Fail(Status::not_found("no such operation")));
    let replayed = desk.replay(&list, server.uri(), &[]).await?;
    let report = replayed.expect(EQUAL)?;
    assert_eq!((&report["rejoined"], &report["begun_anew"]), (&2.into(), &1.into()), "{}", replayed.output);
    assert!(replayed.output.contains("2 executions rejoined, 1 begun anew"), "{}", replayed.output);
    Ok(())
}

// A server that fails everything is left alone, and what it was spared is said.
#[tokio::test]
async fn a_server_that_fails_everything_is_left_alone() -> Result<()> {
    let server = FakeCas::start().await?;
    let built = TestAction::shell("true").build(DigestFunction::Sha256);
    server.put_all(&built.blobs);
    let desk = Desk::new()?;
    let list = desk.write("list", built.digest.to_string())?;
    let replayed = desk.replay(&list, server.uri(), &ENDLESS).await?;
    let report = replayed.expect(ERRORS)?;
    assert_eq!((&report["stopped"], &report["executions"]), (&"failures".into(), &100.into()));
    assert_eq!((&report["failed"], &report["without_result"]), (&100.into(), &1.into()));
    assert_eq!(report["next"], 0, "nothing has been done yet");
    assert!(replayed.output.contains("in a row failed; --skip 0 goes on"), "{}", replayed.output);
    Ok(())
}

// A reader that waits for the report gets it whole.
#[tokio::test]
async fn a_report_goes_through_a_pipe() -> Result<()> {
    let (desk, server, list) = idle().await?;
    let pipe = desk.path("pipe");
    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe)
    });
    let arguments = ["replay", &list, "--server", server.uri(), "--json", pipe.to_str().context("a name")?];
    let (status, output) = run_to_end(arguments).await?;
    ensure!(status.code() == Some(EQUAL), "{output}");
    let report = reader.join().ok().context("the reader")??;
    let report: serde_json::Value = serde_json::from_slice(&report)?;
    assert_eq!(report["executions"], 1);
    Ok(())
}

// One whose reader never comes is left by a signal, with the text on stdout.
#[tokio::test]
async fn a_pipe_that_nobody_reads_holds_nobody() -> Result<()> {
    let (desk, server, list) = idle().await?;
    let pipe = desk.path("pipe");
    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let text = desk.path("text");
    let mut replay = Command::new(binary()?)
        .args(["replay", &list, "--server", server.uri(), "--json"])
        .arg(&pipe)
        .stdin(Stdio::null())
        .stdout(File::create(&text)?)
        .spawn()?;
    let is_printed = || Ok(std::fs::read_to_string(&text)?.contains("equal         1 actions"));
    let printed = eventually("the text is printed", is_printed).await;
    kill(Pid::from_raw(replay.id().cast_signed()), Signal::SIGTERM)?;
    let waited_for = RefCell::new(&mut replay);
    let has_ended = || Ok(waited_for.borrow_mut().try_wait()?.is_some());
    let ended = eventually("it ends by the signal", has_ended).await;
    // Which changes nothing where it has ended.
    replay.kill()?;
    let status = replay.wait()?;
    printed.and(ended)?;
    assert_eq!(status.code(), Some(INTERRUPTED));
    Ok(())
}

// A disk that is full by then costs the file, and not what a person wants to know.
#[tokio::test]
async fn the_text_is_there_where_the_file_is_not() -> Result<()> {
    let (_desk, server, list) = idle().await?;
    let arguments = ["replay", &list, "--server", server.uri(), "--json", "/dev/full"];
    let (status, output) = run_to_end(arguments).await?;
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("equal         1 actions"), "{output}");
    assert!(output.contains("cannot write /dev/full: No space left"), "{output}");
    Ok(())
}

/// A server that executes at once, and a list of one action that it has.
async fn idle() -> Result<(Desk, FakeCas, String)> {
    let desk = Desk::new()?;
    let server = FakeCas::executing([Told::Done(Box::default())]).await?;
    let built = TestAction::shell("true").build(DigestFunction::Sha256);
    server.put_all(&built.blobs);
    let list = desk.write("list", built.digest.to_string())?;
    let list = list.to_str().context("a name")?.to_owned();
    Ok((desk, server, list))
}
