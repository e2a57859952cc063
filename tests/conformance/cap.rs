//! `Capabilities`: what is announced is what is done.

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::DigestFunction;
use longshore_proto::reapi;
use longshore_proto::reapi::compressor::Value as Compressor;
use longshore_proto::reapi::digest_function::Value;
use longshore_proto::reapi::symlink_absolute_path_strategy::Value as Strategy;
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::tree::InputTree;
use tonic::Code;

use crate::support::{refused, run_anew, shared_client, succeeded, unique, wire_of};

async fn capabilities(client: &Client) -> Result<reapi::ServerCapabilities> {
    let request = reapi::GetCapabilitiesRequest::default();
    Ok(client.capabilities().get_capabilities(request).await?.into_inner())
}

async fn cache(client: &Client) -> Result<reapi::CacheCapabilities> {
    capabilities(client).await?.cache_capabilities.context("no cache_capabilities")
}

async fn execution(client: &Client) -> Result<reapi::ExecutionCapabilities> {
    capabilities(client).await?.execution_capabilities.context("no execution_capabilities")
}

/// An endpoint that caches and executes says both.
#[tokio::test]
async fn cap_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let capabilities = capabilities(&client).await?;
    assert!(capabilities.cache_capabilities.is_some() && capabilities.execution_capabilities.is_some());
    Ok(())
}

/// The functions that the cache lists work, and `UNKNOWN` is not among them.
#[tokio::test]
async fn cap_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let listed = cache(&client).await?.digest_functions;
    let mut expected = DigestFunction::ALL.map(wire_of).to_vec();
    expected.sort_unstable();
    let mut sorted = listed.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, expected);
    for value in listed {
        let function = DigestFunction::from_wire(value).context("a function that the kit computes")?;
        let client = client.with_function(function);
        let data = unique(1000);
        let digest = client.put(data.clone()).await?;
        assert_eq!(client.read(&digest).await?, data);
    }
    Ok(())
}

/// The one function for old clients is SHA-256, and is in the list for new ones, all of which execute.
#[tokio::test]
async fn cap_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let execution = execution(&client).await?;
    assert_eq!(execution.digest_function, i32::from(Value::Sha256));
    assert!(execution.digest_functions.contains(&execution.digest_function));
    assert!(!execution.digest_functions.contains(&Value::Unknown.into()));
    for value in execution.digest_functions {
        let function = DigestFunction::from_wire(value).context("a function that the kit computes")?;
        let response =
            run_anew(&client.with_function(function), &TestAction::shell("true").salt(unique(8))).await?;
        succeeded(&response);
    }
    Ok(())
}

/// `exec_enabled` is said where actions are executed.
#[tokio::test]
async fn cap_04() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    assert!(execution(&client).await?.exec_enabled);
    succeeded(&run_anew(&client, &TestAction::shell("true").salt(unique(8))).await?);
    Ok(())
}

/// The versions are in order, and begin at 2.0, which old clients require.
#[tokio::test]
async fn cap_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let capabilities = capabilities(&client).await?;
    let low = capabilities.low_api_version.context("no low_api_version")?;
    let high = capabilities.high_api_version.context("no high_api_version")?;
    assert_eq!((low.major, low.minor, low.patch, low.prerelease.as_str()), (2, 0, 0, ""));
    assert_eq!((high.major, high.prerelease.as_str()), (2, ""));
    assert!(high.minor >= 12, "what 2.12 brought is announced: {high:?}");
    assert_eq!(capabilities.deprecated_api_version, None);
    Ok(())
}

/// Updates of the action cache are announced as they are allowed.
#[tokio::test]
async fn cap_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let update = cache(&client).await?.action_cache_update_capabilities.context("no update capabilities")?;
    let action = TestAction::shell("true").salt(unique(8)).build(client.function());
    client.upload(&action.blobs).await?;
    let request = reapi::UpdateActionResultRequest {
        action_digest: Some(action.digest.to_wire()),
        action_result: Some(reapi::ActionResult::default()),
        ..Default::default()
    };
    assert_eq!(client.action_cache().update_action_result(request).await.is_ok(), update.update_enabled);
    Ok(())
}

/// The batch limit is the one that holds, and leaves room for digests in a message of 4 MiB.
#[tokio::test]
async fn cap_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let limit = usize::try_from(cache(&client).await?.max_batch_total_size_bytes)?;
    assert!((1 << 20..=(4 << 20) - (64 << 10)).contains(&limit), "{limit}");
    for (size, fits) in [(limit, true), (limit + 1, false)] {
        let data = unique(size);
        let digest = client.function().digest(&data);
        let entry = reapi::batch_update_blobs_request::Request {
            digest: Some(digest.to_wire()),
            data,
            ..Default::default()
        };
        let update = reapi::BatchUpdateBlobsRequest { requests: vec![entry], ..Default::default() };
        let read = reapi::BatchReadBlobsRequest { digests: vec![digest.to_wire()], ..Default::default() };
        let (updated, read) =
            (client.cas().batch_update_blobs(update).await, client.cas().batch_read_blobs(read).await);
        if fits {
            assert_eq!(updated?.into_inner().responses[0].status.clone().unwrap_or_default().code, 0);
            assert_eq!(read?.into_inner().responses[0].data.len(), limit);
        } else {
            refused(updated, Code::InvalidArgument, &[&limit.to_string()]);
            refused(read, Code::InvalidArgument, &[&limit.to_string()]);
        }
    }
    Ok(())
}

/// Absolute symlinks are announced as `ALLOWED`, and are: as inputs, as outputs and inside output directories.
#[tokio::test]
async fn cap_08() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    assert_eq!(cache(&client).await?.symlink_absolute_path_strategy, i32::from(Strategy::Allowed));
    let script = "readlink in && ln -s /absolute/target out && mkdir d && ln -s /absolute/other d/link";
    let action = TestAction::shell(script)
        .inputs(InputTree::new().symlink("in", "/no/such/place"))
        .outputs(["d", "out"])
        .salt(unique(8));
    let response = run_anew(&client, &action).await?;
    let result = succeeded(&response);
    assert_eq!(client.stdout(result).await?, "/no/such/place\n");
    assert_eq!(result.output_symlinks[0].target, "/absolute/target");
    assert_eq!(result.output_directories[0].path, "d");
    Ok(())
}

/// zstd is announced where it works.
#[tokio::test]
async fn cap_09() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let cache = cache(&client).await?;
    assert_eq!(cache.supported_batch_update_compressors, [i32::from(Compressor::Zstd)]);
    let data = unique(5000);
    let digest = client.function().digest(&data);
    let entry = reapi::batch_update_blobs_request::Request {
        digest: Some(digest.to_wire()),
        data: zstd::encode_all(&data[..], 1)?,
        compressor: Compressor::Zstd.into(),
    };
    let update = reapi::BatchUpdateBlobsRequest { requests: vec![entry], ..Default::default() };
    let response = client.cas().batch_update_blobs(update).await?.into_inner();
    assert_eq!(response.responses[0].status.clone().unwrap_or_default().code, 0);
    assert_eq!(client.read(&digest).await?, data);

    // Of streams: announced, or refused.
    let name = format!("compressed-blobs/zstd/{digest}");
    let request = longshore_proto::bytestream::ReadRequest { resource_name: name, ..Default::default() };
    let read = crate::support::all_of(client.byte_stream().read(request).await).await;
    if cache.supported_compressors.contains(&Compressor::Zstd.into()) {
        let compressed: Vec<_> = read?.into_iter().flat_map(|response| response.data).collect();
        assert_eq!(zstd::decode_all(&compressed[..])?, data);
    } else {
        refused(read, Code::InvalidArgument, &["zstd"]);
    }
    Ok(())
}

/// Every priority is announced, 0 among them, and taken.
#[tokio::test]
async fn cap_10() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let ranges =
        execution(&client).await?.execution_priority_capabilities.context("no priorities")?.priorities;
    assert!(ranges.iter().any(|range| range.min_priority <= 0 && 0 <= range.max_priority), "{ranges:?}");
    for range in ranges {
        for priority in [range.min_priority, 0, range.max_priority] {
            let action = TestAction::shell("true").salt(unique(8)).build(client.function());
            client.upload(&action.blobs).await?;
            let request = reapi::ExecuteRequest {
                action_digest: Some(action.digest.to_wire()),
                execution_policy: Some(reapi::ExecutionPolicy { priority }),
                ..Default::default()
            };
            let stream = client.execution().execute(request).await?.into_inner();
            succeeded(&longshore_tests::client::finished(stream).await?);
        }
    }
    Ok(())
}

/// The node properties that are announced are those that inputs are given.
#[tokio::test]
async fn cap_11() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    assert_eq!(execution(&client).await?.supported_node_properties, ["mtime", "unix_mode"]);
    let properties = reapi::NodeProperties {
        mtime: Some(longshore_proto::protobuf::Timestamp { seconds: 1_000_000_000, nanos: 500_000_000 }),
        unix_mode: Some(longshore_proto::protobuf::UInt32Value { value: 0o640 }),
        ..Default::default()
    };
    let inputs = InputTree::new().file_with("f", "content", properties);
    let action = TestAction::shell("stat -c '%a %Y' f").inputs(inputs).salt(unique(8));
    let response = run_anew(&client, &action).await?;
    assert_eq!(client.stdout(succeeded(&response)).await?, "640 1000000000\n");
    Ok(())
}

/// The largest blob is announced; chunked blobs are not, and are `UNIMPLEMENTED`.
#[tokio::test]
async fn cap_12() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let cache = cache(&client).await?;
    assert!(cache.max_cas_blob_size_bytes > cache.max_batch_total_size_bytes);
    assert!(!cache.split_blob_support && !cache.splice_blob_support);
    assert!(cache.fast_cdc_2020_params.is_none() && cache.rep_max_cdc_params.is_none());
    let digest = client.put(unique(100)).await?;
    let split = reapi::SplitBlobRequest { blob_digest: Some(digest.to_wire()), ..Default::default() };
    refused(client.cas().split_blob(split).await, Code::Unimplemented, &[]);
    let splice = reapi::SpliceBlobRequest { blob_digest: Some(digest.to_wire()), ..Default::default() };
    refused(client.cas().splice_blob(splice).await, Code::Unimplemented, &[]);
    Ok(())
}

/// An instance that nobody has configured is answered like any other; a malformed name is `INVALID_ARGUMENT`.
///
/// Deviation: there is nothing to configure. Each name is an instance with an action cache of its own, so that a
/// client's `--remote_instance_name` needs no counterpart here.
#[tokio::test]
async fn cap_13() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let of = |name: &str| {
        let request = reapi::GetCapabilitiesRequest { instance_name: name.to_owned() };
        let mut capabilities = client.capabilities();
        async move { capabilities.get_capabilities(request).await }
    };
    let expected = capabilities(&client).await?;
    for name in ["unheard-of", "a/b/c", "ünïcode"] {
        assert_eq!(of(name).await?.into_inner(), expected);
    }
    for name in ["blobs", "a/actions", "a//b"] {
        refused(of(name).await, Code::InvalidArgument, &["instance_name", name]);
    }
    Ok(())
}
