//! Starting, stopping and being killed: what outlives a longshore, and what does not.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::DigestFunction;
use longshore_proto::{longrunning, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::{Client, finished};
use longshore_tests::longshore::{Launch, Longshore, new_home, run_to_end};
use longshore_tests::process::{fifo, ignores, spawn_helper};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::task::{JoinHandle, spawn_blocking};
use tonic::Code;

use crate::result_of;

/// How long the kernel may take to end what was killed, on a machine that does much else.
const PATIENCE: Duration = Duration::from_mins(1);

// The second run comes from the cache, and does after a restart and after a kill.
#[tokio::test]
async fn results_outlive_a_restart_and_a_kill() -> Result<()> {
    let longshore = Longshore::start().await?;
    let home = longshore.home();
    // The output tells one execution from another.
    let action = TestAction::shell("cat /proc/sys/kernel/random/uuid > out").outputs(["out"]);
    let client = longshore.client().await?;
    let first = client.run(&action).await?;
    let written = client.output_file(result_of(&first, 0)?, "out").await?;
    assert!(client.run(&action).await?.cached_result);

    let status = longshore.stop().await?;
    assert!(status.success(), "{status}");
    let longshore = Longshore::launch(Launch { home: Some(home.clone()), ..Launch::default() }).await?;
    let client = longshore.client().await?;
    let second = client.run(&action).await?;
    assert!(second.cached_result);
    assert_eq!(client.output_file(result_of(&second, 0)?, "out").await?, written);

    longshore.kill().await?;
    let longshore = Longshore::launch(Launch { home: Some(home), ..Launch::default() }).await?;
    let client = longshore.client().await?;
    let third = client.run(&action).await?;
    assert!(third.cached_result);
    assert_eq!(client.output_file(result_of(&third, 0)?, "out").await?, written);
    Ok(())
}

// A client that waits for an operation from before a restart has to learn that it is gone, to execute again.
#[tokio::test]
async fn an_operation_from_before_a_restart_is_not_found() -> Result<()> {
    let longshore = Longshore::start().await?;
    let home = longshore.home();
    let client = longshore.client().await?;
    let blobs = TestAction::shell("exec sleep 1000").build(client.function());
    client.upload(&blobs.blobs).await?;
    let mut operations = client.start(&blobs.digest, false).await?;
    let name = operations.message().await?.context("an operation")?.name;
    longshore.kill().await?;

    let longshore = Longshore::launch(Launch { home: Some(home), ..Launch::default() }).await?;
    let client = longshore.client().await?;
    let error = wait_execution(&client, &name).await.expect_err("the operation is gone");
    assert_eq!(error.code(), Code::NotFound, "{error}");
    let request = longrunning::GetOperationRequest { name };
    let error = client.operations().get_operation(request).await.expect_err("the operation is gone");
    assert_eq!(error.code(), Code::NotFound, "{error}");
    Ok(())
}

/// `WaitExecution`, whose error may come before the stream or as its first message.
async fn wait_execution(client: &Client, name: &str) -> Result<longrunning::Operation, tonic::Status> {
    let request = reapi::WaitExecutionRequest { name: name.to_owned() };
    let mut stream = client.execution().wait_execution(request).await?.into_inner();
    stream.message().await.map(Option::unwrap_or_default)
}

// A second client that waits for a running operation gets its result too.
#[tokio::test]
async fn two_clients_wait_for_one_operation() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let other = longshore.client().await?;
    let folder = new_home()?;
    let go = folder.path().join("go");
    fifo(&go)?;
    let script = format!("read line < {}; echo \"$line\"", go.display());
    let blobs = TestAction::shell(&script).build(client.function());
    client.upload(&blobs.blobs).await?;
    let mut first = client.start(&blobs.digest, false).await?;
    let name = first.message().await?.context("an operation")?.name;
    let request = reapi::WaitExecutionRequest { name };
    let second = other.execution().wait_execution(request).await?.into_inner();
    // The action ends only now that both wait.
    spawn_blocking(move || std::fs::write(go, "go\n")).await??;
    let (first, second) = (finished(first).await?, finished(second).await?);
    result_of(&first, 0)?;
    assert_eq!(first.result, second.result);
    Ok(())
}

// Whoever finds the root taken is told which root, and the holder is not disturbed.
#[tokio::test]
async fn a_root_that_is_held_is_refused_by_name() -> Result<()> {
    let longshore = Longshore::start().await?;
    let root = longshore.root();
    let root = root.to_str().context("a path of UTF-8")?;
    let (status, printed) = run_to_end(["--listen", "127.0.0.1:0", "--root", root]).await?;
    assert!(!status.success());
    assert!(printed.contains(root), "{printed}");
    result_of(&longshore.client().await?.run(&TestAction::shell("true")).await?, 0)?;
    Ok(())
}

// Anyone who reaches the port runs commands, so a port for everyone needs a flag that says so.
#[tokio::test]
async fn an_address_for_everyone_is_refused() -> Result<()> {
    let home = new_home()?;
    let root = home.path().join("root");
    let root = root.to_str().context("a path of UTF-8")?;
    for address in ["0.0.0.0:0", "[::]:0"] {
        let (status, printed) = run_to_end(["--listen", address, "--root", root]).await?;
        assert!(!status.success(), "{printed}");
        assert!(printed.contains(address.trim_end_matches(":0")), "{printed}");
    }
    Ok(())
}

/// An action that runs, and goes on when it is told to.
struct Waiting {
    running: JoinHandle<Result<reapi::ExecuteResponse>>,
    go: PathBuf,
    _folder: TempDir,
}

impl Waiting {
    /// Completes when it runs; what it does in the end is `last`.
    async fn start(longshore: &Longshore, last: &str) -> Result<Self> {
        let client = longshore.client().await?;
        let folder = new_home()?;
        let (started, go) = (folder.path().join("started"), folder.path().join("go"));
        fifo(&started)?;
        fifo(&go)?;
        let script = format!("echo up > {}; read line < {}; {last}", started.display(), go.display());
        let action = TestAction::shell(&script);
        let running = tokio::spawn(async move { client.run(&action).await });
        spawn_blocking(move || std::fs::read(started)).await??;
        Ok(Self { running, go, _folder: folder })
    }

    async fn go_on(self) -> Result<reapi::ExecuteResponse> {
        spawn_blocking(move || std::fs::write(self.go, "\n")).await??;
        self.running.await?
    }
}

// An action that runs when SIGTERM comes is finished, its client gets the result, and then longshore ends well.
#[tokio::test]
async fn a_stop_drains_what_runs() -> Result<()> {
    let longshore = Longshore::start().await?;
    let waiting = Waiting::start(&longshore, "echo drained").await?;
    longshore.signal(Signal::SIGTERM)?;
    let response = waiting.go_on().await?;
    let expected = DigestFunction::Sha256.digest(b"drained\n").to_wire();
    assert_eq!(result_of(&response, 0)?.stdout_digest, Some(expected));
    let status = longshore.ended().await?;
    assert!(status.success(), "{status}");
    Ok(())
}

// The socket is the way in for the user alone.
#[tokio::test]
async fn a_unix_socket_serves_its_owner_only() -> Result<()> {
    let longshore = Longshore::launch(Launch { unix: true, ..Launch::default() }).await?;
    let path = longshore.uri().strip_prefix("unix:").context("a unix URI")?;
    assert_eq!(std::fs::metadata(path)?.permissions().mode() & 0o777, 0o600);
    result_of(&longshore.client().await?.run(&TestAction::shell("true")).await?, 0)?;
    Ok(())
}

// Killed without warning, it leaves no process behind: neither the helper that starts actions nor an action.
#[tokio::test]
async fn a_kill_leaves_no_process() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let folder = new_home()?;
    let pipe = folder.path().join("pipe");
    fifo(&pipe)?;
    let script = format!("exec 3> {}; echo up >&3; setsid sleep 1000 & exec sleep 1000", pipe.display());
    let action = TestAction::shell(&script);
    let running = tokio::spawn(async move { client.run(&action).await });
    let mut pipe = spawn_blocking(move || {
        let mut pipe = BufReader::new(File::open(pipe)?);
        let mut line = String::new();
        pipe.read_line(&mut line).map(|_| pipe)
    })
    .await??;

    // `kill` waits for the end of longshore's own output, which the helper holds open too.
    longshore.kill().await?;
    // The pipe ends only when the last process of the action is gone.
    let ended = spawn_blocking(move || pipe.read_to_string(&mut String::new()));
    tokio::time::timeout(PATIENCE, ended).await.context("a process of the action lives on")???;
    running.await?.expect_err("the connection is gone");
    Ok(())
}

// A longshore that was killed leaves its socket behind; the next one takes the place.
#[tokio::test]
async fn a_stale_socket_is_replaced() -> Result<()> {
    let longshore = Longshore::launch(Launch { unix: true, ..Launch::default() }).await?;
    let home = longshore.home();
    longshore.kill().await?;
    assert!(home.path().join("socket").exists());
    let launch = Launch { home: Some(home.clone()), unix: true, ..Launch::default() };
    let longshore = Longshore::launch(launch).await?;
    result_of(&longshore.client().await?.run(&TestAction::shell("true")).await?, 0)?;
    assert!(longshore.stop().await?.success());
    assert!(!home.path().join("socket").exists());
    Ok(())
}

// A terminal that is closed stops longshore as Ctrl-C does: what it stored is found again as it was.
#[tokio::test]
async fn a_hangup_stops_it_well() -> Result<()> {
    let longshore = Longshore::start().await?;
    let digest = longshore.client().await?.put("kept").await?;
    let home = longshore.home();
    if ignores(longshore.pid(), Signal::SIGHUP)? {
        // Started to outlive its terminal, as this test was (nohup).
        return Ok(());
    }
    longshore.signal(Signal::SIGHUP)?;
    assert!(longshore.ended().await?.success());
    let longshore = Longshore::launch(Launch { home: Some(home), ..Launch::default() }).await?;
    assert_eq!(longshore.client().await?.read(&digest).await?, &b"kept"[..]);
    Ok(())
}

// Who asks a second time is in a hurry: what runs is killed, and its client told that it can run elsewhere.
#[tokio::test]
async fn a_second_signal_stops_what_runs() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let folder = new_home()?;
    let started = folder.path().join("started");
    fifo(&started)?;
    let action = TestAction::shell(&format!("echo up > {}; exec sleep 1000", started.display()));
    let running = tokio::spawn(async move { client.run(&action).await });
    spawn_blocking(move || std::fs::read(started)).await??;

    longshore.signal(Signal::SIGINT)?;
    longshore.prints(&["again to stop at once"]).await?;
    longshore.signal(Signal::SIGINT)?;
    let response = running.await??;
    assert_eq!(response.status.context("no status")?.code, i32::from(Code::Unavailable));
    // The log says what the client was told.
    longshore.prints(&["action failed: the worker is shutting down", "Unavailable"]).await?;
    assert!(!longshore.output().contains("cancelled"), "{}", longshore.output());
    assert!(longshore.ended().await?.success());
    Ok(())
}

// Without its helper it can start nothing more, and only a new one can: what runs still gets its result, and then
// longshore ends, and says why.
#[tokio::test]
async fn it_ends_by_itself_without_its_helper() -> Result<()> {
    let longshore = Longshore::start().await?;
    let waiting = Waiting::start(&longshore, "true").await?;
    kill(Pid::from_raw(spawn_helper(longshore.pid())?.cast_signed()), Signal::SIGKILL)?;
    longshore.prints(&["ERROR", "helper process", "SIGKILL"]).await?;
    result_of(&waiting.go_on().await?, 0)?;
    longshore.prints(&["longshore: stopped", "helper process", "SIGKILL"]).await?;
    let status = longshore.ended().await?;
    assert_eq!(status.code(), Some(1), "{status}");
    Ok(())
}

// After a crash of the machine, verifying may take hours: whoever stops it meanwhile does not have to kill it, and as
// the first process of a container it could not be stopped otherwise.
#[tokio::test]
async fn a_stop_does_not_wait_for_what_is_being_verified() -> Result<()> {
    let longshore = Longshore::start().await?;
    let (home, root) = (longshore.home(), longshore.root());
    longshore.client().await?.put("something").await?;
    longshore.kill().await?;
    std::fs::write(root.join("boot"), "another boot")?;
    // A hole that takes hours to hash.
    let blobs = root.join("blobs/sha256/00");
    std::fs::create_dir_all(&blobs)?;
    let size_bytes = 1_u64 << 40;
    File::create(blobs.join(format!("{}-{size_bytes}", "0".repeat(64))))?.set_len(size_bytes)?;

    for _ in 0..2 {
        let longshore = Longshore::begin(Launch { home: Some(home.clone()), ..Launch::default() })?;
        // Also the second time: it was stopped before everything was verified.
        longshore.prints(&["verifying"]).await?;
        let status = longshore.stop().await?;
        assert!(status.success(), "{status}");
    }
    Ok(())
}

// Two schedulers at one endpoint can be told apart, and so can the files that say which they are.
#[tokio::test]
async fn a_worker_says_what_it_was_told() -> Result<()> {
    let scheduler = |instance: &str| {
        format!(
            "[[scheduler]]\nkind = \"bots\"\nendpoint = \"grpc://127.0.0.1:1\"\ninstance_name = \"{instance}\"\n"
        )
    };
    let config = format!("{}{}", scheduler("main"), scheduler("other"));
    let longshore = Longshore::work(&config, None).await?;
    longshore.prints(&["open files"]).await?;
    let printed = longshore.output();
    let file = longshore.home().path().join("worker.toml").display().to_string();
    for words in [&*file, "for         bots at grpc://127.0.0.1:1, instance \"main\"", "instance \"other\""] {
        assert!(printed.contains(words), "{printed}");
    }
    // Nobody can connect to it.
    assert!(!printed.contains("connections"), "{printed}");
    Ok(())
}

// What cannot be understood is refused, with the value and what was expected.
#[tokio::test]
async fn bad_values_are_refused_with_what_was_expected() -> Result<()> {
    for (arguments, expected) in [
        (["--jobs", "0"], "from 1 to 65535"),
        (["--jobs", "-1"], "from 1 to 65535"),
        (["--listen", "localhost"], "ADDR:PORT"),
        (["--max-size", "5 parsecs"], "GiB"),
        (["--action-user", "no-such-user"], "no-such-user"),
        (["--root", "/proc/longshore"], "/proc/longshore"),
    ] {
        let home = new_home()?;
        // A root of its own, where the arguments do not name one.
        let root = home.path().join("root").display().to_string();
        let root = if arguments[0] == "--root" { vec![] } else { vec!["--root".to_owned(), root] };
        let arguments = root.into_iter().chain(arguments.map(str::to_owned));
        let (status, printed) = run_to_end(arguments).await?;
        assert!(!status.success(), "{printed}");
        assert!(printed.contains(expected), "{printed}");
    }
    Ok(())
}
