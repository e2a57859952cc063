//! The cold path: trees whose every byte is in somebody else's CAS, a longshore behind a way of 0, 5 and 50 ms.
//!
//! `cargo bench -p longshore-tests --bench cold` prints, for T1 and T3 and each round trip, medians over interleaved
//! rounds of: all blobs of the tree into the store by longshore's client; one `ByteStream.Read` a blob by as many
//! requests in flight; one blob of as many bytes down one stream; that, and the blobs of the tree stored after it, since files cost
//! what they cost however their bytes came; and, beside the comparison, the whole way from
//! nothing to a tree that is ready. Every contender begins with an empty store on the same file system, verifies
//! what comes, and knows all digests beforehand, except the last, which knows the root's.
//!
//! - `LONGSHORE_BENCH_DIR`: where to work; otherwise a temporary folder.
//! - `LONGSHORE_BENCH_ROUNDS`: rounds, 5 by default.
//! - `LONGSHORE_BENCH_TREES`: a comma-separated choice of `T1,T3`.

#[path = "../trees/shape.rs"]
mod shape;
#[path = "../trees/table.rs"]
mod table;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_tests::client::Client;
use longshore_tests::cold::ColdWorker;
use longshore_tests::longshore::Longshore;
use longshore_tests::proxy::DelayingProxy;
use longshore_tests::tree::Blob;
use longshore_worker::remote::RemoteOptions;

use shape::{SHAPES, Shape};
use table::Table;

/// Requests in flight, of every contender.
const REQUESTS_IN_FLIGHT: usize = 8;
/// Blobs that are stored at once where no client brings them: as many as a batch has.
const STORED_AT_ONCE: usize = 1_000;
const ROUND_TRIPS_MS: [u64; 3] = [0, 5, 50];

/// The goals at 5 ms for T1, as ratios to a baseline.
const BLOB_BY_BLOB_RATIO_MAX: f64 = 1.0 / 20.0;
const ONE_STREAM_RATIO_MAX: f64 = 1.5;

const OURS: &str = "longshore: blobs into the store";
const BLOB_BY_BLOB: &str = "one ByteStream.Read a blob";
const ONE_STREAM: &str = "the same bytes down one stream";
const STORED: &str = "one stream, then the blobs into the store";
const READY: &str = "longshore: the tree is ready";

/// What the server has of one tree.
struct Uploaded {
    name: &'static str,
    root: Digest,
    blobs: Vec<Digest>,
    contents: Vec<Blob>,
    /// One blob of as many bytes.
    whole: Digest,
}

fn main() -> Result<()> {
    let parent = std::env::var_os("LONGSHORE_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let rounds: usize = std::env::var("LONGSHORE_BENCH_ROUNDS").map_or(Ok(5), |text| text.parse())?;
    let chosen = std::env::var("LONGSHORE_BENCH_TREES").unwrap_or_else(|_| "T1,T3".to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = Longshore::start().await?;
        let client = server.client().await?;
        let target = server.uri().trim_start_matches("http://");
        let mut missed = Vec::new();
        println!("{rounds} rounds, {REQUESTS_IN_FLIGHT} requests in flight");
        for shape in SHAPES.iter().filter(|shape| chosen.split(',').any(|name| name == shape.name)) {
            let uploaded = upload(&client, shape).await.context("uploading")?;
            for round_trip_ms in ROUND_TRIPS_MS {
                let proxy = DelayingProxy::start(target, Duration::from_millis(round_trip_ms)).await?;
                let bench = Bench { parent: &parent, address: proxy.address() };
                missed.extend(compare(&bench, &uploaded, round_trip_ms, rounds).await?);
            }
        }
        match missed.as_slice() {
            [] => println!("\nevery goal is met"),
            missed => println!("\nmissed: {}", missed.join("; ")),
        }
        Ok(())
    })
}

async fn upload(client: &Client, shape: &Shape) -> Result<Uploaded> {
    let mut blobs = Vec::new();
    let root = shape.blobs(&mut |digest, data| blobs.push((digest, Bytes::from(data))));
    client.upload(&blobs).await?;
    let whole: Vec<u8> = blobs.iter().flat_map(|(_, data)| data.iter().copied()).collect();
    let whole = client.put(whole).await?;
    let digests = blobs.iter().map(|(digest, _)| *digest).collect();
    Ok(Uploaded { name: shape.name, root, blobs: digests, contents: blobs, whole })
}

/// Measures one tree over one way; what missed its goal is returned.
async fn compare(
    bench: &Bench<'_>,
    tree: &Uploaded,
    round_trip_ms: u64,
    rounds: usize,
) -> Result<Vec<String>> {
    let bytes = tree.whole.size_bytes();
    let title =
        format!("{} ({} blobs, {bytes} bytes), {round_trip_ms} ms round trip", tree.name, tree.blobs.len());
    let mut table = Table::new(title);
    for _ in 0..rounds {
        table.add(OURS, bench.fetch(&tree.blobs).await?);
        table.add(BLOB_BY_BLOB, bench.blob_by_blob(&tree.blobs).await?);
        table.add(ONE_STREAM, bench.fetch(&[tree.whole]).await?);
        table.add(STORED, bench.stream_and_store(tree).await?);
        table.add(READY, bench.ready(tree.root).await?);
    }
    if tree.name == "T1" && round_trip_ms == 5 {
        table.goal(BLOB_BY_BLOB, BLOB_BY_BLOB_RATIO_MAX);
        table.goal(ONE_STREAM, ONE_STREAM_RATIO_MAX);
    }
    table.print();
    Ok(table.missed())
}

/// Where to work, and the far end of the way.
struct Bench<'b> {
    parent: &'b std::path::Path,
    address: String,
}

impl Bench<'_> {
    /// A worker with an empty store, whose connection stands.
    async fn worker(&self) -> Result<ColdWorker> {
        let mut options = RemoteOptions::new(format!("grpc://{}", self.address));
        options.requests_in_flight_max = REQUESTS_IN_FLIGHT;
        let worker = ColdWorker::real(&options, self.parent).await?;
        let nothing = DigestFunction::Sha256.digest(b"is not there");
        worker.remote.find_missing(&[nothing]).await?;
        Ok(worker)
    }

    /// Times our client.
    async fn fetch(&self, digests: &[Digest]) -> Result<Duration> {
        let worker = self.worker().await?;
        let started = Instant::now();
        let outcomes = worker.fetch(digests).await;
        let took = started.elapsed();
        for outcome in outcomes {
            outcome?;
        }
        Ok(took)
    }

    /// Times one read a blob.
    async fn blob_by_blob(&self, digests: &[Digest]) -> Result<Duration> {
        let worker = self.worker().await?;
        let client = Client::connect(&format!("http://{}", self.address)).await?;
        let started = Instant::now();
        let reads = digests.iter().map(|digest| {
            let (client, store) = (client.clone(), worker.store.clone());
            async move {
                // The store verifies, as it does for us.
                let data = client.read_unverified(digest).await?;
                store.put(*digest, data).await?;
                Ok::<_, anyhow::Error>(())
            }
        });
        let reads = futures::stream::iter(reads).buffer_unordered(REQUESTS_IN_FLIGHT);
        reads.try_collect::<()>().await?;
        Ok(started.elapsed())
    }

    /// Times one stream, and storing as many blobs as the tree has.
    async fn stream_and_store(&self, tree: &Uploaded) -> Result<Duration> {
        let worker = self.worker().await?;
        let started = Instant::now();
        worker.fetch_one(tree.whole).await?;
        for blobs in tree.contents.chunks(STORED_AT_ONCE) {
            for outcome in worker.store.put_many(blobs.to_vec()).await {
                outcome?;
            }
        }
        Ok(started.elapsed())
    }

    /// Times the whole way to a tree.
    async fn ready(&self, root: Digest) -> Result<Duration> {
        let worker = self.worker().await?;
        let started = Instant::now();
        let pin = worker.get(root).await?;
        let took = started.elapsed();
        ensure!(pin.path().is_dir(), "a tree is a directory");
        Ok(took)
    }
}

/// A duration as the tables show it.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
