//! What a worker behind a scheduler elsewhere reaches: T1 cold, again, and with one file changed; a thousand trivial
//! actions.
//!
//! `measure ENDPOINT` executes on the scheduler whose clients call there, and prints a line of figures: the medians, in
//! milliseconds, of what a client waits for and of what the worker says that the inputs took; and actions a second,
//! 64 at once. `measure ENDPOINT WORKERS` does so with a worker of its own on `NativeLink`'s `WorkerApi` that runs
//! nothing, and prints what the scheduler itself allows: actions a second where it answers at once, and where it first
//! reads the Action and then writes the result to the action cache, as a worker has to; and how long it takes to read
//! all blobs of a new T1 in batches, side by side, and to drop them: what the CAS itself allows of "cold".
//!
//! Every tree and every action is new, so that no cache of results answers, and cold is cold wherever it has run before.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use longshore_cas_store::io::Clock;
use longshore_proto::{protobuf, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::tree::{InputTree, T1};
use longshore_worker::connect::{Link, TlsOptions};
use longshore_worker::environment::MachineClock;
use longshore_worker::frontend::nativelink::{NativeLink, PINGS};
use longshore_worker::frontend::{SchedulerOptions, WorkSource as _};

/// Trees that the medians are of.
const ROUNDS: usize = 3;
/// Trivial actions.
const ACTIONS: usize = 1000;
/// How many of them at once.
const AT_ONCE: usize = 64;
/// Actions before the clock starts.
const WARM_UP: usize = 50;
/// How many batches are read at once where nothing is done with them.
const READS_AT_ONCE: usize = 16;
/// What a batch is counted to take a blob beside its bytes.
const BLOB_OVERHEAD_BYTES: u64 = 128;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let endpoint = arguments.next().context("usage: measure ENDPOINT [WORKERS]")?;
    let client = Client::connect(&endpoint).await?;
    // No two runs have anything in common.
    let seed = u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos())?;
    if let Some(workers) = arguments.next() {
        let at_once = idle(&workers, &client, seed, Duty::Nothing).await?;
        let with_calls = idle(&workers, &client, seed + 1, Duty::Calls).await?;
        let cold = reading(&client, seed).await?.as_millis();
        println!("cold {cold} actions/s {at_once:.0}, with a worker's calls {with_calls:.0}");
        return Ok(());
    }
    let [cold, again, changed] = trees(&client, seed).await?;
    let rate = trivial(&client, seed).await?;
    println!("cold {cold} again {again} changed {changed} actions/s {rate:.0}");
    Ok(())
}

/// What a client waited for, and what the inputs took of it.
struct Took {
    client: Vec<Duration>,
    inputs: Vec<Duration>,
}

impl std::fmt::Display for Took {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let median = |durations: &[Duration]| {
            let mut sorted = durations.to_vec();
            sorted.sort();
            sorted[sorted.len() / 2].as_millis()
        };
        write!(f, "{} ({})", median(&self.client), median(&self.inputs))
    }
}

/// New trees, the same again, and with one file changed.
async fn trees(client: &Client, seed: u64) -> Result<[Took; 3]> {
    let mut took = [(); 3].map(|()| Took { client: Vec::new(), inputs: Vec::new() });
    for round in 0..ROUNDS as u64 {
        let tree = T1.tree(seed + round);
        let changed = tree.clone().file("dir_0000/changed", seed.to_string());
        for (took, (tree, salt)) in
            took.iter_mut().zip([(&tree, "cold"), (&tree, "again"), (&changed, "changed")])
        {
            let action = trivial_action(&format!("{seed} {round} {salt}")).inputs(tree.clone());
            let blobs = action.build(client.function());
            for part in blobs.blobs.chunks(1_000) {
                client.upload(part).await?;
            }
            let started = Instant::now();
            let metadata = executed(client.execute(&blobs.digest, false).await?)?;
            took.client.push(started.elapsed());
            took.inputs.push(inputs(&metadata)?);
        }
    }
    Ok(took)
}

/// The median of how long it takes to read a new T1 and to drop it.
async fn reading(client: &Client, seed: u64) -> Result<Duration> {
    let mut took = Vec::new();
    let batch_bytes_max = batch_bytes_max(client).await?;
    for round in 0..ROUNDS as u64 {
        let action = trivial_action("read").inputs(T1.tree(seed ^ round << 32)).build(client.function());
        for part in action.blobs.chunks(1_000) {
            client.upload(part).await?;
        }
        let mut batches = vec![Vec::new()];
        let mut batch_bytes = 0;
        for (digest, _) in &action.blobs {
            let blob_bytes = digest.size_bytes() + BLOB_OVERHEAD_BYTES;
            if batch_bytes + blob_bytes > batch_bytes_max {
                batches.push(Vec::new());
                batch_bytes = 0;
            }
            batch_bytes += blob_bytes;
            batches.last_mut().expect("one at least").push(digest.to_wire());
        }
        let started = Instant::now();
        let read = |digests| read(client, digests);
        futures::stream::iter(batches).map(read).buffer_unordered(READS_AT_ONCE).try_collect::<()>().await?;
        took.push(started.elapsed());
    }
    took.sort();
    Ok(took[took.len() / 2])
}

/// Reads blobs by one batch, and drops them.
async fn read(client: &Client, digests: Vec<reapi::Digest>) -> Result<()> {
    let request = reapi::BatchReadBlobsRequest { digests, ..Default::default() };
    let read = client.cas().batch_read_blobs(request).await?.into_inner();
    let is_read = |blob: &reapi::batch_read_blobs_response::Response| {
        blob.status.as_ref().is_none_or(|status| status.code == 0)
    };
    ensure!(read.responses.iter().all(is_read), "a blob could not be read");
    Ok(())
}

/// What the server takes in one batch.
async fn batch_bytes_max(client: &Client) -> Result<u64> {
    let capabilities =
        client.capabilities().get_capabilities(reapi::GetCapabilitiesRequest::default()).await?;
    let announced =
        capabilities.into_inner().cache_capabilities.context("no CAS")?.max_batch_total_size_bytes;
    // Nothing announced is no limit but that of a gRPC message.
    let announced = u64::try_from(announced)?;
    Ok(if announced == 0 { 4 << 20 } else { announced }.min((4 << 20) - (64 << 10)))
}

/// Actions a second.
async fn trivial(client: &Client, seed: u64) -> Result<f64> {
    let mut digests = Vec::new();
    let mut blobs = Vec::new();
    for number in 0..WARM_UP + ACTIONS {
        let built =
            trivial_action(&format!("{seed} {number}")).inputs(InputTree::new()).build(client.function());
        digests.push(built.digest);
        blobs.extend(built.blobs);
    }
    for part in blobs.chunks(1_000) {
        client.upload(part).await?;
    }
    let run = |digests: Vec<_>| {
        let one = |digest| async move { executed(client.execute(&digest, false).await?).map(drop) };
        futures::stream::iter(digests).map(one).buffer_unordered(AT_ONCE).try_collect::<()>()
    };
    let measured = digests.split_off(WARM_UP);
    run(digests).await?;
    let started = Instant::now();
    run(measured).await?;
    Ok(f64::from(u32::try_from(ACTIONS)?) / started.elapsed().as_secs_f64())
}

fn trivial_action(salt: &str) -> TestAction {
    TestAction::new(["/bin/true"]).salt(salt.to_owned())
}

fn executed(response: reapi::ExecuteResponse) -> Result<reapi::ExecutedActionMetadata> {
    ensure!(!response.cached_result, "an action came from the cache");
    let result = response.result.with_context(|| format!("no result: {:?}", response.status))?;
    ensure!(result.exit_code == 0, "{:?}: {result:?}", response.status);
    result.execution_metadata.context("no metadata")
}

fn inputs(metadata: &reapi::ExecutedActionMetadata) -> Result<Duration> {
    let nanos = |time: Option<&protobuf::Timestamp>| {
        let time = time.context("no time")?;
        anyhow::Ok(i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos))
    };
    let from = nanos(metadata.input_fetch_start_timestamp.as_ref())?;
    let to = nanos(metadata.input_fetch_completed_timestamp.as_ref())?;
    Ok(Duration::from_nanos(u64::try_from(to - from)?))
}

/// What a worker does that runs nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Duty {
    Nothing,
    /// It reads the Action, and writes its result to the action cache.
    Calls,
}

/// Actions a second with a worker that runs nothing.
async fn idle(workers: &str, client: &Client, seed: u64, duty: Duty) -> Result<f64> {
    let source = join(workers)?;
    let answering: Vec<_> =
        (0..AT_ONCE).map(|_| tokio::spawn(answer(source.clone(), client.clone(), duty))).collect();
    let rate = trivial(client, seed).await?;
    source.drain();
    source.close().await;
    for task in answering {
        task.await??;
    }
    Ok(rate)
}

/// Registers a worker that runs nothing.
fn join(workers: &str) -> Result<Arc<NativeLink>> {
    let clock: Arc<dyn Clock> = Arc::new(MachineClock);
    Ok(NativeLink::start(SchedulerOptions {
        link: Link::open(workers, &TlsOptions::default(), None, PINGS, clock.clone())?,
        instance_name: String::new(),
        worker_name: "nothing".to_owned(),
        platform: Vec::new(),
        capacity: AT_ONCE,
        clock,
    }))
}

/// Answers what comes: it succeeded.
async fn answer(source: Arc<NativeLink>, client: Client, duty: Duty) -> Result<()> {
    while let Some(assignment) = source.next().await {
        let result = reapi::ActionResult::default();
        if duty == Duty::Calls {
            let action_digest = assignment.action_digest.to_wire();
            read(&client, vec![action_digest.clone()]).await?;
            let request = reapi::UpdateActionResultRequest {
                action_digest: Some(action_digest),
                action_result: Some(result.clone()),
                ..Default::default()
            };
            client.action_cache().update_action_result(request).await?;
        }
        let response = reapi::ExecuteResponse { result: Some(result), ..Default::default() };
        source.complete(assignment.operation, response).await;
    }
    Ok(())
}
