//! Clients that go without a word: in the middle of uploads, of executions, of everything.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::StreamExt as _;
use longshore_cas_store::digest::DigestFunction;
use longshore_proto::bytestream::WriteRequest;
use longshore_proto::longrunning::{self, Operation};
use longshore_tests::action::{ActionBlobs, TestAction};
use longshore_tests::client::{Client, finished};
use longshore_tests::longshore::{Launch, Longshore};
use longshore_tests::tree::T3;
use tonic::{Code, Streaming};

use super::bundle::Bundle;
use super::figures::{Bounds, Figures};
use super::holdings::{Holdings, Slack};
use super::replaying::{Replay, Replayed};
use super::store;

/// Inputs of each action.
const INPUTS: usize = 40;
const ACTIONS: usize = 32;
/// Clients at once, beside a replay that nobody disturbs.
const LANES: usize = 16;
/// The size of an upload that breaks off.
const LARGE_BYTES: usize = 4 << 20;
const CHUNK_BYTES: usize = 64 << 10;
/// Beginnings of uploads that longshore keeps for clients that come back, at most; each is an open file.
const KEPT_MAX: u64 = 256;
/// How often an action is uploaded that the store has lost again before it was started.
const SUPPLIES_MAX: u32 = 4;
/// The store is full after a while: what is left of clients must not keep it from working.
const STORE_SIZE: &str = "256MiB";

pub(crate) async fn run(bounds: Bounds, figures: &mut Figures) -> Result<()> {
    let bundle = Bundle::record(ACTIONS, INPUTS).await?;
    let flags = ["--jobs", "16", "--max-size", STORE_SIZE].map(str::to_owned).into();
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    // Everything is uploaded before the first one vanishes.
    Replay::start(&bundle.path(), longshore.uri(), &["--jobs", "8"])?.ended().await?.is_all_well()?;
    // What is there from the first of each kind on is there.
    disturb(&longshore, &bundle, Duration::from_secs(3)).await?;
    let before = Holdings::settled(&longshore).await?;
    let (vanished, replayed) = disturb(&longshore, &bundle, Duration::from_secs(bounds.count.into())).await?;
    figures.add("clients_that_went", vanished as u64);
    figures.replayed(&replayed)?;
    ensure!(vanished > 0 && replayed.number("executions")? > 0);
    let after = Holdings::settled(&longshore).await?;
    // Those of clients that went are as many as are remembered.
    figures.held_flat(before, after, Slack { executions: u64::MAX, uploads: KEPT_MAX })?;
    // The folder would go with the last one who has it.
    let (home, root) = (longshore.home(), longshore.root());
    ensure!(longshore.stop().await?.success());
    figures.add("blobs_hashed_again", store::rehash(&root)? as u64);
    drop(home);
    Ok(())
}

/// Lets clients vanish for a while, beside a replay; how many did, and what came of the replay.
async fn disturb(longshore: &Longshore, bundle: &Bundle, time: Duration) -> Result<(usize, Replayed)> {
    let until = Instant::now() + time;
    let replay = Replay::start(&bundle.path(), longshore.uri(), &["--jobs", "8", "--repeat", "1000000"])?;
    let lanes = (0..LANES).map(|lane| async move {
        let mut vanished = 0;
        while Instant::now() < until {
            vanish(longshore, bundle, lane + vanished).await?;
            vanished += 1;
        }
        anyhow::Ok(vanished)
    });
    let vanished = futures::future::try_join_all(lanes).await?.iter().sum();
    replay.interrupt()?;
    let replayed = replay.ended().await?;
    replayed.is_all_well()?;
    Ok((vanished, replayed))
}

/// One client that goes, in a way that depends on `index`.
async fn vanish(longshore: &Longshore, bundle: &Bundle, index: usize) -> Result<()> {
    let unique = uuid::Uuid::new_v4();
    let client = longshore.client().await?;
    match index % 5 {
        0 => broken_upload(&client).await,
        1 => {
            let action = TestAction::shell("sleep 1000").salt(unique.as_bytes().to_vec());
            let built = action.inputs(T3.tree(index as u64)).build(DigestFunction::Sha256);
            let mut stream = start(&client, &built).await?;
            let name = stream.message().await?.map(|operation| operation.name).unwrap_or_default();
            drop(stream);
            // Nobody waits for it any more; it would hold its slot for as long as it sleeps.
            client.operations().cancel_operation(longrunning::CancelOperationRequest { name }).await?;
            Ok(())
        }
        2 => {
            let action = TestAction::shell("head -c 100000 /dev/urandom > out; sleep 0.05").outputs(["out"]);
            let built = action.salt(unique.as_bytes().to_vec()).build(DigestFunction::Sha256);
            drop(start(&client, &built).await?);
            Ok(())
        }
        3 => {
            let action =
                TestAction::shell("setsid sleep 1000 & sleep 1000").timeout(Duration::from_millis(50));
            let built = action.salt(unique.as_bytes().to_vec()).build(DigestFunction::Sha256);
            let response = finished(start(&client, &built).await?).await?;
            // DEADLINE_EXCEEDED of google.rpc.Code.
            ensure!(response.status.as_ref().is_some_and(|status| status.code == 4), "{response:?}");
            Ok(())
        }
        _ => {
            let replay = Replay::start(&bundle.path(), longshore.uri(), &["--jobs", "8"])?;
            tokio::time::sleep(Duration::from_millis(u64::from(unique.as_bytes()[0]))).await;
            drop(replay);
            Ok(())
        }
    }
}

/// Uploads an action and starts it. On a store that is full of what others upload, that may take more than one attempt, as
/// it does for every client.
async fn start(client: &Client, action: &ActionBlobs) -> Result<Streaming<Operation>> {
    for _ in 1..SUPPLIES_MAX {
        client.upload(&action.blobs).await?;
        match client.start(&action.digest, true).await {
            Err(status) if status.code() == Code::FailedPrecondition => {}
            started => return Ok(started?),
        }
    }
    client.upload(&action.blobs).await?;
    Ok(client.start(&action.digest, true).await?)
}

/// Half a blob, and no more.
async fn broken_upload(client: &Client) -> Result<()> {
    let unique = uuid::Uuid::new_v4();
    let data: Vec<u8> = unique.as_bytes().iter().copied().cycle().take(LARGE_BYTES).collect();
    let digest = DigestFunction::Sha256.digest(&data);
    let name = client.write_name(&digest);
    let chunks = data.chunks(CHUNK_BYTES).take(LARGE_BYTES / CHUNK_BYTES / 2).enumerate();
    let requests: Vec<_> = chunks
        .map(|(index, chunk)| WriteRequest {
            resource_name: if index == 0 { name.clone() } else { String::new() },
            write_offset: i64::try_from(index * CHUNK_BYTES).expect("it fits"),
            finish_write: false,
            data: chunk.to_vec(),
        })
        .collect();
    let endless = futures::stream::iter(requests).chain(futures::stream::pending());
    let mut byte_stream = client.byte_stream();
    let write = byte_stream.write(endless);
    // The server waits for more: so nothing comes of it until the client goes.
    drop(tokio::time::timeout(Duration::from_millis(100), write).await);
    Ok(())
}
