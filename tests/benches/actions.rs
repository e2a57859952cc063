//! A thousand distinct trivial actions over gRPC, one at a time and 64 at once: throughput, latency, footprint.
//!
//! `cargo bench -p longshore-tests --bench actions` prints two tables. The first has what a client waits for
//! (Execute until the result is there; uploads are done before) and what the worker says it took
//! (`worker_start_timestamp` to `worker_completed_timestamp`), with its parts: inputs, command, outputs. Above them
//! stands what nobody can do without: a call that does nothing, and the bare command, spawned and waited for. The
//! second table has what longshore and its helper processes hold before, at most, and after.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use longshore_cas_store::digest::Digest;
use longshore_proto::{protobuf, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::longshore::Longshore;
use longshore_tests::process::{Footprint, descendants};
use longshore_tests::tree::InputTree;

/// Actions a round.
const ACTIONS: usize = 1000;

/// How many at once, a round each.
const ROUNDS: [usize; 2] = [1, 64];

/// Actions before the clock starts: connections, caches and the allocator are warm then.
const WARM_UP: usize = 50;

/// How often the footprint is looked at under load.
const SAMPLE_EVERY: Duration = Duration::from_millis(20);

/// How long longshore is left alone before its footprint counts as "after".
const REST: Duration = Duration::from_secs(3);

/// The most memory that longshore and its helper may hold under this load.
const RESIDENT_BYTES_MAX: u64 = 64 << 20;

/// What an action does: one program, no more than a shell's own commands.
const SCRIPT: &str = "read line < in.txt; echo $line > out.txt";

/// How long one action took.
#[derive(Clone, Copy)]
struct Took {
    client: Duration,
    worker: Duration,
    inputs: Duration,
    command: Duration,
    outputs: Duration,
}

#[tokio::main]
async fn main() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    run(&client, &upload(&client, "warm-up", WARM_UP).await?, 1).await?;
    // The helpers that stay; actions come and go.
    let mut pids = descendants(longshore.pid())?;
    pids.push(longshore.pid());

    let before = footprint(&pids)?;
    println!("baselines, one at a time         p50     p99");
    println!("a call that does nothing  {}", nothing(&client).await?);
    println!("the bare command          {}", bare()?);
    println!();
    println!(
        "{ACTIONS} actions    actions/s   client p50     p99   worker p50     p99   inputs p50  command  outputs"
    );
    let watch = Watch::start(pids.clone());
    for at_once in ROUNDS {
        let actions = upload(&client, &format!("{at_once} at once"), ACTIONS).await?;
        let started = Instant::now();
        let took = run(&client, &actions, at_once).await?;
        print_round(at_once, started.elapsed(), &took);
    }
    let peak = watch.stop()?;
    tokio::time::sleep(REST).await;
    let after = footprint(&pids)?;

    println!("\nlongshore        resident   threads   descriptors");
    println!("(the goal for memory is {} KiB at most)", RESIDENT_BYTES_MAX / 1024);
    for (name, footprint) in [("before", before), ("peak", peak), ("after", after)] {
        let Footprint { resident_bytes, threads, descriptors, .. } = footprint;
        println!("{name:<12} {:>8} KiB {threads:>9} {descriptors:>13}", resident_bytes / 1024);
    }
    longshore.stop().await?;
    Ok(())
}

/// Uploads distinct actions, each with an input and an output, and returns their digests.
async fn upload(client: &Client, salt: &str, count: usize) -> Result<Vec<Digest>> {
    let mut digests = Vec::with_capacity(count);
    let mut blobs = Vec::new();
    for index in 0..count {
        let inputs = InputTree::new().file("in.txt", format!("{salt} {index}\n"));
        let action = TestAction::shell(SCRIPT).inputs(inputs).outputs(["out.txt"]);
        let built = action.build(client.function());
        digests.push(built.digest);
        blobs.extend(built.blobs);
    }
    client.upload(&blobs).await?;
    Ok(digests)
}

/// Executes every action, so many at once.
async fn run(client: &Client, actions: &[Digest], at_once: usize) -> Result<Vec<Took>> {
    let one = |digest: &Digest| {
        let digest = *digest;
        async move {
            let started = Instant::now();
            let response = client.execute(&digest, false).await?;
            let client = started.elapsed();
            ensure!(!response.cached_result, "an action came from the cache");
            let result = response.result.with_context(|| format!("no result: {:?}", response.status))?;
            ensure!(result.exit_code == 0 && result.output_files.len() == 1, "{result:?}");
            took(&result, client)
        }
    };
    let started: Vec<_> = actions.iter().map(one).collect();
    futures::stream::iter(started).buffer_unordered(at_once).try_collect().await
}

fn took(result: &reapi::ActionResult, client: Duration) -> Result<Took> {
    let metadata = result.execution_metadata.as_ref().context("no metadata")?;
    let worker =
        between(metadata.worker_start_timestamp.as_ref(), metadata.worker_completed_timestamp.as_ref())?;
    let inputs = between(
        metadata.input_fetch_start_timestamp.as_ref(),
        metadata.input_fetch_completed_timestamp.as_ref(),
    )?;
    let command = between(
        metadata.execution_start_timestamp.as_ref(),
        metadata.execution_completed_timestamp.as_ref(),
    )?;
    let outputs = between(
        metadata.output_upload_start_timestamp.as_ref(),
        metadata.output_upload_completed_timestamp.as_ref(),
    )?;
    Ok(Took { client, worker, inputs, command, outputs })
}

fn between(from: Option<&protobuf::Timestamp>, to: Option<&protobuf::Timestamp>) -> Result<Duration> {
    let nanos = |time: Option<&protobuf::Timestamp>| {
        let time = time.context("no timestamp")?;
        anyhow::Ok(i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos))
    };
    Ok(Duration::from_nanos(u64::try_from(nanos(to)? - nanos(from)?).context("ended before it began")?))
}

/// A call that makes the server do nothing.
async fn nothing(client: &Client) -> Result<Quantiles> {
    let mut capabilities = client.capabilities();
    let mut took = Vec::with_capacity(ACTIONS);
    for _ in 0..ACTIONS {
        let started = Instant::now();
        capabilities.get_capabilities(reapi::GetCapabilitiesRequest::default()).await?;
        took.push(started.elapsed());
    }
    Ok(Quantiles::of(took.into_iter()))
}

/// The command of an action, spawned by this process and waited for.
fn bare() -> Result<Quantiles> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("in.txt"), "bare\n")?;
    let mut took = Vec::with_capacity(ACTIONS);
    for _ in 0..ACTIONS {
        let started = Instant::now();
        let mut command = std::process::Command::new("/bin/sh");
        let status = command.args(["-c", SCRIPT]).current_dir(&folder).env_clear().status()?;
        ensure!(status.success(), "{status}");
        took.push(started.elapsed());
    }
    Ok(Quantiles::of(took.into_iter()))
}

fn print_round(at_once: usize, elapsed: Duration, took: &[Took]) {
    let per_second = f64::from(u32::try_from(took.len()).expect("a small number")) / elapsed.as_secs_f64();
    let client = Quantiles::of(took.iter().map(|took| took.client));
    let worker = Quantiles::of(took.iter().map(|took| took.worker));
    let parts: [fn(&Took) -> Duration; 3] = [|took| took.inputs, |took| took.command, |took| took.outputs];
    let [inputs, command, outputs] =
        parts.map(|part| Quantiles::of(took.iter().map(part)).p50.as_secs_f64() * 1000.0);
    let name = if at_once == 1 { "one at a time".to_owned() } else { format!("{at_once} at once") };
    println!(
        "{name:<14} {per_second:>10.0}   {client}   {worker}   {inputs:>7.2} ms {command:>8.2} {outputs:>8.2}"
    );
}

/// The middle and the slow end, in milliseconds.
struct Quantiles {
    p50: Duration,
    p99: Duration,
}

impl Quantiles {
    fn of(durations: impl Iterator<Item = Duration>) -> Self {
        let mut sorted: Vec<_> = durations.collect();
        sorted.sort();
        Self { p50: sorted[sorted.len() / 2], p99: sorted[sorted.len() * 99 / 100] }
    }
}

impl std::fmt::Display for Quantiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        write!(f, "{:>7.2} ms {:>7.2}", ms(self.p50), ms(self.p99))
    }
}

/// What these processes hold together.
fn footprint(pids: &[u32]) -> Result<Footprint> {
    let mut sum = Footprint::default();
    for pid in pids {
        let one = Footprint::of(*pid)?;
        sum.resident_bytes += one.resident_bytes;
        sum.threads += one.threads;
        sum.descriptors += one.descriptors;
    }
    Ok(sum)
}

/// Looks at the footprint again and again, and remembers the largest of each figure.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<Footprint>>,
}

impl Watch {
    fn start(pids: Vec<u32>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut peak = Footprint::default();
            while !stopped.load(Ordering::Relaxed) {
                let now = footprint(&pids)?;
                peak.resident_bytes = peak.resident_bytes.max(now.resident_bytes);
                peak.threads = peak.threads.max(now.threads);
                peak.descriptors = peak.descriptors.max(now.descriptors);
                std::thread::sleep(SAMPLE_EVERY);
            }
            Ok(peak)
        });
        Self { stop, thread }
    }

    fn stop(self) -> Result<Footprint> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watch does not panic")
    }
}
