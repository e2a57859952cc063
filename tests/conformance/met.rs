//! Metadata of an execution.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use longshore_proto::command_outcome::Verdict;
use longshore_proto::reapi::ExecutedActionMetadata;
use longshore_proto::{protobuf, time};
use longshore_tests::action::TestAction;
use tonic::Code;

use crate::run::{Gate, Ran, metadata, run, run_by, run_script};
use crate::support::{shared_client, unique};

/// The names of all times of an execution, in the order in which they pass.
const NAMES: [&str; 9] = [
    "queued",
    "worker start",
    "input fetch start",
    "input fetch completed",
    "execution start",
    "execution completed",
    "output upload start",
    "output upload completed",
    "worker completed",
];

fn times(metadata: &ExecutedActionMetadata) -> [Option<(i64, i32)>; 9] {
    time::of_phases(metadata).map(|(_, stamp)| stamp.map(|stamp| (stamp.seconds, stamp.nanos)))
}

/// The names of the times that are set, which must be in order.
#[track_caller]
fn set_times(metadata: &ExecutedActionMetadata) -> Vec<&'static str> {
    let times = times(metadata);
    let set: Vec<_> = times.iter().flatten().collect();
    assert!(set.is_sorted(), "out of order: {times:?}");
    assert!(set.iter().all(|(seconds, nanos)| *seconds > 0 && (0..1_000_000_000).contains(nanos)), "{set:?}");
    NAMES.into_iter().zip(times).filter(|(_, time)| time.is_some()).map(|(name, _)| name).collect()
}

fn metadata_of(ran: &Ran) -> Result<&ExecutedActionMetadata> {
    ran.any_result()?.execution_metadata.as_ref().context("no metadata")
}

/// The worker has a name, and the same one every time.
#[tokio::test]
async fn met_01() -> Result<()> {
    let first = run_script("true", &[]).await?;
    let second = run_script("exit 1", &[]).await?;
    assert!(!metadata_of(&first)?.worker.is_empty());
    assert_eq!(metadata_of(&first)?.worker, metadata_of(&second)?.worker);
    Ok(())
}

/// All nine times of an action that was run are set and in order.
#[tokio::test]
async fn met_02() -> Result<()> {
    let before = time::timestamp(SystemTime::now());
    for (script, timeout) in
        [("echo a > a", 60_000), ("exit 3", 60_000), ("kill -9 $$", 60_000), ("sleep 1000", 300), ("true", 0)]
    {
        let action = TestAction::shell(script).outputs(["a"]).timeout(Duration::from_millis(timeout));
        let ran = run(&action).await?;
        assert_eq!(set_times(metadata_of(&ran)?), NAMES, "{script}");
        let queued = metadata_of(&ran)?.queued_timestamp.context("queued")?;
        assert!((queued.seconds, queued.nanos) >= (before.seconds, before.nanos));
    }
    let after = time::timestamp(SystemTime::now());
    let ran = run_script("true", &[]).await?;
    let completed = metadata_of(&ran)?.worker_completed_timestamp.context("completed")?;
    assert!((completed.seconds, completed.nanos) >= (after.seconds, after.nanos));
    Ok(())
}

/// The time of queueing is the scheduler's, and not after the worker's start.
#[tokio::test]
async fn met_03() -> Result<()> {
    // More actions than slots: those that wait were queued before they started.
    let (_longshore, client) = shared_client().await?;
    let action = |index: usize| TestAction::shell("exit 0").salt(format!("{index}")).do_not_cache();
    let actions: Vec<_> = (0..30).map(action).collect();
    let runs = actions.iter().map(|action| run_by(&client, action));
    for ran in futures::future::try_join_all(runs).await? {
        assert_eq!(set_times(metadata_of(&ran)?), NAMES);
    }
    Ok(())
}

/// Times of phases that were not reached are unset; the end of the work is set.
#[tokio::test]
async fn met_04() -> Result<()> {
    let mut malformed = TestAction::shell("true");
    malformed.command.working_directory = "../..".to_owned();
    let early = ["queued", "worker start", "input fetch start", "worker completed"];
    let ran = run(&malformed).await?;
    assert_eq!(ran.code(), Code::InvalidArgument);
    assert_eq!(set_times(metadata_of(&ran)?), early);
    assert_eq!(metadata_of(&ran)?.virtual_execution_duration, None);
    assert!(metadata_of(&ran)?.auxiliary_metadata.is_empty(), "no command has ended");

    let ran = run(&TestAction::new(["./absent"])).await?;
    assert_eq!(ran.code(), Code::InvalidArgument);
    let fetched =
        ["queued", "worker start", "input fetch start", "input fetch completed", "worker completed"];
    assert_eq!(set_times(metadata_of(&ran)?), fetched);
    Ok(())
}

/// The virtual duration is the time of the command by the timeout's clock, and within it unless it expired.
#[tokio::test]
async fn met_05() -> Result<()> {
    let duration = |ran: &Ran| {
        let wire = metadata_of(ran)?.virtual_execution_duration.context("no duration")?;
        time::from_duration(&wire).context("no span of time")
    };
    let ran = run(&TestAction::shell("sleep 0.2").timeout(Duration::from_mins(1))).await?;
    ran.result().await?;
    let took = duration(&ran)?;
    assert!(took >= Duration::from_millis(200) && took <= Duration::from_mins(1), "{took:?}");

    let timeout = Duration::from_millis(300);
    let ran = run(&TestAction::shell("sleep 1000").timeout(timeout)).await?;
    assert_eq!(ran.code(), Code::DeadlineExceeded);
    assert!(duration(&ran)? >= timeout);
    // Around the timeout either answer is right, but it must be one.
    for _ in 0..10 {
        let ran = run(&TestAction::shell("sleep 0.05").timeout(Duration::from_millis(55))).await?;
        let in_time = duration(&ran)? <= Duration::from_millis(55);
        assert!(in_time || ran.code() == Code::DeadlineExceeded, "{:?}", ran.response);
    }
    Ok(())
}

/// `auxiliary_metadata` says how the command ended and what it used, in a message of longshore's own.
#[tokio::test]
async fn met_06() -> Result<()> {
    // A hundred thousand rounds of a shell take processor time on any machine.
    let script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; exit 4";
    let ran = run_script(script, &[]).await?;
    let outcome = ran.outcome()?;
    assert_eq!((outcome.verdict(), outcome.exit_code), (Verdict::Exited, 4));
    let span = |wire: Option<protobuf::Duration>| time::from_duration(&wire.unwrap_or_default());
    assert!(span(outcome.user_time).context("user time")? > Duration::ZERO);
    assert!(outcome.system_time.is_some());
    assert!(outcome.resident_bytes_max > 100_000, "{outcome:?}");

    let ran = run(&TestAction::shell("sleep 1000").timeout(Duration::from_millis(200))).await?;
    assert_eq!(ran.outcome()?.verdict(), Verdict::TimedOut);
    let ran = run(&TestAction::shell("true").timeout(Duration::ZERO)).await?;
    assert_eq!(ran.outcome()?.verdict(), Verdict::TimedOut);
    Ok(())
}

/// A result from the cache has the metadata of its run.
#[tokio::test]
async fn met_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let action = TestAction::shell("echo a > a").outputs(["a"]).salt(unique(16));
    let first = client.run(&action).await?;
    let second = client.run(&action).await?;
    assert!(second.cached_result);
    let metadata = first.result.and_then(|result| result.execution_metadata).context("no metadata")?;
    assert_eq!(set_times(&metadata), NAMES);
    assert_eq!(second.result.and_then(|result| result.execution_metadata), Some(metadata));
    Ok(())
}

/// Updates while an action is under way have the metadata known so far, and none of the future.
#[tokio::test]
async fn met_08() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let gate = Gate::new()?;
    let action = TestAction::shell(&gate.script()).salt(unique(16));
    let blobs = action.build(client.function());
    client.upload(&blobs.blobs).await?;
    let mut stream = client.start(&blobs.digest, false).await?;
    let mut opened = false;
    let mut updates = 0;
    while let Some(operation) = stream.next().await {
        let operation = operation?;
        let Some(partial) = metadata(&operation)?.partial_execution_metadata else { continue };
        updates += 1;
        assert!(!operation.done);
        assert!(!partial.worker.is_empty());
        let known = set_times(&partial);
        assert_eq!(known, NAMES[..known.len()], "from the beginning, without a gap");
        if !opened && known.contains(&"input fetch completed") {
            // The command waits, so nothing of its end can be known.
            assert_eq!(known, NAMES[..4]);
            gate.open()?;
            opened = true;
        }
    }
    assert!(opened && updates > 0);
    Ok(())
}
