//! `ByteStream.Read` of blobs as they are.

use std::time::Duration;

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::DigestFunction;
use longshore_proto::bytestream::ReadRequest;
use longshore_tests::longshore::{Launch, Longshore};
use tonic::Code;

use crate::streams::{read, read_messages, tail, write_whole, zstd_read_name};
use crate::support::{absent, damage, refused, shared_client, unique};

/// How long a server may take to notice that a reader has gone.
const PATIENCE: Duration = Duration::from_mins(1);

/// The most bytes in one message.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// A blob that is absent, or damaged, is `NOT_FOUND`.
#[tokio::test]
async fn bsr_01() -> Result<()> {
    let (longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let digest = absent(function);
        for name in [client.read_name(&digest), zstd_read_name(&digest)] {
            refused(read(&client, &name, 0, 0).await, Code::NotFound, &[&digest.hash_hex()]);
            refused(read(&client, &name, 5, 0).await, Code::NotFound, &[]);
        }
        let digest = client.put(unique(1000)).await?;
        damage(&longshore, &digest, b"short")?;
        refused(read(&client, &client.read_name(&digest), 0, 0).await, Code::NotFound, &[&digest.hash_hex()]);
        assert_eq!(client.missing([&digest]).await?, [digest]);
    }
    Ok(())
}

/// An offset at the end yields nothing; one beyond it, or below 0, is `OUT_OF_RANGE`.
#[tokio::test]
async fn bsr_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        for size in [0, 1, 1000, 600_000] {
            let data = unique(size);
            let digest = client.put(data.clone()).await?;
            let name = client.read_name(&digest);
            for offset in [0, size / 2, size.saturating_sub(1), size] {
                assert_eq!(read(&client, &name, i64::try_from(offset)?, 0).await?, data[offset..]);
            }
            let size = i64::try_from(size)?;
            for offset in [size + 1, size + 1000, i64::MAX, -1, i64::MIN] {
                for limit in [0, 1] {
                    let outcome = read(&client, &name, offset, limit).await;
                    refused(outcome, Code::OutOfRange, &["read_offset", &offset.to_string()]);
                }
            }
        }
    }
    Ok(())
}

/// A limit is the most bytes that come, 0 is none, and a negative one is `INVALID_ARGUMENT`.
#[tokio::test]
async fn bsr_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let data = unique(600_000);
    let digest = client.put(data.clone()).await?;
    let name = client.read_name(&digest);
    for offset in [0, 1, 300_000, 599_999] {
        for limit in [1, 2, 1000, 262_144, 262_145, 600_000] {
            let expected = &data[offset..data.len().min(offset + limit)];
            let found = read(&client, &name, i64::try_from(offset)?, i64::try_from(limit)?).await?;
            assert!(found == expected, "{offset} {limit}");
        }
        assert!(read(&client, &name, i64::try_from(offset)?, 0).await? == data[offset..]);
    }
    for limit in [-1, -600_000, i64::MIN] {
        let words = ["read_limit", &limit.to_string()];
        refused(read(&client, &name, 0, limit).await, Code::InvalidArgument, &words);
    }
    Ok(())
}

/// A range that goes beyond the end is what there is of it.
#[tokio::test]
async fn bsr_04() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let data = unique(1000);
    let name = client.read_name(&client.put(data.clone()).await?);
    for (offset, limit) in [(0, 1001), (500, 501), (999, 2), (1000, 1), (1, i64::MAX), (1000, i64::MAX)] {
        assert_eq!(read(&client, &name, offset, limit).await?, data[usize::try_from(offset)?..]);
    }
    Ok(())
}

/// No message is larger than 1 MiB, compressed or not.
#[tokio::test]
async fn bsr_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for data in [unique(10 << 20), vec![7; 10 << 20]] {
        let digest = client.put(data.clone()).await?;
        for name in [client.read_name(&digest), zstd_read_name(&digest)] {
            let messages = read_messages(&client, &name, 0, 0).await?;
            assert!(messages.iter().all(|message| message.len() <= MESSAGE_BYTES_MAX));
            // Nor is a blob sent in crumbs.
            assert!(messages.len() <= 64, "{}", messages.len());
        }
    }
    Ok(())
}

/// The empty blob is read without data, and is there from the start.
#[tokio::test]
async fn bsr_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let name = client.read_name(&function.digest(b""));
        for limit in [0, 1, i64::MAX] {
            assert_eq!(read(&client, &name, 0, limit).await?, b"");
        }
    }
    Ok(())
}

/// A name with another size is another blob: `NOT_FOUND`.
#[tokio::test]
async fn bsr_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let digest = client.put(unique(1000)).await?;
        for size in [0, 999, 1001, i64::MAX] {
            let tail = tail(&digest).replace("/1000", &format!("/{size}"));
            for name in [format!("blobs/{tail}"), format!("compressed-blobs/zstd/{tail}")] {
                refused(read(&client, &name, 0, 0).await, Code::NotFound, &[&size.to_string()]);
            }
        }
    }
    Ok(())
}

/// A client that leaves in the middle holds nothing any more: the blob can be evicted.
#[tokio::test]
async fn bsr_08() -> Result<()> {
    let flags = vec!["--max-size".to_owned(), "16MiB".to_owned()];
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    for is_compressed in [false, true] {
        let client = longshore.client().await?;
        let held = unique(14 << 20);
        let digest = client.function().digest(&held);
        write_whole(&client, &client.write_name(&digest), &held).await?;
        let name = if is_compressed { zstd_read_name(&digest) } else { client.read_name(&digest) };
        let request = ReadRequest { resource_name: name, ..Default::default() };
        let mut reading = client.byte_stream().read(request).await?.into_inner();
        reading.message().await?.context("a first message")?;
        drop(reading);
        let next = unique(14 << 20);
        let next_name = client.write_name(&client.function().digest(&next));
        let until_there_is_space = async { while write_whole(&client, &next_name, &next).await.is_err() {} };
        tokio::time::timeout(PATIENCE, until_there_is_space).await?;
        assert_eq!(client.missing([&digest]).await?, [digest]);
    }
    Ok(())
}
