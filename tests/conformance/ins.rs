//! Instance names.

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::Digest;
use longshore_proto::{bytestream, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::{Client, finished};
use tonic::{Code, Status};

use crate::support::{absent, all_of, refused, shared_client, succeeded, unique};

/// Every method that takes an instance name, each with its answer: an error, or nothing.
async fn every_method(
    client: &Client,
    instance: &str,
    blob: &Digest,
    action: &Digest,
) -> Vec<(&'static str, Result<(), Status>)> {
    let instance_name = instance.to_owned();
    let name = || instance_name.clone();
    let capabilities = reapi::GetCapabilitiesRequest { instance_name: name() };
    let find = reapi::FindMissingBlobsRequest {
        instance_name: name(),
        blob_digests: vec![blob.to_wire()],
        ..Default::default()
    };
    let update = reapi::BatchUpdateBlobsRequest { instance_name: name(), ..Default::default() };
    let read = reapi::BatchReadBlobsRequest {
        instance_name: name(),
        digests: vec![blob.to_wire()],
        ..Default::default()
    };
    let tree = reapi::GetTreeRequest {
        instance_name: name(),
        root_digest: Some(Digest::empty(client.function()).to_wire()),
        ..Default::default()
    };
    let result = reapi::UpdateActionResultRequest {
        instance_name: name(),
        action_digest: Some(action.to_wire()),
        action_result: Some(reapi::ActionResult::default()),
        ..Default::default()
    };
    let get = reapi::GetActionResultRequest {
        instance_name: name(),
        action_digest: Some(action.to_wire()),
        ..Default::default()
    };
    let execute = reapi::ExecuteRequest {
        instance_name: name(),
        action_digest: Some(action.to_wire()),
        ..Default::default()
    };
    vec![
        ("GetCapabilities", client.capabilities().get_capabilities(capabilities).await.map(drop)),
        ("FindMissingBlobs", client.cas().find_missing_blobs(find).await.map(drop)),
        ("BatchUpdateBlobs", client.cas().batch_update_blobs(update).await.map(drop)),
        ("BatchReadBlobs", client.cas().batch_read_blobs(read).await.map(drop)),
        ("GetTree", all_of(client.cas().get_tree(tree).await).await.map(drop)),
        ("UpdateActionResult", client.action_cache().update_action_result(result).await.map(drop)),
        ("GetActionResult", client.action_cache().get_action_result(get).await.map(drop)),
        ("Execute", all_of(client.execution().execute(execute).await).await.map(drop)),
    ]
}

/// ByteStream's methods, for a blob that is present.
async fn every_stream(
    client: &Client,
    instance: &str,
    blob: &Digest,
) -> Vec<(&'static str, Result<(), Status>)> {
    let prefix = if instance.is_empty() { String::new() } else { format!("{instance}/") };
    let read =
        bytestream::ReadRequest { resource_name: format!("{prefix}blobs/{blob}"), ..Default::default() };
    let upload = format!("{prefix}uploads/{}/blobs/{blob}", uuid::Uuid::new_v4());
    let write = bytestream::WriteRequest { resource_name: upload, finish_write: true, ..Default::default() };
    vec![
        ("Read", all_of(client.byte_stream().read(read).await).await.map(drop)),
        ("Write", client.byte_stream().write(futures::stream::iter([write])).await.map(drop)),
    ]
}

async fn stored(client: &Client) -> Result<(Digest, Digest)> {
    let action = TestAction::shell("true").salt(unique(8)).build(client.function());
    client.upload(&action.blobs).await?;
    Ok((client.put(unique(10)).await?, action.digest))
}

#[track_caller]
fn all_refused(answers: Vec<(&'static str, Result<(), Status>)>, words: &[&str], name: &str) {
    for (method, answer) in answers {
        let status = answer.err().unwrap_or_else(|| panic!("{method} takes {name:?}"));
        assert_eq!(status.code(), Code::InvalidArgument, "{method}: {status:?}");
        for word in words {
            assert!(status.message().contains(word), "{method}: {:?} lacks {word:?}", status.message());
        }
    }
}

/// The same names are taken by every method, the empty one among them.
#[tokio::test]
async fn ins_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (blob, action) = stored(&client).await?;
    let long = "n".repeat(1000);
    for name in
        ["", "main", "a/b/c", "with space", "%2e%2e", "ünïcode", "Blobs", "blob", "operations2", &long]
    {
        let mut answers = every_method(&client, name, &blob, &action).await;
        answers.extend(every_stream(&client, name, &blob).await);
        for (method, answer) in answers {
            assert!(answer.is_ok(), "{method} refuses {name:?}: {answer:?}");
        }
    }
    Ok(())
}

/// A segment that resource names use is `INVALID_ARGUMENT`, wherever it stands.
#[tokio::test]
async fn ins_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (blob, action) = stored(&client).await?;
    for word in
        ["blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs"]
    {
        for name in [word.to_owned(), format!("a/{word}"), format!("{word}/a"), format!("a/{word}/b")] {
            all_refused(every_method(&client, &name, &blob, &action).await, &["instance_name", word], &name);
        }
        // In front of a resource name the segments that begin one cut the instance name off.
        if !["blobs", "uploads", "compressed-blobs"].contains(&word) {
            for name in [word.to_owned(), format!("a/{word}"), format!("{word}/a")] {
                all_refused(every_stream(&client, &name, &blob).await, &[word], &name);
            }
        }
    }
    Ok(())
}

/// A slash at either end, or two in a row, is `INVALID_ARGUMENT`.
#[tokio::test]
async fn ins_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (blob, action) = stored(&client).await?;
    for name in ["/", "//", "/a", "a/", "a//b", "a/b//", "//a"] {
        all_refused(every_method(&client, name, &blob, &action).await, &["instance_name", name], name);
        all_refused(every_stream(&client, name, &blob).await, &[name], name);
    }
    // And one that is longer than any name needs to be.
    let long = "n".repeat(1 << 20);
    all_refused(every_method(&client, &long, &blob, &action).await, &["instance_name", "1048576"], "1 MiB");
    all_refused(every_stream(&client, &long, &blob).await, &["resource_name"], "1 MiB");
    Ok(())
}

/// An instance that nobody has heard of works like any other, in every method.
///
/// Deviation: there are no instances to configure; each valid name has an action cache of its own over the one store.
#[tokio::test]
async fn ins_04() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (blob, action) = stored(&client).await?;
    let unheard = format!("unheard-of/{}", uuid::Uuid::new_v4());
    for (method, answer) in every_method(&client, &unheard, &blob, &action).await {
        assert!(answer.is_ok(), "{method}: {answer:?}");
    }
    Ok(())
}

/// Results are never shared between instances, by lookup or by execution; blobs are.
#[tokio::test]
async fn ins_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let action = TestAction::shell("cat /proc/sys/kernel/random/uuid > out").outputs(["out"]).salt(unique(8));
    let action = action.build(client.function());
    client.upload(&action.blobs).await?;
    let execute = async |instance: &str| {
        let request = reapi::ExecuteRequest {
            instance_name: instance.to_owned(),
            action_digest: Some(action.digest.to_wire()),
            ..Default::default()
        };
        finished(client.execution().execute(request).await?.into_inner()).await
    };
    let get = async |instance: &str| {
        let request = reapi::GetActionResultRequest {
            instance_name: instance.to_owned(),
            action_digest: Some(action.digest.to_wire()),
            ..Default::default()
        };
        client.action_cache().get_action_result(request).await.map(tonic::Response::into_inner)
    };
    // At the same time: they are not one execution either.
    let (one, two) = tokio::join!(execute("one"), execute("one/two"));
    let (one, two) = (one?, two?);
    assert!(!one.cached_result && !two.cached_result);
    assert_ne!(succeeded(&one).output_files, succeeded(&two).output_files);
    assert_eq!(get("one").await?.output_files, succeeded(&one).output_files);
    assert_eq!(get("one/two").await?.output_files, succeeded(&two).output_files);
    for other in ["", "two", "one/"] {
        let code = if other == "one/" { Code::InvalidArgument } else { Code::NotFound };
        refused(get(other).await, code, &[]);
    }
    assert!(execute("one").await?.cached_result);
    Ok(())
}

/// The instance in a resource name is the one of the request fields: both see the same blobs.
#[tokio::test]
async fn ins_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let data = unique(100);
    let digest = client.function().digest(&data);
    let write = bytestream::WriteRequest {
        resource_name: format!("one/two/uploads/{}/blobs/{digest}", uuid::Uuid::new_v4()),
        finish_write: true,
        data: data.clone(),
        ..Default::default()
    };
    client.byte_stream().write(futures::stream::iter([write])).await?;
    let read = reapi::BatchReadBlobsRequest {
        instance_name: "one/two".to_owned(),
        digests: vec![digest.to_wire()],
        ..Default::default()
    };
    assert_eq!(client.cas().batch_read_blobs(read).await?.into_inner().responses[0].data, data);
    let read =
        bytestream::ReadRequest { resource_name: format!("one/two/blobs/{digest}"), ..Default::default() };
    let chunks = all_of(client.byte_stream().read(read).await).await?;
    assert_eq!(chunks.into_iter().next().context("a chunk")?.data, data);
    // A blob that is nowhere is nowhere in both.
    let lost = absent(client.function());
    let read =
        bytestream::ReadRequest { resource_name: format!("one/two/blobs/{lost}"), ..Default::default() };
    refused(all_of(client.byte_stream().read(read).await).await, Code::NotFound, &[]);
    Ok(())
}
