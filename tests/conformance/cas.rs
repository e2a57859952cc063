//! The store in general.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::{bytestream, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::longshore::{Launch, Longshore};
use longshore_tests::tree::InputTree;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::support::{
    damage, execute, files_in, missing_subjects, refused, refused_inside, run_anew, shared_client, subject,
    succeeded, unique,
};

/// How long an upload may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_mins(1);

fn chunk(name: &str, offset: usize, data: &[u8], finish_write: bool) -> bytestream::WriteRequest {
    bytestream::WriteRequest {
        resource_name: name.to_owned(),
        write_offset: i64::try_from(offset).expect("small"),
        finish_write,
        data: data.to_vec(),
    }
}

async fn write(client: &Client, digest: &Digest, data: &[u8]) -> Result<i64, Status> {
    let name = client.write_name(digest);
    let parts = data.chunks(100_000).collect::<Vec<_>>();
    let mut offset = 0;
    let mut requests = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        requests.push(chunk(&name, offset, part, index + 1 == parts.len()));
        offset += part.len();
    }
    if requests.is_empty() {
        requests.push(chunk(&name, 0, b"", true));
    }
    let response = client.byte_stream().write(futures::stream::iter(requests)).await?;
    Ok(response.into_inner().committed_size)
}

async fn batch_code(client: &Client, digest: &Digest, data: &[u8]) -> Result<Code> {
    let entry = reapi::batch_update_blobs_request::Request {
        digest: Some(digest.to_wire()),
        data: data.to_vec(),
        ..Default::default()
    };
    let request = reapi::BatchUpdateBlobsRequest {
        requests: vec![entry],
        digest_function: client.wire_function(),
        ..Default::default()
    };
    let response = client.cas().batch_update_blobs(request).await?.into_inner().responses.remove(0);
    Ok(Code::from(response.status.unwrap_or_default().code))
}

/// A blob is there once it is whole and verified, not before, and after a kill only if it was.
#[tokio::test]
async fn cas_01() -> Result<()> {
    let longshore = Longshore::start().await?;
    let home = longshore.home();
    let client = longshore.client().await?;
    let data = unique(2 << 20);
    let digest = client.function().digest(&data);
    let name = client.write_name(&digest);
    let (sender, receiver) = mpsc::channel(1);
    let mut uploads = client.byte_stream();
    let upload = tokio::spawn(async move { uploads.write(ReceiverStream::new(receiver)).await });
    for offset in (0..data.len()).step_by(512 << 10) {
        assert_eq!(client.missing([&digest]).await?, [digest], "{offset} bytes are no blob");
        sender.send(chunk(&name, offset, &data[offset..offset + (512 << 10)], false)).await?;
    }
    // Every byte of it has been sent; only the end has not.
    assert_eq!(client.missing([&digest]).await?, [digest]);
    assert_eq!(
        client.byte_stream().read(read_of(&client, &digest)).await.err().map(|e| e.code()),
        Some(Code::NotFound)
    );
    let kept = client.put(unique(100_000)).await?;
    longshore.kill().await?;
    drop(sender);
    assert!(upload.await?.is_err());

    let longshore = Longshore::launch(Launch { home: Some(home), ..Launch::default() }).await?;
    let client = longshore.client().await?;
    assert_eq!(client.missing([&digest, &kept]).await?, [digest]);
    assert_eq!(files_in(&longshore.root().join("blobs")).len(), 1, "half a blob leaves nothing");
    client.read(&kept).await?;
    // What is not what it says is never there.
    for wrong in [unique(2 << 20), data[1..].to_vec()] {
        refused(write(&client, &digest, &wrong).await, Code::InvalidArgument, &[]);
        assert_eq!(client.missing([&digest]).await?, [digest]);
    }
    write(&client, &digest, &data).await?;
    assert_eq!(client.read(&digest).await?, data);
    Ok(())
}

fn read_of(client: &Client, digest: &Digest) -> bytestream::ReadRequest {
    bytestream::ReadRequest { resource_name: client.read_name(digest), ..Default::default() }
}

/// The empty blob of every function is always there, to read, to write and as a directory.
#[tokio::test]
async fn cas_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let empty = Digest::empty(function);
        assert_eq!(client.missing([&empty, &empty]).await?, []);
        assert!(client.read(&empty).await?.is_empty());
        let read = reapi::BatchReadBlobsRequest {
            digests: vec![empty.to_wire()],
            digest_function: client.wire_function(),
            ..Default::default()
        };
        let answer = client.cas().batch_read_blobs(read).await?.into_inner().responses.remove(0);
        assert_eq!((answer.status.unwrap_or_default().code, answer.data.len()), (0, 0));
        assert_eq!(batch_code(&client, &empty, b"").await?, Code::Ok);
        assert_eq!(write(&client, &empty, b"").await?, 0);
        // As a file, as a directory and as the root.
        let inputs = InputTree::new().file("empty", "").directory("nothing");
        let action = TestAction::shell("wc -c < empty; ls -A nothing").inputs(inputs).salt(unique(8));
        let response = run_anew(&client, &action).await?;
        assert_eq!(client.stdout(succeeded(&response)).await?.trim(), "0");
        let response = run_anew(&client, &TestAction::shell("ls -A").salt(unique(8))).await?;
        assert_eq!(client.stdout(succeeded(&response)).await?, "");
    }
    Ok(())
}

/// Uploads of one blob at the same time all succeed.
#[tokio::test]
async fn cas_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let data = unique(1_000_000);
        let digest = function.digest(&data);
        let streams = futures::future::join_all((0..10).map(|_| write(&client, &digest, &data)));
        let batches = futures::future::join_all((0..10).map(|_| batch_code(&client, &digest, &data)));
        let (streams, batches) = tokio::join!(streams, batches);
        for committed in streams {
            assert_eq!(committed?, 1_000_000);
        }
        for code in batches {
            assert_eq!(code?, Code::Ok);
        }
        assert_eq!(client.read(&digest).await?, data);
    }
    Ok(())
}

/// What was added or asked for lately is still there for the execution that follows.
#[tokio::test]
async fn cas_04() -> Result<()> {
    let flags = vec!["--max-size".to_owned(), "8MiB".to_owned()];
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    let inputs = InputTree::new().file("a", unique(500 << 10)).file("b/c", unique(500 << 10));
    let action = TestAction::shell("cat a b/c | wc -c").inputs(inputs).build(client.function());
    client.upload(&action.blobs).await?;
    let digests: Vec<_> = action.blobs.iter().map(|(digest, _)| digest).collect();
    for _ in 0..4 {
        // Half of the store goes by between each question and the next.
        for _ in 0..8 {
            client.put(unique(500 << 10)).await?;
        }
        assert_eq!(client.missing(digests.iter().copied()).await?, []);
    }
    let response = client.execute(&action.digest, false).await?;
    assert_eq!(client.stdout(succeeded(&response)).await?.trim(), (1000 << 10).to_string());
    Ok(())
}

/// A blob above `max_cas_blob_size_bytes` is `INVALID_ARGUMENT` by its digest, before its data come.
#[tokio::test]
async fn cas_05() -> Result<()> {
    let flags = vec!["--max-size".to_owned(), "2MiB".to_owned()];
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    let request = reapi::GetCapabilitiesRequest::default();
    let capabilities = client.capabilities().get_capabilities(request).await?.into_inner();
    let max = capabilities.cache_capabilities.context("no cache")?.max_cas_blob_size_bytes;
    assert_eq!(max, 2 << 20);
    let hash = client.function().digest(b"x").hash_hex();
    for size in [max + 1, 1 << 40, i64::MAX] {
        let digest = Digest::parse(client.function(), &hash, size)?;
        // The first request alone is sent, and the stream stays open.
        let (sender, receiver) = mpsc::channel(1);
        sender.send(chunk(&client.write_name(&digest), 0, b"x", false)).await?;
        let mut byte_stream = client.byte_stream();
        let answer = byte_stream.write(ReceiverStream::new(receiver));
        let answer = tokio::time::timeout(PATIENCE, answer).await.context("no answer")?;
        refused(answer, Code::InvalidArgument, &[&max.to_string(), &size.to_string()]);
    }
    let data = unique(usize::try_from(max)?);
    let digest = client.function().digest(&data);
    assert_eq!(write(&client, &digest, &data).await?, max, "the limit itself is allowed");
    Ok(())
}

/// A full store refuses with `RESOURCE_EXHAUSTED`, and never takes away what is being read.
#[tokio::test]
async fn cas_06() -> Result<()> {
    let flags = vec!["--max-size".to_owned(), "24MiB".to_owned()];
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    let data = unique(16 << 20);
    let held = client.put(data.clone()).await?;
    let mut reading = client.byte_stream().read(read_of(&client, &held)).await?.into_inner();
    let mut read = reading.next().await.context("a first chunk")??.data;
    // More than the rest of the store: what is not in use makes room.
    for _ in 0..20 {
        client.put(unique(1 << 20)).await?;
    }
    let large = unique(12 << 20);
    let outcome = write(&client, &client.function().digest(&large), &large).await;
    refused(outcome, Code::ResourceExhausted, &["space"]);
    while let Some(chunk) = reading.next().await {
        read.extend(chunk?.data);
    }
    assert!(read == data);
    Ok(())
}

/// A blob that was damaged on the disk is `NOT_FOUND` to whoever reads it, and missing from then on.
#[tokio::test]
async fn cas_07() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let data = unique(300_000);
    let mut flipped = data.clone();
    flipped[150_000] ^= 1;
    for (index, damaged) in [&data[..100], &[&data[..], b"x"].concat(), b"", &flipped].into_iter().enumerate()
    {
        let digest = client.put(data.clone()).await?;
        damage(&longshore, &digest, damaged)?;
        if index % 2 == 0 {
            let outcome = client.byte_stream().read(read_of(&client, &digest)).await;
            let outcome = crate::support::all_of(outcome).await;
            refused(outcome, Code::NotFound, &[&digest.hash_hex()]);
        }
        let read = reapi::BatchReadBlobsRequest { digests: vec![digest.to_wire()], ..Default::default() };
        let answer = client.cas().batch_read_blobs(read).await?.into_inner().responses.remove(0);
        refused_inside(answer.status.as_ref(), Code::NotFound, &[]);
        assert!(answer.data.is_empty());
        assert_eq!(client.missing([&digest]).await?, [digest]);
        assert_eq!(files_in(&longshore.root().join("blobs")).len(), 0, "the file is removed");
    }
    // One that is what it was, though somebody wrote it anew, is not damaged.
    let digest = client.put(data.clone()).await?;
    damage(&longshore, &digest, &data)?;
    assert_eq!(client.read(&digest).await?, data);
    assert_eq!(client.missing([&digest]).await?, []);
    damage(&longshore, &digest, &flipped)?;
    assert!(client.read(&digest).await.is_err());
    // An input that is damaged is one to upload again.
    let action = TestAction::new(["/bin/cat", "in"]).inputs(InputTree::new().file("in", data.clone()));
    let blobs = action.build(client.function());
    client.upload(&blobs.blobs).await?;
    let input = client.function().digest(&data);
    damage(&longshore, &input, &flipped[1..])?;
    assert!(client.read(&input).await.is_err());
    let response = execute(&client, &blobs.digest).await?;
    refused_inside(response.status.as_ref(), Code::FailedPrecondition, &[]);
    assert_eq!(missing_subjects(&response.status.context("a status")?.details), [subject(&input)]);
    client.upload(&blobs.blobs).await?;
    succeeded(&execute(&client, &blobs.digest).await?);
    Ok(())
}
