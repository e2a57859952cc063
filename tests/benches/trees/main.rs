//! Trees: constructing them from local blobs, and materializing cached ones for an action, against what others do.
//!
//! `cargo bench -p longshore-tests --bench trees` prints, for T1, T2 and T3, medians over interleaved rounds of
//! longshore and of three baselines over the same blobs, directories, threads and file system: (a) the same farm
//! with one `spawn_blocking` a call on a tokio runtime as it comes, directories side by side, (b) `cp -al`, (c) the
//! bare fork-join loop of `mkdirat`, `openat` and `linkat`; and (a) with as few blocking threads as (c) has, without a
//! goal. A tree is constructed by a cache that has never seen it, whose messages are read from the store, and again by
//! one that has. Then 16 callers of one uncached T1 against one construction and 16 materializations of (c).
//!
//! - `LONGSHORE_BENCH_DIR`: where to work; otherwise a journaled ext4 image for root, and /dev/shm for everybody
//!   else ([`longshore_tests::place`]). Without a journal, ext4 measures its inode allocator.
//! - `LONGSHORE_BENCH_ROUNDS`: rounds, 10 by default.
//! - `LONGSHORE_BENCH_TREES`: a comma-separated choice of `T1,T2,T3`.

mod bare;
mod kit;
mod rivals;
mod shape;
mod table;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use longshore_cas_store::digest::Digest;
use longshore_cas_store::tree_cache::TreePin;
use longshore_worker::materialize::Materializer as _;
use tokio::runtime::Handle;

use kit::{Bench, get, timed};
use shape::{SHAPES, Shape};
use table::Table;

/// Callers of one uncached tree.
const CALLERS: usize = 16;

/// The goals, as ratios to a baseline.
const BARE_RATIO_MAX: f64 = 1.3;
const HOPS_RATIO_MAX: f64 = 0.5;
const COPY_RATIO_MAX: f64 = 1.0;
const CALLERS_RATIO_MAX: f64 = 1.2;

/// Baseline (a), and the same with fewer threads.
const HOPS: &str = "(a) a hop a call";
const FEW_HOPS: &str = "    the same, as many threads as (c)";

fn main() -> Result<()> {
    let (parent, reason) = longshore_tests::place::choose();
    let rounds = std::env::var("LONGSHORE_BENCH_ROUNDS").map_or(Ok(10), |text| text.parse())?;
    let chosen = std::env::var("LONGSHORE_BENCH_TREES").unwrap_or_else(|_| "T1,T2,T3".to_owned());
    let shapes: Vec<_> =
        SHAPES.iter().filter(|shape| chosen.split(',').any(|name| name == shape.name)).collect();
    let threads = std::thread::available_parallelism()?.get();
    let few_threads =
        tokio::runtime::Builder::new_multi_thread().max_blocking_threads(threads).enable_all().build()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let bench = Bench::open(&parent, threads, few_threads.handle().clone()).await?;
        println!("{rounds} rounds on {}: {reason}; {threads} threads", kit::file_system(&parent)?);
        // Dropped, the run takes its folder with it.
        tokio::select! {
            outcome = measure(&bench, &shapes, rounds) => outcome,
            signal = tokio::signal::ctrl_c() => signal.map_err(Into::into).and_then(|()| bail!("interrupted")),
        }
    })
}

async fn measure(bench: &Bench, shapes: &[&Shape], rounds: usize) -> Result<()> {
    let mut missed = Vec::new();
    for shape in shapes {
        missed.extend(compare(bench, shape, rounds).await?);
    }
    match missed.as_slice() {
        [] => println!("\nevery goal is met"),
        missed => println!("\nmissed: {}", missed.join("; ")),
    }
    Ok(())
}

/// Measures one tree; what missed its goal is returned.
async fn compare(bench: &Bench, shape: &Shape, rounds: usize) -> Result<Vec<String>> {
    let root = bench.upload(shape).await.context("uploading")?;
    // Variants of executables are made once; here they are there before the clock starts.
    let pin = get(&bench.cache, root).await?;
    let plan = Arc::new(bare::Plan::of(pin.tree(), &bench.path)?);
    drop(pin);
    bench.settle().await?;
    let mut tables = vec![constructions(bench, shape, root, &plan, rounds).await?];
    tables.push(reconstructions(bench, shape, root, &plan, rounds).await?);
    let pin = get(&bench.cache, root).await?;
    tables.push(materializations(bench, shape, &pin, &plan, rounds).await?);
    drop(pin);
    bench.settle().await?;
    if shape.name == "T1" {
        tables.push(many_callers(bench, root, &plan, rounds).await?);
    }
    Ok(tables.iter().flat_map(Table::missed).collect())
}

async fn constructions(
    bench: &Bench,
    shape: &Shape,
    root: Digest,
    plan: &Arc<bare::Plan>,
    rounds: usize,
) -> Result<Table> {
    let mut table = Table::new(format!("constructing {}", shape.name));
    let model = get(&bench.cache, root).await?.path().to_owned();
    bench.settle().await?;
    ensure!(!model.exists(), "an unused tree stays");
    for _ in 0..rounds {
        // One that has seen the tree before remembers its messages.
        let cache = bench.fresh_cache().await?;
        let (took, pin) = timed(get(&cache, root)).await;
        drop(pin?);
        table.add("longshore", took);
        bench.settle().await?;
        drop(cache);
        table.add("(c) bare fork-join", bench.bare(plan, bare::Source::Store).await?);
        table.add(HOPS, bench.hops(plan, &Handle::current()).await?);
        table.add(FEW_HOPS, bench.hops(plan, &bench.few_threads).await?);
        let pin = get(&bench.cache, root).await?;
        table.add("(b) cp -al", bench.copy(pin.path()).await?);
        drop(pin);
        bench.settle().await?;
    }
    goals(&mut table);
    table.print();
    Ok(table)
}

/// Of a tree that was evicted, or that differs little from one seen lately.
async fn reconstructions(
    bench: &Bench,
    shape: &Shape,
    root: Digest,
    plan: &Arc<bare::Plan>,
    rounds: usize,
) -> Result<Table> {
    let mut table = Table::new(format!("constructing {} again", shape.name));
    for _ in 0..rounds {
        let (took, pin) = timed(get(&bench.cache, root)).await;
        drop(pin?);
        table.add("longshore", took);
        bench.settle().await?;
        table.add("(c) bare fork-join", bench.bare(plan, bare::Source::Store).await?);
    }
    table.goal("(c) bare fork-join", BARE_RATIO_MAX);
    table.print();
    Ok(table)
}

async fn materializations(
    bench: &Bench,
    shape: &Shape,
    pin: &TreePin,
    plan: &Arc<bare::Plan>,
    rounds: usize,
) -> Result<Table> {
    let mut table = Table::new(format!("materializing a cached {}", shape.name));
    for _ in 0..rounds {
        let (took, input_root) = timed(bench.materializer.materialize(pin.clone(), Vec::new())).await;
        drop(input_root?);
        table.add("longshore", took);
        bench.settle().await?;
        let source = bare::Source::Tree(pin.path().to_owned());
        table.add("(c) bare fork-join", bench.bare(plan, source).await?);
        table.add(HOPS, bench.hops(plan, &Handle::current()).await?);
        table.add(FEW_HOPS, bench.hops(plan, &bench.few_threads).await?);
        table.add("(b) cp -al", bench.copy(pin.path()).await?);
    }
    goals(&mut table);
    table.print();
    Ok(table)
}

fn goals(table: &mut Table) {
    table.goal("(c) bare fork-join", BARE_RATIO_MAX);
    table.goal(HOPS, HOPS_RATIO_MAX);
    table.goal("(b) cp -al", COPY_RATIO_MAX);
}

async fn many_callers(bench: &Bench, root: Digest, plan: &Arc<bare::Plan>, rounds: usize) -> Result<Table> {
    let mut table = Table::new(format!("{CALLERS} callers of one uncached T1"));
    let baseline = "(c) 1 construction and 16 materializations";
    for _ in 0..rounds {
        let before = bench.cache.stats();
        let callers = (0..CALLERS).map(|_| {
            let (cache, materializer) = (bench.cache.clone(), bench.materializer.clone());
            tokio::spawn(async move {
                let pin = get(&cache, root).await?;
                Ok::<_, anyhow::Error>(materializer.materialize(pin, Vec::new()).await?)
            })
        });
        let (took, roots) = timed(futures::future::join_all(callers)).await;
        for root in roots {
            drop(root??);
        }
        table.add("longshore", took);
        ensure!(bench.cache.stats().constructions == before.constructions + 1, "more than one construction");
        bench.settle().await?;

        let pin = get(&bench.cache, root).await?;
        let mut took = bench.bare(plan, bare::Source::Store).await?;
        took += bench.bare_many(plan, bare::Source::Tree(pin.path().to_owned()), CALLERS).await?;
        drop(pin);
        table.add(baseline, took);
        bench.settle().await?;
    }
    table.goal(baseline, CALLERS_RATIO_MAX);
    table.print();
    Ok(table)
}

/// A duration as the tables show it.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
