//! Messages that are too large, never end, or never become whole; headers and resets without end.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use longshore_proto::reapi;
use tonic::Code;

use super::wire::{self, BATCH_UPDATE, WRITE, Wire};
use super::{CONNECTION_BYTES, OWN_BYTES, Target, refused};

/// The largest message that longshore decodes.
const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Messages that are left unfinished: without a bound they would take 2 GiB.
const UNFINISHED: usize = 256;

// A message beyond the bound ends its own call, and nothing else.
#[tokio::test]
async fn an_oversized_message_ends_its_call_only() -> Result<()> {
    let target = Target::start().await?;
    let client = target.longshore.client().await?;
    let digest = client.function().digest(b"small");
    let batch = |bytes: usize| reapi::BatchUpdateBlobsRequest {
        requests: vec![reapi::batch_update_blobs_request::Request {
            digest: Some(digest.to_wire()),
            data: vec![0; bytes],
            ..Default::default()
        }],
        ..Default::default()
    };
    // What is only too large for a batch is answered by the service; what is no message at all, before it.
    refused(client.cas().batch_update_blobs(batch(5 << 20)).await, Code::InvalidArgument, "at most")?;
    refused(client.cas().batch_update_blobs(batch(32 << 20)).await, Code::OutOfRange, "too large")?;
    ensure!(client.missing([&digest]).await?.len() == 1, "it was stored");
    // The connection is as good as before.
    client.put("on the same connection").await?;

    // Four gigabytes are believed as little when they are only announced.
    let mut wire = Wire::connect(&target.longshore).await?;
    for method in [BATCH_UPDATE, WRITE] {
        let mut call = wire.begin(method).await?;
        call.stream.send_data(wire::announced(u32::MAX as usize), false)?;
        let status = call.status().await?;
        ensure!(status.code() == Code::OutOfRange, "{method}: {status:?}");
    }
    drop((client, wire));
    target.holds_at_most(OWN_BYTES).await?;
    target.leaves_nothing().await
}

// What is announced and does not come takes a share of its own connection, and of no other.
#[tokio::test]
async fn unfinished_messages_are_bounded() -> Result<()> {
    let target = Target::start().await?;
    let most = Bytes::from(vec![0; MESSAGE_BYTES_MAX - 1]);
    let mut calls = Vec::new();
    let mut wires = Vec::new();
    for method in [BATCH_UPDATE, WRITE] {
        let mut wire = Wire::connect(&target.longshore).await?;
        for _ in 0..UNFINISHED {
            let mut call = wire.begin(method).await?;
            call.stream.send_data(wire::announced(MESSAGE_BYTES_MAX), false)?;
            call.stream.send_data(most.clone(), false)?;
            calls.push(call);
        }
        wires.push(wire);
    }
    target.holds_at_most(OWN_BYTES + 2 * CONNECTION_BYTES).await?;
    target.serves_another().await?;
    drop((calls, wires));
    target.leaves_nothing().await
}

// Calls that are reset as soon as they are made end their connection, and nothing else.
#[tokio::test]
async fn a_flood_of_resets_ends_its_connection_only() -> Result<()> {
    const RESETS: usize = 50_000;
    let target = Target::start().await?;
    let mut wire = Wire::connect(&target.longshore).await?;
    let mut ended = None;
    for _ in 0..RESETS {
        match wire.begin(BATCH_UPDATE).await {
            Ok(mut call) => call.stream.send_reset(h2::Reason::CANCEL),
            Err(error) => {
                ended = Some(error);
                break;
            }
        }
        tokio::task::yield_now().await;
    }
    if let Some(error) = ended {
        let reason = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason);
        ensure!(
            matches!(reason, None | Some(h2::Reason::ENHANCE_YOUR_CALM | h2::Reason::NO_ERROR)),
            "{error:?}"
        );
    }
    target.serves_another().await?;
    drop(wire);
    target.holds_at_most(OWN_BYTES + CONNECTION_BYTES).await?;
    target.leaves_nothing().await
}

// Headers that are larger together than the bound end their connection: they would have to be read to their end.
#[tokio::test]
async fn huge_headers_end_their_connection_only() -> Result<()> {
    let target = Target::start().await?;
    let mut wire = Wire::connect(&target.longshore).await?;
    let large = "x".repeat(1 << 20);
    let ended = match wire.begin_with(BATCH_UPDATE, &[("x-large", &large)]).await {
        Ok(call) => call.status().await.err(),
        Err(error) => Some(error),
    };
    let ended = ended.context("it was answered")?;
    let reason = ended.downcast_ref::<h2::Error>().and_then(h2::Error::reason);
    // The connection may break before it is said why.
    ensure!(matches!(reason, None | Some(h2::Reason::ENHANCE_YOUR_CALM)), "{ended:?}");
    target.serves_another().await?;
    drop(wire);
    target.holds_at_most(OWN_BYTES).await?;
    target.leaves_nothing().await
}
