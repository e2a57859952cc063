//! The whole worker between a server of the Bots API and a CAS.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::bots::{self, BotStatus};
use longshore_proto::error_details::{Detail as _, MISSING, PreconditionFailure};
use longshore_proto::{Message as _, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::fake_bots::{ACTION_URL, Call, FakeBots, Handshake};
use longshore_tests::fake_cas::{FakeCas, Fault, Method};
use longshore_tests::longshore::{Longshore, new_home, run_to_end};
use longshore_tests::process::{fifo, foreign_descendants};
use longshore_tests::source::{files_below, source_root};
use longshore_tests::tree::InputTree;
use longshore_tests::wait::eventually;
use longshore_worker::config::{Config, Kind};
use nix::sys::signal::Signal;
use tokio::task::spawn_blocking;
use tonic::{Code, Status};

use super::{code, exit_code, no_mistakes};

/// A scheduler, a CAS, and a worker for both.
struct Cluster {
    server: FakeBots,
    cas: FakeCas,
    worker: Longshore,
}

impl Cluster {
    async fn start(handshake: Handshake) -> Result<Self> {
        let (server, cas) = (FakeBots::start(handshake).await?, FakeCas::start().await?);
        let worker = Longshore::work(&config(&[&server], &cas), None).await?;
        Ok(Self { server, cas, worker })
    }

    fn submit(&self, id: &str, action: &TestAction) -> Digest {
        submit(&self.server, &self.cas, id, action)
    }

    /// Has an action executed that waits for a line to be written to the file that is returned, and prints it.
    async fn submit_gate(&self, id: &str) -> Result<PathBuf> {
        let path = self.worker.home().path().join("gate");
        fifo(&path)?;
        self.submit(id, &TestAction::shell(&format!("read word < '{}'; echo $word", path.display())));
        self.runs("sh").await?;
        Ok(path)
    }

    /// Waits until a command of that name runs.
    async fn runs(&self, name: &str) -> Result<()> {
        let pid = self.worker.pid();
        eventually(name, || Ok(foreign_descendants(pid)?.iter().any(|found| found == name))).await
    }

    /// The content of a blob that the CAS has.
    fn text(&self, digest: Option<&reapi::Digest>) -> Result<String> {
        let digest = Digest::from_wire(DigestFunction::Sha256, digest)?;
        let data = self.cas.blob(&digest).with_context(|| format!("{digest} was not uploaded"))?;
        Ok(String::from_utf8(data.to_vec())?)
    }
}

fn config(servers: &[&FakeBots], cas: &FakeCas) -> String {
    let scheduler = |server: &&FakeBots| {
        let (server, cas) = (server.uri(), cas.uri());
        format!(
            "[[scheduler]]\nkind = \"bots\"\nendpoint = \"{server}\"\n[scheduler.cas]\nendpoint = \"{cas}\"\n"
        )
    };
    let schedulers: String = servers.iter().map(scheduler).collect();
    format!("[worker]\njobs = 1\nmax_size = \"1GiB\"\n{schedulers}")
}

fn submit(server: &FakeBots, cas: &FakeCas, id: &str, action: &TestAction) -> Digest {
    let blobs = action.build(DigestFunction::Sha256);
    cas.put_all(&blobs.blobs);
    let (_, message) = blobs.blobs.iter().find(|(digest, _)| *digest == blobs.digest).expect("the Action");
    server.submit_payload(id, ACTION_URL, message.to_vec());
    blobs.digest
}

fn result_of(lease: &bots::Lease) -> Result<reapi::ActionResult> {
    let any = lease.result.as_ref().with_context(|| format!("no result: {lease:?}"))?;
    Ok(reapi::ActionResult::decode(any.value.as_slice())?)
}

/// Writes a line to whoever reads the file.
async fn tell(path: PathBuf, line: &'static str) -> Result<()> {
    Ok(spawn_blocking(move || std::fs::write(path, format!("{line}\n"))).await??)
}

/// The server writes the action cache; outputs and logs are in the CAS before the result is told.
#[tokio::test]
async fn rwb_08() -> Result<()> {
    for handshake in [Handshake::Given, Handshake::Offered] {
        let cluster = Cluster::start(handshake).await?;
        let inputs = InputTree::new().file("in", "content");
        let action = TestAction::shell("cat in > out; echo said").inputs(inputs).outputs(["out"]);
        cluster.submit("a", &action);
        let lease = cluster.server.finished("a").await;
        assert_eq!((code(&lease), exit_code(&lease)?), (Code::Ok, 0), "{}", cluster.worker.output());
        let result = result_of(&lease)?;
        assert_eq!(cluster.text(result.output_files[0].digest.as_ref())?, "content");
        assert_eq!(cluster.text(result.stdout_digest.as_ref())?, "said\n");
        assert!(result.execution_metadata.context("metadata")?.worker_completed_timestamp.is_some());
        assert_eq!(cluster.cas.calls(Method::UpdateActionResult).len(), 0);
        no_mistakes(&cluster.server)?;
    }
    Ok(())
}

// WCC-08: the client hears what it has to upload.
#[tokio::test]
async fn a_missing_input_is_named() -> Result<()> {
    let cluster = Cluster::start(Handshake::Given).await?;
    let action = TestAction::shell("true").inputs(InputTree::new().file("in", "nowhere to be found"));
    let missing = DigestFunction::Sha256.digest(b"nowhere to be found");
    let blobs = action.build(DigestFunction::Sha256);
    cluster.cas.put_all(blobs.blobs.iter().filter(|(digest, _)| *digest != missing));
    let (_, message) =
        blobs.blobs.iter().find(|(digest, _)| *digest == blobs.digest).context("the Action")?;
    cluster.server.submit_payload("a", ACTION_URL, message.to_vec());
    let lease = cluster.server.finished("a").await;
    assert_eq!(code(&lease), Code::FailedPrecondition);
    let details = lease.status.context("a status")?.details;
    let failure = details.iter().find_map(PreconditionFailure::from_any).context("violations")?;
    let found: Vec<_> =
        failure.violations.iter().map(|found| (found.r#type.as_str(), found.subject.as_str())).collect();
    assert_eq!(found, [(MISSING, format!("blobs/{missing}").as_str())]);
    Ok(())
}

// A CAS that is away for a moment costs no action.
#[tokio::test]
async fn an_outage_of_the_cas_is_waited_out() -> Result<()> {
    let cluster = Cluster::start(Handshake::Given).await?;
    let gone = || Fault::Fail(Status::unavailable("not there"));
    for method in [Method::BatchReadBlobs, Method::FindMissingBlobs, Method::BatchUpdateBlobs] {
        cluster.cas.once(method, gone());
        cluster.cas.once(method, gone());
    }
    cluster.submit("a", &TestAction::shell("echo said; exit 3"));
    let lease = cluster.server.finished("a").await;
    assert_eq!((code(&lease), exit_code(&lease)?), (Code::Ok, 3), "{}", cluster.worker.output());
    assert_eq!(cluster.server.results("a").len(), 1);
    Ok(())
}

// What nobody wants any more is killed, and makes room.
#[tokio::test]
async fn a_lease_that_is_taken_back_takes_its_processes_with_it() -> Result<()> {
    let cluster = Cluster::start(Handshake::Given).await?;
    cluster.submit("a", &TestAction::shell("sleep 1000 & sleep 1000"));
    cluster.runs("sleep").await?;
    cluster.server.take_back("a");
    cluster.submit("b", &TestAction::shell("exit 4"));
    assert_eq!(exit_code(&cluster.server.finished("b").await)?, 4);
    assert_eq!(foreign_descendants(cluster.worker.pid())?, Vec::<String>::new());
    no_mistakes(&cluster.server)
}

// A worker that comes back has the name that it had, and so its lease at once.
#[tokio::test]
async fn a_worker_that_is_killed_comes_back_as_the_same_bot() -> Result<()> {
    let cluster = Cluster::start(Handshake::Given).await?;
    let gate = cluster.submit_gate("a").await?;
    let home = cluster.worker.home();
    let Cluster { server, cas, worker } = cluster;
    worker.kill().await?;
    let worker = Longshore::work(&config(&[&server], &cas), Some(home)).await?;
    let cluster = Cluster { server, cas, worker };
    cluster.runs("sh").await?;
    tell(gate, "again").await?;
    let lease = cluster.server.finished("a").await;
    assert_eq!(cluster.text(result_of(&lease)?.stdout_digest.as_ref())?, "again\n");
    assert_eq!(cluster.server.results("a").len(), 1);
    let firsts: Vec<_> = cluster.server.calls().into_iter().filter(|call| call.parent.is_some()).collect();
    assert_eq!(firsts.len(), 2);
    assert_eq!(firsts[0].session.bot_id, firsts[1].session.bot_id);
    no_mistakes(&cluster.server)
}

#[tokio::test]
async fn a_worker_that_is_asked_to_stop_delivers_and_leaves() -> Result<()> {
    let cluster = Cluster::start(Handshake::Given).await?;
    let gate = cluster.submit_gate("a").await?;
    cluster.worker.signal(Signal::SIGTERM)?;
    let is_leaving = |call: &Call| call.session.status() == BotStatus::BotTerminating;
    cluster.server.called(is_leaving).await;
    cluster.submit("b", &TestAction::shell("true"));
    tell(gate, "last").await?;
    let lease = cluster.server.finished("a").await;
    assert_eq!(cluster.text(result_of(&lease)?.stdout_digest.as_ref())?, "last\n");
    let Cluster { server, worker, .. } = cluster;
    let status = worker.ended().await?;
    ensure!(status.success(), "{status}");
    let last = server.calls().pop().context("a call")?.session;
    assert_eq!((last.status(), last.leases.len()), (BotStatus::BotTerminating, 0));
    assert_eq!(server.results("b").len(), 0);
    no_mistakes(&server)
}

// Whoever is in a hurry gives what runs back, to be run elsewhere: it is no failure of the action.
#[tokio::test]
async fn a_worker_that_is_asked_twice_gives_its_leases_back() -> Result<()> {
    let cluster = Cluster::start(Handshake::Given).await?;
    cluster.submit("a", &TestAction::shell("exec sleep 1000"));
    cluster.runs("sleep").await?;
    for printed in ["stopping when", "stopping at once"] {
        cluster.worker.signal(Signal::SIGTERM)?;
        cluster.worker.prints(&[printed]).await?;
    }
    let Cluster { server, worker, .. } = cluster;
    ensure!(worker.ended().await?.success());
    let results = server.results("a");
    assert_eq!(results.iter().map(code).collect::<Vec<_>>(), [Code::Unavailable]);
    no_mistakes(&server)
}

// One process, two schedulers, one slot.
#[tokio::test]
async fn schedulers_share_a_worker() -> Result<()> {
    let cas = FakeCas::start().await?;
    let (one, two) = (FakeBots::start(Handshake::Given).await?, FakeBots::start(Handshake::Offered).await?);
    let worker = Longshore::work(&config(&[&one, &two], &cas), Some(Arc::new(new_home()?))).await?;
    let cluster = Cluster { server: one, cas, worker };
    let gate = cluster.submit_gate("a").await?;
    submit(&two, &cluster.cas, "b", &TestAction::shell("exit 4"));
    two.accepted("b").await;
    assert_eq!(two.results("b").len(), 0, "the slot is taken");
    tell(gate, "on").await?;
    assert_eq!(exit_code(&cluster.server.finished("a").await)?, 0);
    assert_eq!(exit_code(&two.finished("b").await)?, 4);
    no_mistakes(&cluster.server)?;
    no_mistakes(&two)
}

// Whoever's CAS is away waits alone: others' actions have its place, and do not wait for what it may have.
#[tokio::test]
async fn an_outage_of_one_cas_is_not_felt_by_others() -> Result<()> {
    for is_silent in [true, false] {
        let (gone, there) = (FakeCas::start().await?, FakeCas::start().await?);
        let (one, two) = (FakeBots::start(Handshake::Given).await?, FakeBots::start(Handshake::Given).await?);
        let rest = config(&[&two], &there);
        let rest = rest.split_once("[[scheduler]]").context("a scheduler")?.1;
        let worker = Longshore::work(&format!("{}[[scheduler]]{rest}", config(&[&one], &gone)), None).await?;
        for method in Method::ALL {
            if is_silent {
                gone.hold(method);
            } else {
                gone.always(method, Fault::Fail(Status::unavailable("not there")));
            }
        }
        let action = |name: &'static str| {
            let inputs = InputTree::new().file("in", name).file("deep/er", name);
            TestAction::shell("cat in > out").inputs(inputs).outputs(["out"])
        };
        submit(&one, &gone, "waits", &action("waits"));
        one.accepted("waits").await;
        gone.arrived(Method::GetCapabilities, 1).await;
        for name in ["a", "b", "c"] {
            submit(&two, &there, name, &action(name));
            let lease = two.finished(name).await;
            assert_eq!((code(&lease), exit_code(&lease)?), (Code::Ok, 0), "{}", worker.output());
        }
        assert_eq!(one.results("waits").len(), 0);
        for method in Method::ALL {
            gone.release(method);
            gone.heal(method);
        }
        assert_eq!(exit_code(&one.finished("waits").await)?, 0, "{}", worker.output());
        no_mistakes(&one)?;
        no_mistakes(&two)?;
    }
    Ok(())
}

// An action that waits for its turn has its inputs when that comes: the CAS may have gone by then.
#[tokio::test]
async fn the_inputs_of_what_waits_are_fetched_ahead() -> Result<()> {
    let (server, cas) = (FakeBots::start(Handshake::Given).await?, FakeCas::start().await?);
    let config = config(&[&server], &cas).replace("kind = \"bots\"\n", "kind = \"bots\"\ncapacity = 2\n");
    let cluster = Cluster { worker: Longshore::work(&config, None).await?, server, cas };
    let gate = cluster.submit_gate("a").await?;
    let inputs = InputTree::new().file("in", "content");
    let action = TestAction::shell("test \"$(cat in)\" = content").inputs(inputs);
    cluster.submit("b", &action);
    let trees = cluster.worker.root().join("trees");
    eventually("the tree of what waits is ready", || {
        // One of an input root without anything in it, for the action that runs, and one that waits.
        Ok(std::fs::read_dir(&trees)?.filter_map(Result::ok).any(|tree| tree.path().join("in").exists()))
    })
    .await?;
    assert_eq!(cluster.server.results("a").len(), 0, "the slot is still taken");
    cluster.cas.evict(&DigestFunction::Sha256.digest(b"content"));
    tell(gate, "on").await?;
    let lease = cluster.server.finished("b").await;
    assert_eq!((code(&lease), exit_code(&lease)?), (Code::Ok, 0), "{}", cluster.worker.output());
    no_mistakes(&cluster.server)
}

// The first thing that an operator meets.
#[tokio::test]
async fn a_worker_says_what_is_wrong_with_its_configuration() -> Result<()> {
    let (status, printed) = run_to_end(["worker"]).await?;
    ensure!(!status.success() && printed.contains("--config"), "{printed}");
    let (status, printed) = run_to_end(["worker", "--config", "/nowhere/worker.toml"]).await?;
    ensure!(!status.success() && printed.contains("/nowhere/worker.toml"), "{printed}");
    let (status, printed) = run_to_end(["worker", "--print-config"]).await?;
    ensure!(status.success() && printed.contains("[[scheduler]]"), "{printed}");
    Ok(())
}

/// Few properties are announced: of many, an operator is warned.
#[tokio::test]
async fn rwb_03() -> Result<()> {
    let (server, cas) = (FakeBots::start(Handshake::Given).await?, FakeCas::start().await?);
    let values: Vec<_> = (0..11).map(|number| number.to_string()).collect();
    let config = format!("{}[scheduler.platform]\npool = {values:?}\n", config(&[&server], &cas));
    let worker = Longshore::work(&config, None).await?;
    worker.prints(&["WARN", "11 properties"]).await
}

// The scheduler has matched platforms by its own rules; names and values mean what its operator says.
#[tokio::test]
async fn an_action_runs_wherever_its_scheduler_sends_it() -> Result<()> {
    let cluster = Cluster::start(Handshake::Given).await?;
    let mut action = TestAction::shell("true");
    let property =
        |name: &str, value: &str| reapi::platform::Property { name: name.into(), value: value.into() };
    let properties = vec![property("ISA", "any"), property("OSFamily", "bookworm")];
    action.platform = Some(reapi::Platform { properties });
    cluster.submit("a", &action);
    let lease = cluster.server.finished("a").await;
    assert_eq!((code(&lease), exit_code(&lease)?), (Code::Ok, 0), "{}", cluster.worker.output());
    Ok(())
}

// What is in deploy/ can be used: an example of each kind.
#[test]
fn the_examples_are_configurations() -> Result<()> {
    let mut kinds = Vec::new();
    for example in files_below(&source_root().join("deploy"), "toml") {
        kinds.extend(Config::read(&example)?.schedulers.iter().map(|scheduler| scheduler.kind));
    }
    assert_eq!(kinds, [Kind::Bots, Kind::Buildbarn, Kind::NativeLink]);
    Ok(())
}
