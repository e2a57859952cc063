//! Many uploads at once on one connection: what waits is not in the way of what it waits for.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::future::join_all;
use longshore_tests::client::Client;
use longshore_tests::longshore::{Launch, Longshore};
use longshore_tests::tree::Blob;
use tonic::{Code, Status};

/// Sent by `BatchUpdateBlobs`.
const BATCH_BYTES: usize = 3_000_000;
/// Too large for a batch: written by ByteStream.
const STREAM_BYTES: usize = 3_200_000;
/// More than a connection's window, and twice what the small store takes.
const UPLOADS: usize = 40;

async fn small_store() -> Result<Longshore> {
    let flags = ["--max-size", "64MB"].map(str::to_owned).into();
    Longshore::launch(Launch { flags, ..Launch::default() }).await
}

/// Blobs that nobody else has.
fn blobs(client: &Client, count: usize, bytes: usize) -> Vec<Blob> {
    let blob = |_| {
        let data: Bytes = uuid::Uuid::new_v4().as_bytes().repeat(bytes / 16).into();
        (client.function().digest(&data), data)
    };
    (0..count).map(blob).collect()
}

/// Uploads every blob by a call of its own, all at once.
async fn upload_all(client: &Client, blobs: &[Blob]) -> Vec<Result<()>> {
    join_all(blobs.iter().map(|blob| client.upload(std::slice::from_ref(blob)))).await
}

// Batches that wait for room in the server's memory leave the window to those that have it, whatever the store takes.
#[tokio::test]
async fn batches_that_wait_leave_room_for_those_that_go_on() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let blobs = blobs(&client, UPLOADS, BATCH_BYTES);
    upload_all(&client, &blobs).await.into_iter().collect::<Result<()>>()?;
    let missing = client.missing(blobs.iter().map(|(digest, _)| digest)).await?;
    ensure!(missing.is_empty(), "{missing:?} are missing");
    Ok(())
}

// More than a store takes goes through it: what is complete makes room for what waits.
#[tokio::test]
async fn a_small_store_takes_more_than_it_holds() -> Result<()> {
    let longshore = small_store().await?;
    let client = longshore.client().await?;
    for bytes in [BATCH_BYTES, STREAM_BYTES] {
        let blobs = blobs(&client, UPLOADS, bytes);
        upload_all(&client, &blobs).await.into_iter().collect::<Result<()>>()?;
    }
    // Both kinds beside each other.
    let (batches, streams) = (blobs(&client, UPLOADS, BATCH_BYTES), blobs(&client, UPLOADS, STREAM_BYTES));
    let (batches, streams) = tokio::join!(upload_all(&client, &batches), upload_all(&client, &streams));
    batches.into_iter().chain(streams).collect()
}

// Of more uploads than may wait on a connection, those beyond are refused if they would have to, and are in nobody's way.
#[tokio::test]
async fn uploads_beyond_those_that_may_wait_are_served_or_refused() -> Result<()> {
    let longshore = small_store().await?;
    let client = longshore.client().await?;
    let blobs = blobs(&client, 5 * UPLOADS, STREAM_BYTES);
    for outcome in upload_all(&client, &blobs).await {
        let Err(error) = outcome else { continue };
        let status = error.downcast_ref::<Status>().with_context(|| format!("{error:#}"))?;
        ensure!(status.code() == Code::ResourceExhausted, "{status:?}");
    }
    client.put("on the same connection").await?;
    Ok(())
}
