//! Clients that break the rules: others are served as before, and what the server holds stays bounded.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use longshore_cas_store::digest::DigestFunction;
use longshore_proto::{bytestream, reapi};
use longshore_tests::longshore::Longshore;
use longshore_tests::process::Footprint;
use longshore_tests::tree::Blob;
use tonic::Code;

/// Uploads that are left open at once on one connection.
const OPEN_WRITES: usize = 1_000;
/// What the server may hold while all of them are open: its own needs, and 256 KiB for each of them.
const RESIDENT_BYTES_MAX: u64 = (256 << 20) + OPEN_WRITES as u64 * (256 << 10);

fn blob(function: DigestFunction, content: &'static str) -> Blob {
    (function.digest(content.as_bytes()), Bytes::from_static(content.as_bytes()))
}

/// Uploads and finds a blob, as any client would.
async fn is_served(longshore: &Longshore, content: &'static str) -> Result<()> {
    let client = longshore.client().await?;
    let (digest, data) = blob(client.function(), content);
    client.upload(&[(digest, data)]).await?;
    ensure!(client.missing([&digest]).await?.is_empty(), "{digest:?} is missing");
    Ok(())
}

// A name is data: it reaches no path, and its length costs nobody anything.
#[tokio::test]
async fn names_that_are_none_are_refused() -> Result<()> {
    let longshore = Longshore::start().await?;
    let mut byte_stream = longshore.client().await?.byte_stream();
    let hash = "a".repeat(64);
    let names = [
        "../../../etc/passwd".to_owned(),
        format!("blobs/../blobs/{hash}/1"),
        "blobs/%2e%2e%2fetc%2fpasswd/1".to_owned(),
        format!("blobs/{}/1", "a".repeat(1 << 20)),
        "/".repeat(1 << 20),
    ];
    for name in names {
        let start = name.get(..40).unwrap_or(&name).to_owned();
        let read = bytestream::ReadRequest { resource_name: name, ..Default::default() };
        let status = byte_stream.read(read).await.err().with_context(|| start.clone())?;
        let refused = matches!(status.code(), Code::InvalidArgument | Code::NotFound);
        ensure!(refused, "{start}: {status:?}");
    }
    is_served(&longshore, "after names").await
}

// A message beyond the bound ends its own call, and nothing else.
#[tokio::test]
async fn an_oversized_message_ends_its_call_only() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let (digest, _) = blob(client.function(), "small");
    let request = reapi::BatchUpdateBlobsRequest {
        requests: vec![reapi::batch_update_blobs_request::Request {
            digest: Some(digest.to_wire()),
            data: vec![0; 32 << 20],
            ..Default::default()
        }],
        ..Default::default()
    };
    ensure!(client.cas().batch_update_blobs(request).await.is_err(), "32 MiB in one message were taken");
    ensure!(client.missing([&digest]).await?.len() == 1, "it was stored");
    is_served(&longshore, "after a large message").await
}

// Uploads that never go on keep neither other clients nor the memory.
#[tokio::test]
async fn open_uploads_block_nobody() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let mut senders = Vec::with_capacity(OPEN_WRITES);
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..OPEN_WRITES {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let mut byte_stream = client.byte_stream();
        calls.spawn(
            async move { byte_stream.write(tokio_stream::wrappers::ReceiverStream::new(receiver)).await },
        );
        let message = bytestream::WriteRequest {
            resource_name: format!("uploads/{}/blobs/{number:064x}/1048576", uuid::Uuid::new_v4()),
            data: vec![0; 4 << 10],
            ..Default::default()
        };
        sender.send(message).await.context("an upload ended")?;
        senders.push(sender);
    }
    is_served(&longshore, "beside open uploads").await?;
    ensure!(calls.try_join_next().is_none(), "an upload that was open ended");
    let held = Footprint::of(longshore.pid())?;
    ensure!(held.resident_bytes_max <= RESIDENT_BYTES_MAX, "{held:?}");
    Ok(())
}
