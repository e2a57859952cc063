//! Resource names of ByteStream.

use anyhow::Result;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::bytestream::byte_stream_client::ByteStreamClient;
use longshore_proto::bytestream::{QueryWriteStatusRequest, ReadRequest};
use longshore_tests::client::Client;
use tonic::{Code, Status};

use crate::streams::{ask, part, read, tail, write, write_whole, zstd_read_name};
use crate::support::{WithHeaders, refused, shared_client, unique};

/// Instance names as they stand in a resource name.
const INSTANCES: [&str; 4] = ["", "main/", "a/b/c/", "with space/\u{fc}mlaut/%20/../"];

/// The segments that no instance name has.
const RESERVED: [&str; 7] =
    ["blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs"];

const HEADER: &str = "build.bazel.remote.execution.v2.resource-name";

async fn refuse_read(client: &Client, name: &str) -> Status {
    refused(read(client, name, 0, 0).await, Code::InvalidArgument, &["resource_name"])
}

async fn refuse_write(client: &Client, name: &str) -> Status {
    refused(write(client, vec![part(name, 0, b"x", true)]).await, Code::InvalidArgument, &["resource_name"]);
    refused(ask(client, name).await, Code::InvalidArgument, &["resource_name"])
}

/// A blob that is here, and its digest.
async fn blob(client: &Client) -> Result<(Vec<u8>, Digest)> {
    let data = unique(100);
    let digest = client.put(data.clone()).await?;
    Ok((data, digest))
}

/// Uploads are named `[{instance}/]uploads/{uuid}/blobs/[{digest_function}/]{hash}/{size}`.
#[tokio::test]
async fn rn_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        for instance in INSTANCES {
            let data = unique(100);
            let digest = function.digest(&data);
            let name = format!("{instance}{}", client.write_name(&digest));
            assert_eq!(write_whole(&client, &name, &data).await?, 100, "{name}");
            assert_eq!(client.read(&digest).await?, data);
            assert_eq!(ask(&client, &name).await?, (100, true));
        }
    }
    Ok(())
}

/// Compressed uploads have `compressed-blobs/{compressor}` for `blobs`, and the digest of what is not compressed.
#[tokio::test]
async fn rn_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        for (instance, metadata) in INSTANCES.into_iter().zip(["", "/a", "/a/b", "/"]) {
            let data = unique(100);
            let digest = function.digest(&data);
            let name = format!("{instance}uploads/some-id/{}{metadata}", zstd_read_name(&digest));
            let compressed = zstd::encode_all(&data[..], 3)?;
            let committed = write_whole(&client, &name, &compressed).await?;
            assert_eq!(committed, i64::try_from(compressed.len())?, "{name}");
            assert_eq!(client.read(&digest).await?, data);
            assert!(ask(&client, &name).await?.1);
        }
    }
    Ok(())
}

/// Downloads are named `[{instance}/]blobs/...` or `[{instance}/]compressed-blobs/{compressor}/...`.
#[tokio::test]
async fn rn_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let (data, digest) = blob(&client).await?;
        for instance in INSTANCES {
            let name = format!("{instance}blobs/{}", tail(&digest));
            assert_eq!(read(&client, &name, 0, 0).await?, data, "{name}");
            let name = format!("{instance}{}", zstd_read_name(&digest));
            assert_eq!(zstd::decode_all(&read(&client, &name, 0, 0).await?[..])?, data, "{name}");
        }
    }
    Ok(())
}

/// Without an instance name there is no slash in front; one is `INVALID_ARGUMENT`.
#[tokio::test]
async fn rn_04() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (_, digest) = blob(&client).await?;
    for slashes in ["/", "//", "main//", "/main/"] {
        for name in [format!("blobs/{digest}"), zstd_read_name(&digest)] {
            refuse_read(&client, &format!("{slashes}{name}")).await;
            refuse_write(&client, &format!("{slashes}uploads/id/{name}")).await;
        }
    }
    Ok(())
}

/// An instance name has any number of segments, none of which is a keyword.
#[tokio::test]
async fn rn_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (data, digest) = blob(&client).await?;
    for reserved in RESERVED {
        for instance in [reserved.to_owned(), format!("a/{reserved}"), format!("a/{reserved}/b")] {
            for name in [format!("blobs/{digest}"), zstd_read_name(&digest)] {
                refuse_read(&client, &format!("{instance}/{name}")).await;
                refuse_write(&client, &format!("{instance}/uploads/id/{name}")).await;
            }
        }
    }
    // What only looks like one is none.
    for instance in ["Blobs", "blob", "uploads2", "action", "a/".repeat(200).trim_end_matches('/')] {
        let name = format!("{instance}/blobs/{digest}");
        assert_eq!(read(&client, &name, 0, 0).await?, data, "{name}");
        assert_eq!(ask(&client, &format!("{instance}/uploads/id/blobs/{digest}")).await?, (100, true));
    }
    Ok(())
}

/// The digest function is named where it is newer than the names are, in lowercase; for the old ones it is refused.
#[tokio::test]
async fn rn_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let (data, digest) = blob(&client).await?;
        let named = format!("blobs/{}/{digest}", function.name());
        if function == DigestFunction::Blake3 {
            assert_eq!(read(&client, &named, 0, 0).await?, data);
            // Without the name it is a SHA-256, of which nobody has heard.
            let status = read(&client, &format!("blobs/{digest}"), 0, 0).await;
            refused(status, Code::NotFound, &[&digest.hash_hex()]);
        } else {
            let status = refuse_read(&client, &named).await;
            assert!(status.message().contains(function.name()), "{status:?}");
            refuse_write(&client, &format!("uploads/id/{named}")).await;
        }
        for other in
            ["BLAKE3", "Blake3", "sha256tree", "gitsha1", "md5", "vso", "murmur3", "unknown", "", "9"]
        {
            refuse_read(&client, &format!("blobs/{other}/{digest}")).await;
            refuse_read(&client, &format!("compressed-blobs/zstd/{other}/{digest}")).await;
            refuse_write(&client, &format!("uploads/id/blobs/{other}/{digest}")).await;
        }
    }
    Ok(())
}

/// Whatever follows the size in the name of an upload is ignored.
#[tokio::test]
async fn rn_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for metadata in
        ["/x", "/some/file.txt", "/blobs/uploads/actions", "/../../..", "/%2e%2e", "/", "///", "/\u{1f600}"]
    {
        let data = unique(100);
        let name = format!("{}{metadata}", client.write_name(&client.function().digest(&data)));
        assert_eq!(write_whole(&client, &name, &data).await?, 100, "{name}");
        assert_eq!(ask(&client, &name).await?, (100, true));
    }
    Ok(())
}

/// Whatever follows the size in the name of a download is `INVALID_ARGUMENT`.
#[tokio::test]
async fn rn_08() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (_, digest) = blob(&client).await?;
    for trail in ["/", "/x", "/some/file.txt", "/.."] {
        refuse_read(&client, &format!("blobs/{digest}{trail}")).await;
        refuse_read(&client, &format!("{}{trail}", zstd_read_name(&digest))).await;
    }
    Ok(())
}

/// The upload id is any segment that is not empty, and may be used for several blobs, even at once.
#[tokio::test]
async fn rn_09() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for id in ["x", "not a uuid", "..", "%00", "blobs", "uploads", "00000000-0000-0000-0000-000000000000"] {
        let blobs: Vec<_> = (0..4).map(|_| unique(1000)).collect();
        let upload = async |data: &Vec<u8>| {
            let digest = client.function().digest(data);
            write_whole(&client, &format!("uploads/{id}/blobs/{digest}"), data).await
        };
        for outcome in futures::future::join_all(blobs.iter().map(upload)).await {
            assert_eq!(outcome?, 1000, "{id}");
        }
    }
    let digest = client.function().digest(b"x");
    refuse_write(&client, &format!("uploads//blobs/{digest}")).await;
    refuse_write(&client, &format!("uploads/a/b/blobs/{digest}")).await;
    Ok(())
}

/// Any other layout is `INVALID_ARGUMENT`, and so is a size that is none.
#[tokio::test]
async fn rn_10() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (_, digest) = blob(&client).await?;
    let hash = digest.hash_hex();
    for size in [
        "",
        "-1",
        "+100",
        "100 ",
        " 100",
        "1e2",
        "0x64",
        "100.0",
        "9223372036854775808",
        "1".repeat(40).as_str(),
    ] {
        refuse_read(&client, &format!("blobs/{hash}/{size}")).await;
        refuse_write(&client, &format!("uploads/id/blobs/{hash}/{size}")).await;
    }
    for name in [
        "",
        "/",
        "main",
        "blobs",
        "blobs/",
        "blobs//",
        "blobs/{}",
        "blobs/{}/",
        "{}/100",
        "files/{}/100",
        "main/{}/100",
        "blobs/main/{}/100",
        "blobs/100/{}",
        "blobs/../{}/100",
        "blobs%2F{}%2F100",
        "compressed-blobs/{}/100",
        "compressed-blobs/zstd",
        "compressed-blobs/zstd/{}",
        "compressed-blobs/zstd/blobs/{}/100",
    ] {
        let name = name.replace("{}", &hash);
        refuse_read(&client, &name).await;
        refuse_write(&client, &name).await;
        refuse_write(&client, &format!("uploads/id/{name}")).await;
        refuse_write(&client, &format!("uploads/{name}")).await;
    }
    // What is read cannot be written to, and the other way round.
    refuse_write(&client, &format!("blobs/{digest}")).await;
    refuse_read(&client, &format!("uploads/id/blobs/{digest}")).await;
    // An old size with zeros in front is the same number.
    assert_eq!(read(&client, &format!("blobs/{hash}/0100"), 0, 0).await?.len(), 100);
    Ok(())
}

/// `identity` and compressors that are not announced are `INVALID_ARGUMENT` in a name.
#[tokio::test]
async fn rn_11() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (_, digest) = blob(&client).await?;
    for compressor in ["identity", "deflate", "brotli", "gzip", "ZSTD", "Zstd", "zstd ", "", "2"] {
        let name = format!("compressed-blobs/{compressor}/{digest}");
        let status = refuse_read(&client, &name).await;
        assert!(status.message().contains("compressor"), "{status:?}");
        refuse_write(&client, &format!("uploads/id/{name}")).await;
    }
    Ok(())
}

/// A header with the resource name has to agree with the message; it need not be there.
#[tokio::test]
async fn rn_12() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (data, digest) = blob(&client).await?;
    let read_name = client.read_name(&digest);
    let write_name = client.write_name(&digest);
    for (header, of_read, of_write) in [
        (read_name.as_str(), true, false),
        (write_name.as_str(), false, true),
        ("", false, false),
        ("blobs", false, false),
    ] {
        let mut byte_stream = ByteStreamClient::new(WithHeaders::new(&client, &[(HEADER, header)])?);
        let request = ReadRequest { resource_name: read_name.clone(), ..Default::default() };
        let read = byte_stream.read(request).await.map(drop);
        let request = QueryWriteStatusRequest { resource_name: write_name.clone() };
        let asked = byte_stream.query_write_status(request).await.map(drop);
        let requests = vec![part(&write_name, 0, &data, true)];
        let written = byte_stream.write(futures::stream::iter(requests)).await.map(drop);
        for (outcome, agrees) in [(read, of_read), (asked, of_write), (written, of_write)] {
            if agrees {
                outcome?;
            } else {
                refused(outcome, Code::InvalidArgument, &["resource_name", "header"]);
            }
        }
    }
    Ok(())
}
