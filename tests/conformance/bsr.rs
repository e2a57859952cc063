//! `ByteStream.Read`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::bytestream::ReadRequest;
use longshore_tests::client::Client;
use longshore_tests::longshore::{Launch, Longshore};
use tonic::{Code, Status};

use crate::support::{absent, all_of, refused, shared_client, unique};

/// Any message has to be smaller than what peers accept by default; ours have at most this much data.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// How long a server may take to notice that a reader has gone.
const PATIENCE: Duration = Duration::from_mins(1);

/// The data of each response to a read of `digest`.
async fn read(client: &Client, digest: &Digest, offset: i64, limit: i64) -> Result<Vec<Vec<u8>>, Status> {
    let request =
        ReadRequest { resource_name: client.read_name(digest), read_offset: offset, read_limit: limit };
    let responses = all_of(client.byte_stream().read(request).await).await?;
    Ok(responses.into_iter().map(|response| response.data).collect())
}

/// An absent blob is `NOT_FOUND`, with every digest function.
#[tokio::test]
async fn bsr_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let digest = absent(function);
        refused(read(&client, &digest, 0, 0).await, Code::NotFound, &[&digest.hash_hex()]);
        let data = unique(300);
        let digest = client.put(data.clone()).await?;
        assert_eq!(read(&client, &digest, 0, 0).await?.concat(), data);
    }
    Ok(())
}

/// An offset at the end reads nothing; beyond it, or negative, it is `OUT_OF_RANGE`.
#[tokio::test]
async fn bsr_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for len in [1, 10, (1 << 20) + 1] {
        let data = unique(len);
        let digest = client.put(data.clone()).await?;
        let size = i64::try_from(len)?;
        assert_eq!(read(&client, &digest, size, 0).await?.concat(), b"");
        assert_eq!(read(&client, &digest, size, 5).await?.concat(), b"");
        assert!(read(&client, &digest, size - 1, 0).await?.concat() == data[len - 1..]);
        for offset in [size + 1, i64::MAX, -1, i64::MIN] {
            let words = ["read_offset", &offset.to_string()];
            refused(read(&client, &digest, offset, 0).await, Code::OutOfRange, &words);
        }
    }
    Ok(())
}

/// A limit is of the bytes in total, 0 is none, and a negative one is `INVALID_ARGUMENT`.
#[tokio::test]
async fn bsr_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let data = unique(3 << 20);
    let digest = client.put(data.clone()).await?;
    for (offset, limit) in [(0, 1), (0, 2_500_000), (7, 1 << 20), (1 << 20, (1 << 20) + 1)] {
        let part = read(&client, &digest, i64::try_from(offset)?, i64::try_from(limit)?).await?.concat();
        assert!(part == data[offset..offset + limit], "{offset} {limit}");
    }
    assert!(read(&client, &digest, 5, 0).await?.concat() == data[5..]);
    for limit in [-1, i64::MIN] {
        let words = ["read_limit", &limit.to_string()];
        refused(read(&client, &digest, 0, limit).await, Code::InvalidArgument, &words);
    }
    Ok(())
}

/// What goes beyond the end is cut at the end.
#[tokio::test]
async fn bsr_04() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let data = unique(1000);
    let digest = client.put(data.clone()).await?;
    for (offset, limit) in [(0, 1001), (999, 2), (500, 501), (1000, 1), (1, i64::MAX)] {
        let part = read(&client, &digest, i64::try_from(offset)?, limit).await?.concat();
        assert_eq!(part, data[offset..], "{offset} {limit}");
    }
    Ok(())
}

/// A large blob comes in many messages, none of more than 1 MiB.
#[tokio::test]
async fn bsr_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let data = unique(5 << 20);
    let digest = client.put(data.clone()).await?;
    let chunks = read(&client, &digest, 0, 0).await?;
    assert!(chunks.iter().all(|chunk| chunk.len() <= CHUNK_BYTES_MAX));
    assert!(chunks.concat() == data);
    Ok(())
}

/// The empty blob is there without an upload, and has no data.
#[tokio::test]
async fn bsr_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let empty = function.digest(b"");
        for limit in [0, 1] {
            assert_eq!(read(&client, &empty, 0, limit).await?.concat(), b"");
        }
        refused(read(&client, &empty, 1, 0).await, Code::OutOfRange, &["read_offset"]);
    }
    Ok(())
}

/// A present hash with another size is `NOT_FOUND`.
#[tokio::test]
async fn bsr_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let digest = client.put(unique(100)).await?;
    for size in [1, 99, 101, i64::MAX] {
        let wrong = Digest::parse(client.function(), &digest.hash_hex(), size).expect("well formed");
        refused(read(&client, &wrong, 0, 0).await, Code::NotFound, &["not in the store"]);
    }
    Ok(())
}

/// What a reader that stops has held is given back.
#[tokio::test]
async fn bsr_08() -> Result<()> {
    let flags = vec!["--max-size".to_owned(), "16MiB".to_owned()];
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    let held = client.put(unique(14 << 20)).await?;
    let request = ReadRequest { resource_name: client.read_name(&held), ..Default::default() };
    let mut reading = client.byte_stream().read(request).await?.into_inner();
    reading.message().await?.context("a first chunk")?;
    let more = unique(3 << 20);
    assert!(client.put(more.clone()).await.is_err(), "the reader holds the blob");
    drop(reading);
    let until_there_is_space = async { while client.put(more.clone()).await.is_err() {} };
    Ok(tokio::time::timeout(PATIENCE, until_there_is_space).await?)
}
