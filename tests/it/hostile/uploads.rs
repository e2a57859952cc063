//! Uploads that never go on, never end, or are more than was said.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use longshore_proto::bytestream;
use longshore_tests::longshore::Launch;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::wire::{self, Call, WRITE, Wire};
use super::{CONNECTION_BYTES, OWN_BYTES, Target, refused};

/// Connections of the attacker that opens ten thousand uploads.
const CONNECTIONS: usize = 10;
/// What longshore allows on one connection.
const STREAMS_MAX: usize = 1_000;
/// What an upload in memory may take: what it gathers, and the stream that it comes on.
const UPLOAD_BYTES: u64 = 64 << 10;

/// The first message of an upload that is not there yet, of a mebibyte.
fn beginning(data: Vec<u8>) -> bytestream::WriteRequest {
    let hash = uuid::Uuid::new_v4().simple().to_string().repeat(2);
    bytestream::WriteRequest {
        resource_name: format!("uploads/{}/blobs/{hash}/1048576", uuid::Uuid::new_v4()),
        data,
        ..Default::default()
    }
}

/// Opens an upload that does not go on.
async fn open(wire: &mut Wire, message: &Bytes) -> Result<Call> {
    let mut call = wire.begin(WRITE).await?;
    call.stream.send_data(message.clone(), false)?;
    Ok(call)
}

/// A longshore with so few files that a bound on uploads shows.
fn few_files(open_files: u64) -> Launch {
    let flags = vec!["--jobs".to_owned(), "1".to_owned()];
    Launch { open_files: Some(open_files), flags, ..Launch::default() }
}

/// Waits until all but `count` of those calls have had to give way.
async fn all_give_way_but(
    count: usize,
    calls: Vec<Call>,
) -> Result<FuturesUnordered<impl Future<Output = Result<Status>>>> {
    let gone = calls.len() - count;
    let mut statuses: FuturesUnordered<_> = calls.into_iter().map(Call::status).collect();
    for _ in 0..gone {
        let status = statuses.next().await.context("all are gone")??;
        let reason = "stood still longest";
        ensure!(status.code() == Code::Aborted && status.message().contains(reason), "{status:?}");
    }
    Ok(statuses)
}

// Of ten thousand uploads that do not go on most have to give way; nobody else has to.
#[tokio::test]
async fn ten_thousand_open_uploads_block_nobody() -> Result<()> {
    /// What is left of 1024 open files when half of them are the connections'.
    const UPLOADS_MAX: usize = (1024 - 256 - 16) / 2;
    let target = Target::launch(few_files(1024)).await?;
    let (mut wires, mut calls) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let mut wire = Wire::connect(&target.longshore).await?;
        for _ in 0..STREAMS_MAX {
            calls.push(open(&mut wire, &wire::framed(&beginning(vec![0; 4 << 10]))).await?);
        }
        wires.push(wire);
    }
    target.serves_another().await?;
    let open = all_give_way_but(UPLOADS_MAX, calls).await?;
    for wire in &wires {
        ensure!(wire.streams_max() == STREAMS_MAX, "{} streams", wire.streams_max());
    }
    target.holds_at_most(OWN_BYTES + (CONNECTIONS * STREAMS_MAX) as u64 * UPLOAD_BYTES).await?;
    target.serves_another().await?;
    drop((open, wires));
    stopped_without_a_trace(target).await
}

// Uploads that have a file each take no more files than there are for them.
#[tokio::test]
async fn open_uploads_leave_files_for_others() -> Result<()> {
    /// As many as get through on one connection, however large they are.
    const UPLOADS_A_CONNECTION: usize = 50;
    const UPLOADS_MAX: usize = (400 - 256 - 16) / 2;
    let target = Target::launch(few_files(400)).await?;
    let (mut wires, mut calls) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let mut wire = Wire::connect(&target.longshore).await?;
        for _ in 0..UPLOADS_A_CONNECTION {
            calls.push(open(&mut wire, &wire::framed(&beginning(vec![0; 300 << 10]))).await?);
        }
        wires.push(wire);
    }
    let open = all_give_way_but(UPLOADS_MAX, calls).await?;
    target.serves_another().await?;
    target.holds_at_most(OWN_BYTES + CONNECTION_BYTES).await?;
    drop((open, wires));
    stopped_without_a_trace(target).await
}

/// Checks that beginnings which are kept for a client that comes back are few, and gone when longshore is.
async fn stopped_without_a_trace(target: Target) -> Result<()> {
    const KEPT_MAX: usize = 256;
    target.serves_another().await?;
    target.settled().await?;
    let kept = target.files_in_the_way()?;
    ensure!(kept <= KEPT_MAX, "{kept} files");
    let (root, _home) = (target.longshore.root(), target.longshore.home());
    let status = target.longshore.stop().await?;
    ensure!(status.success(), "{status}");
    let left = super::files_below(&root.join("scratch"))?;
    ensure!(left == 0, "{left} files");
    Ok(())
}

// A stream that does not end is ended when it has said enough.
#[tokio::test]
async fn an_endless_upload_is_ended() -> Result<()> {
    let target = Target::start().await?;
    let client = target.longshore.client().await?;
    let digest = client.function().digest(&vec![1; 1 << 20]);
    let name = client.write_name(&digest);
    let endless = futures::stream::iter(0..).map(move |number: i64| bytestream::WriteRequest {
        resource_name: name.clone(),
        write_offset: number << 16,
        data: vec![1; 1 << 16],
        finish_write: false,
    });
    refused(client.byte_stream().write(endless).await, Code::InvalidArgument, "more than 1048576 bytes")?;
    ensure!(client.missing([&digest]).await?.len() == 1, "it was stored");
    // Zeros without end out of few bytes are no different.
    let zeros = zstd::bulk::compress(&vec![0; 64 << 20], 19)?;
    let name = client.write_name(&digest).replace("blobs/", "compressed-blobs/zstd/");
    let bomb = bytestream::WriteRequest {
        resource_name: name,
        data: zeros,
        finish_write: true,
        ..Default::default()
    };
    let outcome = client.byte_stream().write(tokio_stream::once(bomb)).await;
    refused(outcome, Code::InvalidArgument, "more than 1048576 bytes")?;
    ensure!(client.missing([&digest]).await?.len() == 1, "it was stored");
    drop(client);
    target.holds_at_most(OWN_BYTES).await?;
    target.leaves_nothing().await
}

// Messages that say nothing are signs of life, and cost nobody anything.
#[tokio::test]
async fn an_upload_of_nothing_without_end_is_in_nobodys_way() -> Result<()> {
    const MESSAGES: usize = 20_000;
    let target = Target::start().await?;
    let client = target.longshore.client().await?;
    let (sender, receiver) = mpsc::channel(64);
    let mut byte_stream = client.byte_stream();
    let call = tokio::spawn(async move { byte_stream.write(ReceiverStream::new(receiver)).await });
    let first = beginning(Vec::new());
    for number in 0..MESSAGES {
        sender.send(first.clone()).await.context("the stream ended")?;
        if number == MESSAGES / 2 {
            target.serves_another().await?;
        }
    }
    // Then bytes come one by one, each in a message.
    for offset in 0..MESSAGES {
        let write_offset = i64::try_from(offset)?;
        let byte = bytestream::WriteRequest { write_offset, data: vec![0], ..first.clone() };
        sender.send(byte).await.context("the stream ended")?;
    }
    ensure!(!call.is_finished(), "the stream ended");
    drop(sender);
    let committed = call.await??.into_inner().committed_size;
    ensure!(committed == i64::try_from(MESSAGES)?, "{committed}");
    drop(client);
    target.holds_at_most(OWN_BYTES).await?;
    stopped_without_a_trace(target).await
}
