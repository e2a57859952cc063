//! Compressed blobs over ByteStream.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::bytestream::{ReadRequest, WriteRequest};
use longshore_proto::reapi;
use longshore_proto::reapi::compressor::Value;
use longshore_tests::client::Client;
use tonic::{Code, Status};

use crate::streams::{OpenWrite, part, parts, read, write, write_whole, zstd_read_name, zstd_write_name};
use crate::support::{FEW_BYTES, refused, shared_client, unique};

/// Contents of several kinds: none, little, much, much of the same, and both.
fn contents() -> Vec<Vec<u8>> {
    let same = b"again and ".repeat(100_000);
    vec![Vec::new(), unique(FEW_BYTES), unique(1_000_000), [unique(300_000), same.clone()].concat(), same]
}

fn compressed(data: &[u8]) -> Result<Vec<u8>> {
    Ok(zstd::encode_all(data, 3)?)
}

/// A frame of the format that everybody skips.
fn skippable(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("a short frame").to_le_bytes();
    [&0x184D_2A50_u32.to_le_bytes()[..], &length, content].concat()
}

/// Checks that data are not taken for a blob.
async fn not_taken(client: &Client, digest: &Digest, sent: &[u8]) -> Result<Status> {
    let outcome = write_whole(client, &zstd_write_name(digest), sent).await;
    let status = refused(outcome, Code::InvalidArgument, &[]);
    assert_eq!(client.missing([digest]).await?, [*digest]);
    Ok(status)
}

/// What is here can be read in every form that is announced, however it came.
#[tokio::test]
async fn cmp_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let request = reapi::GetCapabilitiesRequest::default();
    let capabilities = client.capabilities().get_capabilities(request).await?.into_inner();
    let cache = capabilities.cache_capabilities.context("no cache")?;
    assert_eq!(cache.supported_compressors, [i32::from(Value::Zstd)]);
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        for is_sent_compressed in [false, true] {
            for data in contents() {
                let digest = function.digest(&data);
                if is_sent_compressed {
                    write_whole(&client, &zstd_write_name(&digest), &compressed(&data)?).await?;
                } else {
                    client.put(data.clone()).await?;
                }
                assert!(client.read(&digest).await? == data);
                let frames = read(&client, &zstd_read_name(&digest), 0, 0).await?;
                assert!(zstd::decode_all(&frames[..])? == data);
            }
        }
    }
    Ok(())
}

/// Offsets of a compressed read count uncompressed bytes; what comes is a stream of its own.
#[tokio::test]
async fn cmp_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for data in contents() {
        let digest = client.put(data.clone()).await?;
        let name = zstd_read_name(&digest);
        for offset in [0, data.len() / 3, data.len().saturating_sub(1), data.len()] {
            let frames = read(&client, &name, i64::try_from(offset)?, 0).await?;
            assert!(zstd::decode_all(&frames[..])? == data[offset..], "{offset} of {}", data.len());
        }
        for offset in [i64::try_from(data.len())? + 1, i64::MAX, -1] {
            refused(read(&client, &name, offset, 0).await, Code::OutOfRange, &["read_offset"]);
        }
    }
    Ok(())
}

/// A compressed read with a limit is `INVALID_ARGUMENT`.
#[tokio::test]
async fn cmp_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let digest = client.put(unique(1000)).await?;
    for limit in [1, 1000, i64::MAX, -1] {
        let outcome = read(&client, &zstd_read_name(&digest), 0, limit).await;
        refused(outcome, Code::InvalidArgument, &["read_limit", &limit.to_string()]);
    }
    Ok(())
}

/// Hash and size are those of the uncompressed data; others are `INVALID_ARGUMENT`.
#[tokio::test]
async fn cmp_04() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        for size in [1000, 1_000_000] {
            let data = unique(size);
            let digest = function.digest(&data);
            let mut changed = data.clone();
            changed[size / 2] ^= 1;
            for wrong in [changed, data[..size - 1].to_vec(), [&data[..], b"x"].concat(), Vec::new()] {
                not_taken(&client, &digest, &compressed(&wrong)?).await?;
            }
            // The digest of the compressed form is that of another blob.
            let frames = compressed(&data)?;
            not_taken(&client, &function.digest(&frames), &frames).await?;
            write_whole(&client, &zstd_write_name(&digest), &frames).await?;
            assert!(client.read(&digest).await? == data);
        }
    }
    Ok(())
}

/// Offsets of a compressed write count compressed bytes after the first, which is 0: there is nothing to resume.
#[tokio::test]
async fn cmp_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for part_bytes in [1, 100, 1000] {
        let data = unique(1000);
        let digest = client.function().digest(&data);
        let frames = compressed(&data)?;
        for at in 1..frames.len().div_ceil(part_bytes) {
            if at > 3 {
                break;
            }
            for delta in [-1, 1] {
                let name = zstd_write_name(&digest);
                let mut requests = parts(&name, &frames, 0, part_bytes);
                requests[at].write_offset += delta;
                refused(write(&client, requests).await, Code::InvalidArgument, &["write_offset"]);
            }
        }
        for first in [1, i64::try_from(data.len())?, -1] {
            let name = zstd_write_name(&digest);
            let request = WriteRequest { write_offset: first, ..part(&name, 0, &frames, true) };
            refused(write(&client, vec![request]).await, Code::InvalidArgument, &["write_offset"]);
        }
        let requests = parts(&zstd_write_name(&digest), &frames, 0, part_bytes);
        assert_eq!(write(&client, requests).await?, i64::try_from(frames.len())?);
    }
    Ok(())
}

/// A compressed upload of a blob that is here ends at once with a committed size of -1.
#[tokio::test]
async fn cmp_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let data = unique(1000);
        let digest = client.put(data.clone()).await?;
        let name = zstd_write_name(&digest);
        for first in [
            part(&name, 0, &compressed(&data)?, true),
            part(&name, 0, b"", false),
            part(&name, 7, b"no", false),
        ] {
            let mut open = OpenWrite::begin(&client, first);
            assert_eq!(open.answered().await?, -1);
        }
    }
    // One that came here in the middle.
    let data = unique(1_000_000);
    let digest = client.function().digest(&data);
    let frames = compressed(&data)?;
    let name = zstd_write_name(&digest);
    let mut open = OpenWrite::begin(&client, part(&name, 0, &frames[..500_000], false));
    write_whole(&client, &client.write_name(&digest), &data).await?;
    open.send(part(&name, 500_000, &frames[500_000..500_001], false));
    assert_eq!(open.answered().await?, -1);
    Ok(())
}

/// A compressed upload that is taken has committed the compressed bytes.
#[tokio::test]
async fn cmp_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for level in [-5, 1, 3, 9, 19] {
        for data in contents().into_iter().skip(1) {
            let data = [data, unique(10)].concat();
            let digest = client.function().digest(&data);
            let frames = zstd::encode_all(&data[..], level)?;
            let requests = parts(&zstd_write_name(&digest), &frames, 0, 100_000);
            assert_eq!(write(&client, requests).await?, i64::try_from(frames.len())?, "level {level}");
        }
    }
    Ok(())
}

/// Anything but whole frames is `INVALID_ARGUMENT`; several in a row are fine, some of them to be skipped.
#[tokio::test]
async fn cmp_08() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let data = unique(100_000);
    let digest = client.function().digest(&data);
    let frames = compressed(&data)?;
    let mut flipped = frames.clone();
    flipped[50_000] ^= 1;
    for wrong in [
        data.clone(),
        b"x".to_vec(),
        Vec::new(),
        frames[1..].to_vec(),
        frames[..frames.len() - 1].to_vec(),
        frames[..4].to_vec(),
        [&frames[..], b"trailing"].concat(),
        [&frames[..], &frames[..10]].concat(),
        [&frames[..], &frames[..]].concat(),
        flipped,
    ] {
        not_taken(&client, &digest, &wrong).await?;
    }
    let (first, second) = data.split_at(30_000);
    let empty = compressed(b"")?;
    for row in [
        vec![compressed(first)?, compressed(second)?],
        vec![skippable(b""), frames.clone(), skippable(b"note")],
        vec![
            empty.clone(),
            compressed(first)?,
            skippable(&[0; 5000]),
            empty.clone(),
            compressed(second)?,
            empty,
        ],
    ] {
        // Another blob each time: what is here is not looked at.
        let (own, mark) = (unique(8), compressed(b"")?);
        let digest = client.function().digest(&[&own[..], &data].concat());
        let sent = [compressed(&own)?, mark, row.concat()].concat();
        for part_bytes in [7777, 1 << 20] {
            let name = zstd_write_name(&digest);
            let committed = write(&client, parts(&name, &sent, 0, part_bytes)).await?;
            assert!([-1, i64::try_from(sent.len())?].contains(&committed), "{committed}");
        }
        assert!(client.missing([&digest]).await?.is_empty());
    }
    Ok(())
}

/// Decompression stops as soon as more comes out than the digest says; windows and padding are bounded.
#[tokio::test]
async fn cmp_09() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let bomb = zstd::encode_all(std::io::Read::take(std::io::repeat(0), 1 << 30), 3)?;
    for size in [FEW_BYTES, 1000, 1_000_000] {
        let data = unique(size);
        let digest = client.function().digest(&data);
        // Answered in the middle of the stream: it stays open.
        let name = zstd_write_name(&digest);
        let mut open = OpenWrite::begin(&client, part(&name, 0, &bomb, false));
        refused(open.answered().await, Code::InvalidArgument, &["more than", &size.to_string()]);
        let frames = [compressed(&data)?, bomb.clone()].concat();
        let mut open = OpenWrite::begin(&client, part(&zstd_write_name(&digest), 0, &frames, false));
        refused(open.answered().await, Code::InvalidArgument, &["more than"]);
        let padding = skippable(&vec![0; 3 << 20]);
        assert!(not_taken(&client, &digest, &padding).await?.message().contains("more compressed bytes"));
        let mut wide = zstd::Encoder::new(Vec::new(), 3)?;
        wide.window_log(27)?;
        wide.write_all(&data)?;
        not_taken(&client, &digest, &wide.finish()?).await?;
    }
    Ok(())
}

/// Plain and compressed uploads of one blob at once are one blob.
#[tokio::test]
async fn cmp_10() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let data = unique(1_000_000);
    let digest = client.function().digest(&data);
    let frames = compressed(&data)?;
    let upload = async |index: usize| {
        if index.is_multiple_of(2) {
            write(&client, parts(&client.write_name(&digest), &data, 0, 1 << 14)).await
        } else {
            write(&client, parts(&zstd_write_name(&digest), &frames, 0, 1 << 14)).await
        }
    };
    for (index, outcome) in futures::future::join_all((0..16).map(upload)).await.into_iter().enumerate() {
        let full = i64::try_from(if index.is_multiple_of(2) { data.len() } else { frames.len() })?;
        let committed = outcome?;
        assert!(committed == full || (index % 2 == 1 && committed == -1), "{index}: {committed}");
    }
    assert!(client.read(&digest).await? == data);
    Ok(())
}

/// The empty blob is read as an empty frame, and is here already for uploads.
#[tokio::test]
async fn cmp_11() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let digest = function.digest(b"");
        let frame = read(&client, &zstd_read_name(&digest), 0, 0).await?;
        assert!(!frame.is_empty());
        assert_eq!(zstd::decode_all(&frame[..])?, b"");
        assert_eq!(write_whole(&client, &zstd_write_name(&digest), &compressed(b"")?).await?, -1);
    }
    Ok(())
}

/// gRPC does not compress what is compressed, even for a client that would take it.
#[tokio::test]
async fn cmp_12() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let digest = client.put(b"again and ".repeat(10_000)).await?;
    for name in [client.read_name(&digest), zstd_read_name(&digest)] {
        let mut request = tonic::Request::new(ReadRequest { resource_name: name, ..Default::default() });
        request.metadata_mut().insert("grpc-accept-encoding", "gzip,deflate,zstd,identity".parse()?);
        let response = client.byte_stream().read(request).await?;
        let encoding = response.metadata().get("grpc-encoding");
        assert!(encoding.is_none_or(|encoding| encoding == "identity"), "{encoding:?}");
    }
    Ok(())
}
