//! Clients that ask and do not read the answers.

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::Digest;
use longshore_proto::{bytestream, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::{Client, finished};
use longshore_tests::longshore::new_home;
use longshore_tests::process::fifo;
use tokio::task::spawn_blocking;

use super::wire::{BATCH_READ, READ, WAIT_EXECUTION, Wire};
use super::{CONNECTION_BYTES, OWN_BYTES, Target};
use crate::result_of;

/// Answers that nobody reads: without a bound each would wait in memory.
const UNREAD: usize = 1_000;
/// What a stream costs that has nothing to say.
const STREAM_BYTES: u64 = 64 << 10;

async fn blob(client: &Client, bytes: usize) -> Result<Digest> {
    // Not a run of equal bytes, which would be small in any form.
    let content: Vec<u8> = (0..bytes / 4)
        .flat_map(|n| u32::try_from(n).unwrap_or(0).wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    client.put(content).await
}

// Blobs and batches that nobody reads wait in the share of their connection.
#[tokio::test]
async fn answers_that_nobody_reads_are_bounded() -> Result<()> {
    let target = Target::start().await?;
    let client = target.longshore.client().await?;
    let (large, small) = (blob(&client, 16 << 20).await?, blob(&client, 3 << 20).await?);
    let read = bytestream::ReadRequest { resource_name: client.read_name(&large), ..Default::default() };
    let compressed = bytestream::ReadRequest {
        resource_name: client.read_name(&large).replace("blobs/", "compressed-blobs/zstd/"),
        ..Default::default()
    };
    let batch = reapi::BatchReadBlobsRequest { digests: vec![small.to_wire()], ..Default::default() };
    let mut attackers = Vec::new();
    for kind in 0..3 {
        let mut wire = Wire::connect(&target.longshore).await?;
        wire.stop_reading();
        for _ in 0..UNREAD / 4 {
            let call = match kind {
                0 => wire.call(READ, &read).await?,
                1 => wire.call(READ, &compressed).await?,
                _ => wire.call(BATCH_READ, &batch).await?,
            };
            attackers.push(call);
        }
        target.serves_another().await?;
        // What one stream does is seen only when all of them wait.
        target.settled().await?;
        attackers.clear();
        drop(wire);
    }
    target.holds_at_most(OWN_BYTES + CONNECTION_BYTES).await?;
    ensure!(client.read(&small).await?.len() == 3 << 20);
    drop(client);
    target.leaves_nothing().await
}

// A client that opens the windows of all its streams and reads none of them holds no file for each.
#[tokio::test]
async fn streams_that_nobody_reads_are_bounded() -> Result<()> {
    let target = Target::start().await?;
    let client = target.longshore.client().await?;
    let large = blob(&client, 16 << 20).await?;
    let read = bytestream::ReadRequest { resource_name: client.read_name(&large), ..Default::default() };
    let mut streams = Vec::new();
    // With windows of its own, as any gRPC client: the answers begin, and then nothing takes them.
    for _ in 0..200 {
        streams.push(client.byte_stream().read(read.clone()).await?.into_inner());
    }
    target.serves_another().await?;
    target.holds_at_most(OWN_BYTES + CONNECTION_BYTES).await?;
    let held = longshore_tests::process::Footprint::of(target.longshore.pid())?;
    ensure!(held.descriptors < target.before.descriptors + 100, "{held:?}");
    // Whoever reads after all gets everything.
    let mut stream = streams.swap_remove(100);
    drop(streams);
    let mut bytes = 0;
    while let Some(part) = stream.message().await? {
        bytes += part.data.len();
    }
    ensure!(bytes == 16 << 20, "{bytes}");
    drop((stream, client));
    target.leaves_nothing().await
}

/// An action that runs until somebody writes to a pipe, its output, and the name of its operation.
async fn waiting_action(
    client: &Client,
    go: &std::path::Path,
    script: &str,
) -> Result<(tonic::Streaming<longshore_proto::longrunning::Operation>, String)> {
    fifo(go)?;
    let script = format!("read line < {}; {script}", go.display());
    let blobs = TestAction::shell(&script).build(client.function());
    client.upload(&blobs.blobs).await?;
    let request = reapi::ExecuteRequest {
        action_digest: Some(blobs.digest.to_wire()),
        inline_stdout: true,
        ..Default::default()
    };
    let mut stream = client.execution().execute(request).await?.into_inner();
    let name = stream.message().await?.context("an operation")?.name;
    Ok((stream, name))
}

// Ten thousand who wait for one operation all hear of its end.
#[tokio::test]
async fn ten_thousand_waiting_streams_are_served() -> Result<()> {
    const CONNECTIONS: usize = 10;
    let target = Target::start().await?;
    let client = target.longshore.client().await?;
    let folder = new_home()?;
    let go = folder.path().join("go");
    let (stream, name) = waiting_action(&client, &go, "echo done").await?;
    let request = reapi::WaitExecutionRequest { name };
    let (mut wires, mut bodies) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let mut wire = Wire::connect(&target.longshore).await?;
        for _ in 0..UNREAD {
            bodies.push(wire.call(WAIT_EXECUTION, &request).await?);
        }
        wires.push(wire);
    }
    let mut open = Vec::new();
    for call in bodies {
        let mut body = call.body().await?;
        body.data().await.context("no operation")??;
        open.push(body);
    }
    target.serves_another().await?;
    target.holds_at_most(OWN_BYTES + (CONNECTIONS * UNREAD) as u64 * STREAM_BYTES).await?;
    spawn_blocking(move || std::fs::write(go, "go\n")).await??;
    result_of(&finished(stream).await?, 0)?;
    for mut body in open {
        while let Some(data) = body.data().await {
            data?;
        }
        let trailers = body.trailers().await?.context("no trailers")?;
        ensure!(trailers.get("grpc-status").is_some_and(|status| status == "0"), "{trailers:?}");
    }
    drop((wires, client));
    target.leaves_nothing().await
}

// An answer that is large, and that a thousand wait for, is not made a thousand times for those who do not read.
#[tokio::test]
async fn waiting_streams_that_nobody_reads_are_bounded() -> Result<()> {
    let target = Target::start().await?;
    let client = target.longshore.client().await?;
    let folder = new_home()?;
    let go = folder.path().join("go");
    let (stream, name) = waiting_action(&client, &go, "head -c 900000 /dev/zero").await?;
    let request = reapi::WaitExecutionRequest { name };
    let mut wire = Wire::connect(&target.longshore).await?;
    let mut calls = Vec::new();
    for _ in 0..UNREAD {
        calls.push(wire.call(WAIT_EXECUTION, &request).await?);
    }
    let mut open = Vec::new();
    for call in calls {
        open.push(call.body().await?);
    }
    wire.stop_reading();
    spawn_blocking(move || std::fs::write(go, "go\n")).await??;
    let response = finished(stream).await?;
    ensure!(result_of(&response, 0)?.stdout_raw.len() == 900_000);
    target.serves_another().await?;
    target.holds_at_most(OWN_BYTES + CONNECTION_BYTES + UNREAD as u64 * STREAM_BYTES).await?;
    drop((open, wire, client));
    target.leaves_nothing().await
}
