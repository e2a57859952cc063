//! Names that are none: with `..`, with percent signs, of a mebibyte.

use anyhow::{Context as _, Result, ensure};
use longshore_proto::{bytestream, longrunning, reapi};
use tonic::{Code, Status};

use super::{Target, refused};

/// The longest message of a status: names are shortened in it.
const STATUS_BYTES_MAX: usize = 16 << 10;

const LONG: usize = 1 << 20;

// A name is data: it reaches no path, and its length costs nobody anything.
#[tokio::test]
async fn resource_names_that_are_none_are_refused() -> Result<()> {
    let target = Target::start().await?;
    let client = target.longshore.client().await?;
    let hash = "a".repeat(64);
    // Each with what is wrong with it for a read, and behind an upload's name for a write.
    let cases = [
        ("../../../etc/passwd".to_owned(), "has no segment blobs", "has no segment blobs"),
        (format!("blobs/../blobs/{hash}/1"), "has no valid size", "has no valid size"),
        (format!("../blobs/{hash}/../1"), "has no valid size", "has no segment blobs"),
        (format!("blobs/{hash}/1/../../../x"), "has segments behind the size", "does not match"),
        (format!("blobs/{hash}/../../1"), "has no valid size", "has no valid size"),
        ("blobs/%2e%2e%2fetc%2fpasswd/1".to_owned(), "characters", "characters"),
        (format!("blobs%2f{hash}%2f1"), "has no segment blobs", "has no segment blobs"),
        (format!("blobs/{hash}/%31"), "has no valid size", "has no valid size"),
        (format!("blobs/{hash}%00/1"), "characters", "characters"),
        (format!("blobs/{}/1", "a".repeat(LONG)), "bytes long", "bytes long"),
        ("/".repeat(LONG), "bytes long", "bytes long"),
        ("%".repeat(LONG), "bytes long", "bytes long"),
        ("../".repeat(LONG / 3), "bytes long", "bytes long"),
    ];
    for (name, wrong_read, wrong_write) in cases {
        let shown = name.get(..40).unwrap_or(&name).to_owned();
        let read = bytestream::ReadRequest { resource_name: name.clone(), ..Default::default() };
        let outcome = client.byte_stream().read(read).await;
        is_refused(outcome, wrong_read).with_context(|| format!("read {shown}"))?;
        let name = format!("uploads/{}/{name}", uuid::Uuid::new_v4());
        let write = bytestream::WriteRequest {
            resource_name: name.clone(),
            data: b"x".to_vec(),
            finish_write: true,
            ..Default::default()
        };
        let outcome = client.byte_stream().write(tokio_stream::once(write)).await;
        is_refused(outcome, wrong_write).with_context(|| format!("write {shown}"))?;
        let ask = bytestream::QueryWriteStatusRequest { resource_name: name };
        let outcome = client.byte_stream().query_write_status(ask).await;
        // What stands behind the size of an upload is the client's own matter: the upload is only not there.
        if wrong_write == "does not match" {
            refused(outcome, Code::NotFound, "is not in the store")?;
        } else {
            is_refused(outcome, wrong_write).with_context(|| format!("ask after {shown}"))?;
        }
    }
    drop(client);
    target.leaves_nothing().await
}

// Nor do the names of instances and operations, wherever they stand.
#[tokio::test]
async fn other_names_that_are_none_are_refused() -> Result<()> {
    let target = Target::start().await?;
    let client = target.longshore.client().await?;
    let digest = client.function().digest(b"x").to_wire();
    for instance_name in ["/".repeat(LONG), "../blobs".to_owned(), "a".repeat(LONG)] {
        let request = reapi::FindMissingBlobsRequest {
            instance_name: instance_name.clone(),
            blob_digests: vec![digest.clone()],
            ..Default::default()
        };
        is_refused(client.cas().find_missing_blobs(request).await, "instance_name")?;
        let request = reapi::ExecuteRequest {
            instance_name,
            action_digest: Some(digest.clone()),
            ..Default::default()
        };
        is_refused(client.execution().execute(request).await, "instance_name")?;
    }
    for name in ["operations/../..".to_owned(), "%".repeat(LONG), "a/".repeat(LONG / 2)] {
        let wait = reapi::WaitExecutionRequest { name: name.clone() };
        refused(client.execution().wait_execution(wait).await, Code::NotFound, "there is no operation")?;
        let get = longrunning::GetOperationRequest { name };
        let outcome = client.operations().get_operation(get).await;
        refused(outcome, Code::NotFound, "there is no operation")?;
    }
    let request = reapi::FindMissingBlobsRequest {
        blob_digests: vec![reapi::Digest { hash: "f".repeat(LONG), size_bytes: 1 }],
        ..Default::default()
    };
    is_refused(client.cas().find_missing_blobs(request).await, "blob_digests[0]")?;
    drop(client);
    target.leaves_nothing().await
}

/// Checks the code, the reason, and that the name does not come back in full.
fn is_refused<T>(outcome: Result<T, Status>, reason: &str) -> Result<()> {
    if let Err(status) = &outcome {
        ensure!(status.message().len() <= STATUS_BYTES_MAX, "{} bytes", status.message().len());
    }
    refused(outcome, Code::InvalidArgument, reason)
}
