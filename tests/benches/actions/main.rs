//! A thousand distinct trivial actions over gRPC, one at a time and 64 at once: throughput, latency, footprint.
//!
//! `cargo bench -p longshore-tests --bench actions` prints, in this order:
//! - what nobody can do without: a call that does nothing, and the bare command, spawned and waited for;
//! - what a client waits for (Execute until the result is there; uploads are done before), and what the worker says
//!   it took (`worker_start_timestamp` to `worker_completed_timestamp`), with its parts: inputs, command, outputs;
//! - what longshore, its helper and its keepers hold before, at most, and after;
//! - what passes between an action's assignment and its exec when its input tree is cached.
//!
//! It fails if a stated bound is broken, and says which goals are missed. `LONGSHORE_BENCH_DIR` says where to work;
//! otherwise that is a journaled ext4 image for root, and /dev/shm for everybody else ([`longshore_tests::place`]).
//! Without a journal, ext4 measures its inode allocator.

mod baselines;
mod footprint;
mod load;
mod quantiles;
mod start;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use longshore_tests::client::Client;
use longshore_tests::longshore::{Launch, Longshore, new_home_in};
use longshore_tests::place;

use self::footprint::{Held, Watch};
use self::load::{Kind, Took};
use self::quantiles::Quantiles;

/// Actions a round.
const ACTIONS: usize = 1000;
/// How many at once, a round each.
const AT_ONCE: [usize; 2] = [1, 64];
/// Actions before the clock starts: connections, caches and the allocator are warm then.
const WARM_UP: usize = 50;
/// Connections that are open meanwhile, and idle.
const CONNECTIONS: usize = 100;
/// How long longshore is left alone before its footprint counts as "after": its keepers wait a while for more.
const REST: Duration = Duration::from_secs(8);

/// The goals, one action at a time.
const CLIENT_P50_MAX: Duration = Duration::from_millis(4);
const WORKER_P50_MAX: Duration = Duration::from_millis(2);
/// The most memory that longshore and what belongs to it may hold under this load.
const RESIDENT_BYTES_MAX: u64 = 64 << 20;
/// The most open files of longshore that one running action accounts for.
const FILES_AN_ACTION_MAX: u64 = 16;

fn main() -> Result<()> {
    let (parent, reason) = place::choose();
    println!("in {}: {reason}", parent.display());
    tokio::runtime::Runtime::new()?.block_on(measure(&parent))
}

async fn measure(parent: &Path) -> Result<()> {
    let home = Arc::new(new_home_in(parent)?);
    let longshore = Longshore::launch(Launch { home: Some(home.clone()), ..Launch::default() }).await?;
    let client = longshore.client().await?;
    load::run(&client, &load::upload(&client, Kind::Shell, "warm-up", WARM_UP).await?, 1).await?;

    println!("\nbaselines, one at a time         p50     p99");
    println!("a call that does nothing  {}", baselines::nothing(&client, ACTIONS).await?);
    for kind in Kind::ALL {
        println!("bare: {:<20}{}", kind.name(), baselines::bare(home.path(), kind, ACTIONS)?);
    }

    let before = Held::by(longshore.pid())?;
    let watch = Watch::start(longshore.pid());
    let idle = connect(&longshore).await?;
    let mut missed = rounds(&client).await?;
    let peak = watch.stop()?;
    drop(idle);
    tokio::time::sleep(REST).await;
    let after = Held::by(longshore.pid())?;
    if peak.resident_bytes > RESIDENT_BYTES_MAX {
        missed.push("memory".to_owned());
    }

    footprint::print_table([("before", before), ("peak", peak), ("after", after)]);
    let threads_max = number_before(&longshore.output(), " threads")?;
    let jobs = number_before(&longshore.output(), " at once")?;
    let files_max = before.files + CONNECTIONS as u64 + jobs * FILES_AN_ACTION_MAX;
    println!(
        "bounds: {threads_max} threads; {files_max} files with {CONNECTIONS} connections and {jobs} actions"
    );
    println!("the goal for memory is {} KiB at most", RESIDENT_BYTES_MAX / 1024);
    match missed.as_slice() {
        [] => println!("\nevery goal is met"),
        missed => println!("\nmissed: {}", missed.join("; ")),
    }
    start::print(&client).await?;
    longshore.stop().await?;
    ensure!(peak.threads <= threads_max, "{} threads, at most {threads_max}", peak.threads);
    ensure!(peak.files <= files_max, "{} open files, at most {files_max}", peak.files);
    ensure!(after.files <= before.files, "{} files were open before, {} after", before.files, after.files);
    Ok(())
}

/// Every kind of action, every way; the goals that were missed.
async fn rounds(client: &Client) -> Result<Vec<String>> {
    println!(
        "\n{ACTIONS} actions                    actions/s   client p50     p99   worker p50     p99   \
         inputs p50  command  outputs"
    );
    let mut missed = Vec::new();
    for kind in Kind::ALL {
        for at_once in AT_ONCE {
            let actions = load::upload(client, kind, &format!("{at_once} at once"), ACTIONS).await?;
            let started = Instant::now();
            let took = load::run(client, &actions, at_once).await?;
            let [client, worker] = print_round(kind, at_once, started.elapsed(), &took);
            if at_once == 1 && client.p50 >= CLIENT_P50_MAX {
                missed.push(format!("{} at the client", kind.name()));
            }
            if at_once == 1 && worker.p50 >= WORKER_P50_MAX {
                missed.push(format!("{} in the worker", kind.name()));
            }
        }
    }
    Ok(missed)
}

/// Connections that have been used once.
async fn connect(longshore: &Longshore) -> Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let client = longshore.client().await?;
        baselines::nothing(&client, 1).await?;
        clients.push(client);
    }
    Ok(clients)
}

fn print_round(kind: Kind, at_once: usize, elapsed: Duration, took: &[Took]) -> [Quantiles; 2] {
    let per_second = f64::from(u32::try_from(took.len()).expect("a small number")) / elapsed.as_secs_f64();
    let [client, worker, inputs, command, outputs] = [
        |took: &Took| took.client,
        |took: &Took| took.worker,
        |took: &Took| took.inputs,
        |took: &Took| took.command,
        |took: &Took| took.outputs,
    ]
    .map(|part| Quantiles::of(took.iter().map(part)));
    let name = if at_once == 1 { "one at a time".to_owned() } else { format!("{at_once} at once") };
    let ms = |quantiles: &Quantiles| quantiles.p50.as_secs_f64() * 1000.0;
    println!(
        "{:<17} {name:<14} {per_second:>7.0}   {client}   {worker}   {:>7.2} ms {:>8.2} {:>8.2}",
        kind.name(),
        ms(&inputs),
        ms(&command),
        ms(&outputs)
    );
    [client, worker]
}

/// The number that stands before `word` in what longshore printed at its start.
fn number_before(printed: &str, word: &str) -> Result<u64> {
    let (before, _) = printed.split_once(word).with_context(|| format!("no{word} in:\n{printed}"))?;
    let number = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    number.parse().with_context(|| format!("no number before{word}"))
}
