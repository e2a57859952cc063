//! The whole worker between a scheduler and a CAS, each with faults.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::nativelink::update_for_scheduler::Update as Heard;
use longshore_proto::reapi;
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::fake_cas::{FakeCas, Fault, Method};
use longshore_tests::fake_nativelink::{Ended, FakeNativeLink};
use longshore_tests::longshore::{Longshore, new_home};
use longshore_tests::process::{fifo, foreign_descendants, spawn_helper};
use longshore_tests::tree::InputTree;
use longshore_tests::wait::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::spawn_blocking;
use tonic::{Code, Status};

use super::no_mistakes;

/// A scheduler, a CAS, and a worker for both.
struct Cluster {
    scheduler: FakeNativeLink,
    cas: FakeCas,
    worker: Longshore,
}

impl Cluster {
    async fn start() -> Result<Self> {
        let (scheduler, cas) = (FakeNativeLink::start().await?, FakeCas::start().await?);
        let worker = Longshore::work(&config(&scheduler, &cas), None).await?;
        Ok(Self { scheduler, cas, worker })
    }

    /// Has an action executed under that operation.
    fn submit(&self, operation: &str, action: &TestAction) -> Digest {
        let blobs = action.build(DigestFunction::Sha256);
        self.cas.put_all(&blobs.blobs);
        self.scheduler.submit(operation, &blobs.digest);
        blobs.digest
    }

    /// Has an action executed, and waits for its response.
    async fn run(&self, operation: &str, action: &TestAction) -> Result<reapi::ExecuteResponse> {
        self.submit(operation, action);
        self.response(operation).await
    }

    async fn response(&self, operation: &str) -> Result<reapi::ExecuteResponse> {
        match self.scheduler.ended(operation).await {
            Ended::Response(response) => Ok(*response),
            ended => bail!("{operation}: {ended:?}\n{}", self.worker.output()),
        }
    }

    /// The content of an output that the CAS has.
    fn text(&self, digest: Option<&reapi::Digest>) -> Result<String> {
        let digest = Digest::from_wire(DigestFunction::Sha256, digest)?;
        let data = self.cas.blob(&digest).with_context(|| format!("{digest} was not uploaded"))?;
        Ok(String::from_utf8(data.to_vec())?)
    }

    /// Waits until a command of that name runs.
    async fn runs(&self, name: &str) -> Result<()> {
        let pid = self.worker.pid();
        eventually(name, || Ok(foreign_descendants(pid)?.iter().any(|found| found == name))).await
    }
}

fn config(scheduler: &FakeNativeLink, cas: &FakeCas) -> String {
    format!(
        "[worker]\njobs = 2\nname = \"w\"\nmax_size = \"1GiB\"\n[[scheduler]]\nkind = \"nativelink\"\n\
         endpoint = \"{}\"\n[scheduler.cas]\nendpoint = \"{}\"\n",
        scheduler.uri(),
        cas.uri()
    )
}

fn code(response: &reapi::ExecuteResponse) -> Code {
    response.status.as_ref().map_or(Code::Ok, |status| Code::from(status.code))
}

/// An action that reads `in` and writes `out`.
fn copy() -> TestAction {
    let inputs = InputTree::new().file("in", "content");
    TestAction::shell("cat in > out; echo said; ln -s out link").inputs(inputs).outputs(["out", "link"])
}

// Outputs and logs are in the CAS, and the result in the action cache, which the scheduler does not write.
#[tokio::test]
#[expect(deprecated, reason = "the scheduler reads no other fields")]
async fn an_action_is_run_uploaded_and_cached() -> Result<()> {
    let cluster = Cluster::start().await?;
    let action = copy();
    let response = cluster.run("a", &action).await?;
    let result = response.result.as_ref().context("a result")?;
    assert_eq!((code(&response), result.exit_code), (Code::Ok, 0), "{response:?}");
    assert_eq!(cluster.text(result.output_files[0].digest.as_ref())?, "content");
    assert_eq!(cluster.text(result.stdout_digest.as_ref())?, "said\n");
    assert_eq!(result.output_file_symlinks[0].path, "link");
    let digest = action.build(DigestFunction::Sha256).digest;
    let cached = cluster.cas.result(&digest).context("a cached result")?;
    assert_eq!(cached.output_files, result.output_files);
    let is_ran = |heard: &Heard| matches!(heard, Heard::ExecuteComplete(_));
    cluster.scheduler.hears(is_ran).await;
    no_mistakes(&cluster.scheduler)
}

#[tokio::test]
async fn what_is_not_for_others_is_not_cached() -> Result<()> {
    let cluster = Cluster::start().await?;
    let uncached = [
        ("private", TestAction::shell("true").do_not_cache()),
        ("failing", TestAction::shell("exit 3")),
        ("late", TestAction::shell("exec sleep 1000").timeout(Duration::from_millis(100))),
        ("wrong", TestAction::new(["/nowhere"])),
    ];
    for (operation, action) in uncached {
        let digest = cluster.submit(operation, &action);
        cluster.response(operation).await?;
        ensure!(cluster.cas.result(&digest).is_none(), "{operation} is cached");
    }
    assert_eq!(code(&cluster.response("late").await?), Code::DeadlineExceeded);
    assert_eq!(code(&cluster.response("wrong").await?), Code::InvalidArgument);
    assert!(cluster.cas.calls(Method::UpdateActionResult).is_empty());
    no_mistakes(&cluster.scheduler)
}

// The details of a status do not come through: the blobs are in its message.
#[tokio::test]
async fn missing_inputs_are_named() -> Result<()> {
    let cluster = Cluster::start().await?;
    let action = copy();
    let blobs = action.build(DigestFunction::Sha256);
    let (input, _) = blobs.blobs.iter().find(|(_, data)| data == "content").context("the input")?;
    cluster.cas.put_all(blobs.blobs.iter().filter(|(digest, _)| digest != input));
    cluster.scheduler.submit("a", &blobs.digest);
    let response = cluster.response("a").await?;
    assert_eq!(code(&response), Code::FailedPrecondition);
    let message = response.status.map(|status| status.message).unwrap_or_default();
    assert!(message.contains(&input.hash_hex()), "{message}");
    no_mistakes(&cluster.scheduler)
}

// A CAS that stumbles costs time.
#[tokio::test]
async fn a_cas_that_stumbles_costs_no_action() -> Result<()> {
    let cluster = Cluster::start().await?;
    let methods = [Method::BatchReadBlobs, Method::FindMissingBlobs, Method::BatchUpdateBlobs];
    for method in methods.into_iter().chain([Method::UpdateActionResult]) {
        for _ in 0..3 {
            cluster.cas.once(method, Fault::Fail(Status::unavailable("restarting")));
        }
    }
    cluster.cas.once(Method::BatchReadBlobs, Fault::Corrupt);
    cluster.cas.once(Method::BatchReadBlobs, Fault::Truncate(1));
    cluster.cas.hold(Method::BatchReadBlobs);
    let digest = cluster.submit("a", &copy());
    cluster.cas.arrived(Method::BatchReadBlobs, 1).await;
    cluster.cas.release(Method::BatchReadBlobs);
    let response = cluster.response("a").await?;
    let result = response.result.as_ref().context("a result")?;
    assert_eq!(cluster.text(result.output_files[0].digest.as_ref())?, "content", "{response:?}");
    assert!(cluster.cas.result(&digest).is_some());
    no_mistakes(&cluster.scheduler)
}

// Wrong bytes are nobody's input, however often they come; the scheduler tries elsewhere.
#[tokio::test]
async fn wrong_bytes_never_become_an_input() -> Result<()> {
    let cluster = Cluster::start().await?;
    let action = copy();
    let blobs = action.build(DigestFunction::Sha256);
    cluster.cas.put_all(&blobs.blobs);
    let (input, _) = blobs.blobs.iter().find(|(_, data)| data == "content").context("the input")?;
    cluster.cas.put_all(&[(*input, "C0ntent".into())]);
    cluster.scheduler.submit("a", &blobs.digest);
    let ended = cluster.scheduler.ended("a").await;
    let Ended::GivenUp(status) = ended else { bail!("{ended:?}") };
    assert!(status.message.contains(&input.hash_hex()), "{}", status.message);
    assert_eq!(cluster.scheduler.starts().len(), 4);
    no_mistakes(&cluster.scheduler)
}

#[tokio::test]
async fn a_kill_ends_every_process() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.submit("a", &TestAction::shell("sleep 1000 & exec sleep 1000"));
    cluster.runs("sleep").await?;
    cluster.scheduler.kill("a");
    let ended = cluster.scheduler.ended("a").await;
    ensure!(matches!(ended, Ended::Killed), "{ended:?}");
    assert_eq!(foreign_descendants(cluster.worker.pid())?, Vec::<String>::new());
    no_mistakes(&cluster.scheduler)
}

// The command has ended, and a cache that does not answer holds nobody up.
#[tokio::test]
async fn a_kill_is_heard_while_the_result_is_written() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.cas.hold(Method::UpdateActionResult);
    cluster.submit("a", &TestAction::shell("true"));
    cluster.cas.arrived(Method::UpdateActionResult, 1).await;
    cluster.scheduler.kill("a");
    let ended = cluster.scheduler.ended("a").await;
    ensure!(matches!(ended, Ended::Killed), "{ended:?}");
    let response = cluster.run("b", &TestAction::shell("exit 3")).await?;
    assert_eq!(response.result.map(|result| result.exit_code), Some(3), "the slot is free");
    no_mistakes(&cluster.scheduler)
}

// While the stream was lost, another worker has run it, and clients have that result.
#[tokio::test]
async fn a_result_that_others_were_given_is_not_replaced() -> Result<()> {
    let cluster = Cluster::start().await?;
    let path = cluster.worker.home().path().join("gate");
    fifo(&path)?;
    let action =
        cluster.submit("a", &TestAction::shell(&format!("read word < '{}'; echo $word", path.display())));
    cluster.runs("sh").await?;
    cluster.scheduler.set_closed(true);
    cluster.scheduler.lose();
    cluster.scheduler.refused(1).await;
    let given = reapi::ActionResult { stdout_raw: b"given".to_vec(), ..Default::default() };
    let request = reapi::UpdateActionResultRequest {
        action_digest: Some(action.to_wire()),
        action_result: Some(given.clone()),
        ..Default::default()
    };
    let client = Client::connect(&cluster.cas.uri().replace("grpc://", "http://")).await?;
    client.action_cache().update_action_result(request).await?;
    open(&path, "another").await?;
    cluster.cas.arrived(Method::GetActionResult, 1).await;
    cluster.scheduler.set_closed(false);
    assert_eq!(code(&cluster.response("a").await?), Code::Ok);
    assert_eq!(cluster.cas.result(&action), Some(given));
    no_mistakes(&cluster.scheduler)
}

// The scheduler gives the action out again; nothing of the first run is left, or reported.
#[tokio::test]
async fn a_worker_that_is_killed_comes_back_for_its_actions() -> Result<()> {
    let cluster = Cluster::start().await?;
    let path = cluster.worker.home().path().join("gate");
    fifo(&path)?;
    cluster.submit("a", &TestAction::shell(&format!("read word < '{}'; echo $word", path.display())));
    cluster.runs("sh").await?;
    let home = cluster.worker.home();
    let Cluster { scheduler, cas, worker } = cluster;
    worker.kill().await?;
    scheduler.deserted().await;
    let worker = Longshore::work(&config(&scheduler, &cas), Some(home)).await?;
    let cluster = Cluster { scheduler, cas, worker };
    cluster.scheduler.started("a", 2).await;
    open(&path, "again").await?;
    let response = cluster.response("a").await?;
    let result = response.result.context("a result")?;
    assert_eq!(cluster.text(result.stdout_digest.as_ref())?, "again\n");
    no_mistakes(&cluster.scheduler)
}

#[tokio::test]
async fn a_worker_that_is_asked_to_stop_delivers_and_leaves() -> Result<()> {
    let cluster = Cluster::start().await?;
    let path = cluster.worker.home().path().join("gate");
    fifo(&path)?;
    cluster.submit("a", &TestAction::shell(&format!("read word < '{}'; echo $word", path.display())));
    cluster.runs("sh").await?;
    cluster.worker.signal(Signal::SIGTERM)?;
    cluster.worker.prints(&["stopping when"]).await?;
    open(&path, "last").await?;
    let response = cluster.response("a").await?;
    assert_eq!(code(&response), Code::Ok, "{response:?}");
    let Cluster { scheduler, worker, .. } = cluster;
    let status = worker.ended().await?;
    ensure!(status.success(), "{status}");
    assert!(matches!(scheduler.heard().last(), Some((_, Heard::GoingAwayRequest(_)))));
    no_mistakes(&scheduler)
}

// A worker that can start nothing more would fail every action that it is given: it takes its leave, and says why.
#[tokio::test]
async fn a_worker_without_its_helper_leaves() -> Result<()> {
    let Cluster { scheduler, worker, cas: _cas } = Cluster::start().await?;
    scheduler.registered(1).await;
    kill(Pid::from_raw(spawn_helper(worker.pid())?.cast_signed()), Signal::SIGKILL)?;
    scheduler.deserted().await;
    assert!(matches!(scheduler.heard().last(), Some((_, Heard::GoingAwayRequest(_)))));
    worker.prints(&["longshore: stopped", "helper process", "SIGKILL"]).await?;
    let status = worker.ended().await?;
    assert_eq!(status.code(), Some(1), "{status}");
    no_mistakes(&scheduler)
}

// While somebody else's action is waited for, nobody answers to what a scheduler would start here.
#[tokio::test]
async fn a_scheduler_with_nothing_left_here_is_left_before_the_others() -> Result<()> {
    let (busy, idle) = (FakeNativeLink::start().await?, FakeNativeLink::start().await?);
    let cas = FakeCas::start().await?;
    let other = config(&idle, &cas);
    let other = other.split_once("[[scheduler]]").context("a scheduler")?.1;
    let worker = Longshore::work(&format!("{}[[scheduler]]{other}", config(&busy, &cas)), None).await?;
    let cluster = Cluster { scheduler: busy, cas, worker };
    let path = cluster.worker.home().path().join("gate");
    fifo(&path)?;
    cluster.submit("a", &TestAction::shell(&format!("read word < '{}'; echo $word", path.display())));
    cluster.runs("sh").await?;
    idle.registered(1).await;
    cluster.worker.signal(Signal::SIGTERM)?;
    idle.deserted().await;
    assert!(matches!(idle.heard().last(), Some((_, Heard::GoingAwayRequest(_)))));
    assert!(cluster.scheduler.has_worker(), "its action still runs");
    open(&path, "last").await?;
    assert_eq!(code(&cluster.response("a").await?), Code::Ok);
    let Cluster { scheduler, worker, .. } = cluster;
    ensure!(worker.ended().await?.success());
    no_mistakes(&idle)?;
    no_mistakes(&scheduler)
}

// Whoever is in a hurry gives what runs back: it is no failure of the action.
#[tokio::test]
async fn a_worker_that_is_asked_twice_gives_its_actions_back() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.submit("a", &TestAction::shell("exec sleep 1000"));
    cluster.runs("sleep").await?;
    for printed in ["stopping when", "stopping at once"] {
        cluster.worker.signal(Signal::SIGTERM)?;
        cluster.worker.prints(&[printed]).await?;
    }
    let Cluster { scheduler, cas, worker } = cluster;
    ensure!(worker.ended().await?.success());
    let other = Longshore::work(&config(&scheduler, &cas), Some(Arc::new(new_home()?))).await?;
    scheduler.started("a", 2).await;
    let pid = other.pid();
    eventually("it runs elsewhere", || Ok(foreign_descendants(pid)?.iter().any(|name| name == "sleep")))
        .await?;
    no_mistakes(&scheduler)
}

/// Writes a line to whoever reads the gate.
async fn open(path: &Path, line: &str) -> Result<()> {
    let (path, line) = (path.to_owned(), line.to_owned());
    spawn_blocking(move || {
        let mut gate = File::options().write(true).open(&path)?;
        writeln!(gate, "{line}")
    })
    .await??;
    Ok(())
}
