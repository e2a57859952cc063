//! What the worker does with an action of Buildbarn's: the real binary, with a standalone longshore as the CAS.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::error_details::{Detail as _, PreconditionFailure};
use longshore_proto::remoteworker::desired_state;
use longshore_proto::{protobuf, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::fake_buildbarn::{FakeBuildbarn, task_of};
use longshore_tests::longshore::{Longshore, new_home};
use longshore_tests::process::{fifo, foreign_descendants};
use longshore_tests::wait::eventually;
use nix::sys::signal::Signal;
use tonic::Code;

use super::slots::is_running;
use super::{no_mistakes, response_of, task};

/// A scheduler, a CAS, and a worker between them.
struct Cluster {
    scheduler: FakeBuildbarn,
    client: Client,
    worker: Longshore,
    _cas: Longshore,
}

impl Cluster {
    async fn start() -> Result<Self> {
        let scheduler = FakeBuildbarn::start().await?;
        let cas = Longshore::start().await?;
        let config = format!(
            "[[scheduler]]\nkind = \"buildbarn\"\nendpoint = \"{}\"\ncapacity = 2\n[scheduler.platform]\nOSFamily = \
             \"linux\"\n[scheduler.cas]\nendpoint = \"{}\"\n",
            scheduler.uri(),
            cas.uri()
        );
        let worker = Longshore::work(&config, None).await?;
        Ok(Self { scheduler, client: cas.client().await?, worker, _cas: cas })
    }

    /// Uploads an action, and has the scheduler give it out as `change` makes it; the action's digest and the response.
    async fn run(
        &self,
        action: &TestAction,
        change: impl FnOnce(&mut desired_state::Executing),
    ) -> Result<(Digest, reapi::ExecuteResponse)> {
        let built = action.build(DigestFunction::Sha256);
        self.client.upload(&built.blobs).await?;
        let mut task = task_of(&built);
        change(&mut task);
        self.scheduler.submit(task);
        Ok((built.digest, response_of(&self.scheduler, &built.digest).await?))
    }

    async fn cached(&self, action: &Digest) -> Result<bool> {
        let request = reapi::GetActionResultRequest {
            action_digest: Some(action.to_wire()),
            digest_function: self.client.wire_function(),
            ..Default::default()
        };
        match self.client.action_cache().get_action_result(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(status.into()),
        }
    }
}

/// The worker writes the action cache, for what succeeded and may be cached, and only when the outputs are there.
#[tokio::test]
async fn bbw_12_19() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (action, response) = cluster
        .run(&TestAction::shell("echo content > out; mkdir d; echo x > d/f").outputs(["d", "out"]), |_| {})
        .await?;
    let result = response.result.context("no result")?;
    ensure!(cluster.cached(&action).await?, "not before it was reported");
    ensure!(cluster.client.output_file(&result, "out").await? == "content\n");
    let [directory] = &result.output_directories[..] else { anyhow::bail!("{result:?}") };
    let tree = Digest::from_wire(DigestFunction::Sha256, directory.tree_digest.as_ref())?;
    ensure!(cluster.client.missing([&tree]).await?.is_empty());

    let (failed, response) = cluster.run(&TestAction::shell("exit 3"), |_| {}).await?;
    ensure!(response.result.context("no result")?.exit_code == 3);
    ensure!(!cluster.cached(&failed).await?);
    no_mistakes(&cluster.scheduler)
}

/// The scheduler's Action counts, not the stored one; its timeout is enforced, and how long a command took is told.
#[tokio::test]
async fn bbw_13_14_15() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (action, response) = cluster
        .run(&TestAction::shell("echo learning"), |task| {
            task.action.get_or_insert_default().do_not_cache = true;
        })
        .await?;
    ensure!(!cluster.cached(&action).await?, "the scheduler forbade it");
    let metadata = response.result.and_then(|result| result.execution_metadata).context("no metadata")?;
    ensure!(metadata.virtual_execution_duration.is_some());

    let timeout = protobuf::Duration { seconds: 0, nanos: 200_000_000 };
    let action = TestAction::shell("echo so far; exec sleep 1000").timeout(Duration::from_mins(10));
    let (_, response) =
        cluster.run(&action, |task| task.action.get_or_insert_default().timeout = Some(timeout)).await?;
    let status = response.status.context("no status")?;
    ensure!(status.code == i32::from(Code::DeadlineExceeded), "{status:?}");
    ensure!(cluster.client.stdout(&response.result.context("no result")?).await? == "so far\n");
    no_mistakes(&cluster.scheduler)
}

/// Missing inputs are `FAILED_PRECONDITION`, each a `MISSING` violation without an instance name.
#[tokio::test]
async fn bbw_18() -> Result<()> {
    let cluster = Cluster::start().await?;
    let lost = DigestFunction::Sha256.digest(b"nobody has uploaded this");
    let (_, response) = cluster
        .run(&TestAction::shell("true"), |task| {
            task.action.get_or_insert_default().input_root_digest = Some(lost.to_wire());
        })
        .await?;
    let status = response.status.context("no status")?;
    ensure!(status.code == i32::from(Code::FailedPrecondition), "{status:?}");
    let failure = status.details.iter().find_map(PreconditionFailure::from_any).context("no details")?;
    let subjects: Vec<_> = failure.violations.into_iter().map(|one| (one.r#type, one.subject)).collect();
    ensure!(subjects == [("MISSING".to_owned(), format!("blobs/{lost}"))], "{subjects:?}");
    Ok(())
}

// What nobody wants any more is killed, and its slot is there for others.
#[tokio::test]
async fn a_task_that_is_taken_back_takes_its_processes_with_it() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.scheduler.set_interval(Duration::from_millis(20));
    let built = TestAction::shell("sleep 1000 & exec sleep 1000").build(DigestFunction::Sha256);
    cluster.client.upload(&built.blobs).await?;
    cluster.scheduler.submit(desired_state::Executing { action: None, ..task(&built.digest) });
    let pid = cluster.worker.pid();
    eventually("it runs", || Ok(foreign_descendants(pid)?.iter().any(|name| name == "sleep"))).await?;
    cluster.scheduler.take_back(&built.digest.hash_hex());
    // By itself it would end much later than this is waited for.
    eventually("nothing is left of it", || Ok(foreign_descendants(pid)?.is_empty())).await?;
    no_mistakes(&cluster.scheduler)
}

// Asked to stop, the worker ends what runs, reports it, and goes.
#[tokio::test]
async fn a_worker_that_is_asked_to_stop_reports_what_runs() -> Result<()> {
    let cluster = Cluster::start().await?;
    let folder = new_home()?;
    let pipe = folder.path().join("pipe");
    fifo(&pipe)?;
    let action = TestAction::shell(&format!("read line < {}; echo done", pipe.display()));
    let run = cluster.run(&action, |_| {});
    let stop = async {
        cluster.scheduler.hears(|heard| heard.iter().any(is_running)).await?;
        cluster.worker.signal(Signal::SIGTERM)?;
        cluster.worker.prints(&["stopping when 1"]).await?;
        tokio::fs::write(&pipe, "go\n").await.context("the pipe")
    };
    let ((_, response), ()) = futures::future::try_join(run, stop).await?;
    let result = response.result.context("no result")?;
    ensure!(cluster.client.stdout(&result).await? == "done\n", "{result:?}");
    let Cluster { worker, scheduler, .. } = cluster;
    ensure!(worker.ended().await?.success());
    no_mistakes(&scheduler)
}
