//! What each version of REAPI brought.

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::reapi::compressor::Value as Compressor;
use longshore_proto::reapi::digest_function::Value;
use longshore_proto::{Message as _, bytestream, protobuf, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::tree::InputTree;
use tonic::{Code, Request};

use crate::support::{all_of, answer_to, refused, run_anew, shared_client, succeeded, unique, wire_of};

async fn capabilities(client: &Client) -> Result<reapi::ServerCapabilities> {
    let request = reapi::GetCapabilitiesRequest::default();
    Ok(client.capabilities().get_capabilities(request).await?.into_inner())
}

/// The metadata of every update of an execution.
async fn updates(client: &Client, action: &TestAction) -> Result<Vec<reapi::ExecuteOperationMetadata>> {
    let blobs = action.build(client.function());
    client.upload(&blobs.blobs).await?;
    let operations = all_of(client.start(&blobs.digest, true).await.map(tonic::Response::new)).await?;
    let metadata = operations.iter().map(|operation| {
        let any = operation.metadata.as_ref().context("no metadata")?;
        Ok(reapi::ExecuteOperationMetadata::decode(any.value.as_slice())?)
    });
    metadata.collect()
}

/// 2.0: outputs by `output_files` and `output_directories`, their links in lists of their own, SHA-1 to SHA-512.
#[tokio::test]
#[expect(deprecated, reason = "this is what 2.0 has")]
async fn v_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in
        [DigestFunction::Sha256, DigestFunction::Sha1, DigestFunction::Sha384, DigestFunction::Sha512]
    {
        let client = client.with_function(function);
        let script = "echo f > f; mkdir d; echo x > d/x; ln -s f lf; ln -s d ld";
        let mut action = TestAction::shell(script).salt(unique(8));
        action.command.output_files = vec!["f".to_owned(), "lf".to_owned()];
        action.command.output_directories = vec!["d".to_owned(), "ld".to_owned()];
        let response = run_anew(&client, &action).await?;
        let result = succeeded(&response);
        assert_eq!(client.output_file(result, "f").await?, "f\n");
        assert_eq!(result.output_directories[0].path, "d");
        assert_eq!(
            (&result.output_file_symlinks[0].path[..], &result.output_file_symlinks[0].target[..]),
            ("lf", "f")
        );
        let link = &result.output_directory_symlinks[0];
        assert_eq!((&link.path[..], &link.target[..]), ("ld", "d"));
        assert!(result.output_symlinks.is_empty());
    }
    Ok(())
}

/// 2.1: `output_paths` of any kind, and one list for links.
#[tokio::test]
async fn v_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let script = "echo f > f; mkdir d; ln -s nowhere l";
    let response =
        run_anew(&client, &TestAction::shell(script).outputs(["d", "f", "l"]).salt(unique(8))).await?;
    let result = succeeded(&response);
    assert_eq!((result.output_files.len(), result.output_directories.len()), (1, 1));
    assert_eq!(
        (&result.output_symlinks[0].path[..], &result.output_symlinks[0].target[..]),
        ("l", "nowhere")
    );
    Ok(())
}

/// 2.2: salt, times and modes of inputs, and the empty blob that is always present.
#[tokio::test]
async fn v_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let properties = reapi::NodeProperties {
        mtime: Some(protobuf::Timestamp { seconds: 1_234_567_890, nanos: 0 }),
        unix_mode: Some(protobuf::UInt32Value { value: 0o600 }),
        ..Default::default()
    };
    let inputs = InputTree::new().file_with("f", "x", properties);
    let mut digests = Vec::new();
    for _ in 0..2 {
        let action = TestAction::shell("stat -c '%a %Y' f").inputs(inputs.clone()).salt(unique(8));
        let response = client.run(&action).await?;
        assert!(!response.cached_result, "another salt is another action");
        assert_eq!(client.stdout(succeeded(&response)).await?, "600 1234567890\n");
        digests.push(action.build(client.function()).digest);
    }
    assert_ne!(digests[0], digests[1]);
    assert_eq!(client.missing([&Digest::empty(client.function())]).await?, []);
    Ok(())
}

/// 2.3: compressed batches, metadata behind an upload's name, `virtual_execution_duration`, argv[0] by PATH.
#[tokio::test]
async fn v_04() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let cache = capabilities(&client).await?.cache_capabilities.context("no cache")?;
    assert!(cache.supported_batch_update_compressors.contains(&Compressor::Zstd.into()));
    let data = unique(100);
    let digest = client.function().digest(&data);
    let write = bytestream::WriteRequest {
        resource_name: format!("{}/any/metadata", client.write_name(&digest)),
        finish_write: true,
        data: data.clone(),
        ..Default::default()
    };
    let response = client.byte_stream().write(futures::stream::iter([write])).await?.into_inner();
    assert_eq!(response.committed_size, 100);
    assert_eq!(client.read(&digest).await?, data);
    let inputs = InputTree::new().executable("tools/only-here", "#!/bin/sh\necho found\n");
    let action = TestAction::new(["only-here"]).environment("PATH", "tools").inputs(inputs).salt(unique(8));
    let response = run_anew(&client, &action).await?;
    let result = succeeded(&response);
    assert_eq!(client.stdout(result).await?, "found\n");
    let metadata = result.execution_metadata.as_ref().context("no metadata")?;
    assert!(metadata.virtual_execution_duration.is_some());
    Ok(())
}

/// 2.4: trees that are sorted topologically, and say so.
#[tokio::test]
async fn v_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let script = "mkdir -p d/a/b d/c; echo x > d/a/b/x";
    let response = run_anew(&client, &TestAction::shell(script).outputs(["d"]).salt(unique(8))).await?;
    let directory = &succeeded(&response).output_directories[0];
    assert!(directory.is_topologically_sorted);
    let tree = Digest::from_wire(client.function(), directory.tree_digest.as_ref())?;
    let tree = reapi::Tree::decode(client.read(&tree).await?)?;
    let mut known = vec![tree.root.context("a root")?];
    for child in tree.children {
        let digest = client.function().digest(&child.encode_to_vec()).to_wire();
        let has = |parent: &reapi::Directory| {
            parent.directories.iter().any(|node| node.digest.as_ref() == Some(&digest))
        };
        assert!(known.iter().any(has), "a child comes behind one of its parents");
        known.push(child);
    }
    Ok(())
}

/// 2.5: the function is named in requests, and in resource names where its hashes do not imply it.
#[tokio::test]
async fn v_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let blake3 = client.with_function(DigestFunction::Blake3);
    let data = unique(100);
    let digest = blake3.put(data.clone()).await?;
    let read = |resource_name: String| {
        let mut byte_stream = client.byte_stream();
        async move {
            all_of(byte_stream.read(bytestream::ReadRequest { resource_name, ..Default::default() }).await)
                .await
        }
    };
    assert_eq!(read(format!("blobs/blake3/{digest}")).await?[0].data, data);
    refused(read(format!("blobs/{digest}")).await, Code::NotFound, &[]);
    refused(read(format!("blobs/sha256/{digest}")).await, Code::InvalidArgument, &["sha256"]);
    Ok(())
}

/// 2.6: what is known so far comes with the updates of an action that runs.
#[tokio::test]
async fn v_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let updates = updates(&client, &TestAction::shell("sleep 0.2").salt(unique(8))).await?;
    let executing = i32::from(reapi::execution_stage::Value::Executing);
    let partial = updates.iter().filter(|update| update.stage == executing);
    let partial = partial.filter_map(|update| update.partial_execution_metadata.as_ref()).next_back();
    let partial = partial.context("no update while it ran")?;
    assert!(!partial.worker.is_empty() && partial.queued_timestamp.is_some());
    assert!(partial.worker_completed_timestamp.is_none(), "nothing is said of what is to come");
    Ok(())
}

/// 2.7: executions by several functions.
#[tokio::test]
async fn v_08() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let execution = capabilities(&client).await?.execution_capabilities.context("no execution")?;
    for function in DigestFunction::ALL {
        assert!(execution.digest_functions.contains(&wire_of(function)), "{function}");
        succeeded(
            &run_anew(&client.with_function(function), &TestAction::shell("true").salt(unique(8))).await?,
        );
    }
    Ok(())
}

/// 2.8: output directories as trees, as directories or as both; BLAKE3.
#[tokio::test]
async fn v_09() -> Result<()> {
    use reapi::command::OutputDirectoryFormat as Format;
    let (_longshore, client) = shared_client().await?;
    for function in [DigestFunction::Blake3, DigestFunction::Sha256] {
        let client = client.with_function(function);
        for format in [Format::TreeOnly, Format::DirectoryOnly, Format::TreeAndDirectory] {
            let mut action = TestAction::shell("mkdir d; echo x > d/x").outputs(["d"]).salt(unique(8));
            action.command.output_directory_format = format.into();
            let response = run_anew(&client, &action).await?;
            let directory = &succeeded(&response).output_directories[0];
            assert!(directory.tree_digest.is_some() || format == Format::DirectoryOnly);
            assert_eq!(directory.root_directory_digest.is_some(), format != Format::TreeOnly);
            if let Some(root) = &directory.root_directory_digest {
                let root = client.read(&Digest::from_wire(function, Some(root))?).await?;
                assert_eq!(reapi::Directory::decode(root)?.files[0].name, "x");
            }
        }
    }
    Ok(())
}

/// 2.9: an execution gives contents inline where it is asked to, from the cache too.
#[tokio::test]
async fn v_10() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let script = "echo out; echo err >&2; echo a > a; echo b > b";
    let action = TestAction::shell(script).outputs(["a", "b"]).salt(unique(8)).build(client.function());
    client.upload(&action.blobs).await?;
    for (cached, wanted) in [(false, true), (true, true), (true, false)] {
        let request = reapi::ExecuteRequest {
            action_digest: Some(action.digest.to_wire()),
            inline_stdout: wanted,
            inline_stderr: wanted,
            inline_output_files: if wanted { vec!["b".to_owned()] } else { Vec::new() },
            ..Default::default()
        };
        let stream = client.execution().execute(request).await?.into_inner();
        let response = longshore_tests::client::finished(stream).await?;
        assert_eq!(response.cached_result, cached);
        let result = succeeded(&response);
        let text = |text: &'static str| if wanted { text.as_bytes() } else { b"" };
        assert_eq!((&result.stdout_raw[..], &result.stderr_raw[..]), (text("out\n"), text("err\n")));
        assert_eq!(
            (&result.output_files[0].contents[..], &result.output_files[1].contents[..]),
            (&b""[..], text("b\n"))
        );
        assert!(
            result.stdout_digest.is_some() && result.output_files.iter().all(|file| file.digest.is_some())
        );
    }
    Ok(())
}

/// 2.10: functions of remote assets, a service that is not here and says so.
///
/// Absent: an asset server is a service of its own beside the cache, and clients without one download themselves.
#[tokio::test]
async fn v_11() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for method in ["Fetch/FetchBlob", "Fetch/FetchDirectory", "Push/PushBlob", "Push/PushDirectory"] {
        let path = format!("/build.bazel.remote.asset.v1.{method}");
        assert_eq!(answer_to(&client, &path).await?, Code::Unimplemented, "{method}");
    }
    Ok(())
}

/// 2.11: every update of an execution names its function.
#[tokio::test]
async fn v_12() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        for update in updates(&client, &TestAction::shell("true").salt(unique(8))).await? {
            assert_eq!(update.digest_function, wire_of(function));
        }
    }
    Ok(())
}

/// 2.12: the largest blob is announced, and the resource name may come as a header; GITSHA1 and chunks are not here.
///
/// Absent: split and spliced blobs are superseded by 2.13, and GITSHA1 helps nobody who has no Git objects at hand.
#[tokio::test]
async fn v_13() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let cache = capabilities(&client).await?.cache_capabilities.context("no cache")?;
    assert!(cache.max_cas_blob_size_bytes > 0);
    assert!(!cache.split_blob_support && !cache.splice_blob_support);
    assert!(!cache.digest_functions.contains(&Value::Gitsha1.into()));
    let digest = client.put(unique(10)).await?;
    let split = reapi::SplitBlobRequest { blob_digest: Some(digest.to_wire()), ..Default::default() };
    refused(client.cas().split_blob(split).await, Code::Unimplemented, &[]);
    let splice = reapi::SpliceBlobRequest { blob_digest: Some(digest.to_wire()), ..Default::default() };
    refused(client.cas().splice_blob(splice).await, Code::Unimplemented, &[]);
    for (name, fits) in [(client.read_name(&digest), true), ("blobs/another/1".to_owned(), false)] {
        let message =
            bytestream::ReadRequest { resource_name: client.read_name(&digest), ..Default::default() };
        let mut request = Request::new(message);
        let header = "build.bazel.remote.execution.v2.resource-name";
        request.metadata_mut().insert(header, name.parse()?);
        assert_eq!(all_of(client.byte_stream().read(request).await).await.is_ok(), fits, "{name}");
    }
    Ok(())
}

/// 2.13, a draft: mappings of chunks are not here, and say so.
///
/// Absent: a local store has nothing to gain from chunks, and the draft may still change.
#[tokio::test]
async fn v_14() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let digest = client.put(unique(10)).await?.to_wire();
    let get = reapi::GetChunkMappingRequest { blob_digest: Some(digest), ..Default::default() };
    refused(all_of(client.cas().get_chunk_mapping(get).await).await, Code::Unimplemented, &["chunk"]);
    let register = futures::stream::iter([reapi::RegisterChunkMappingRequest::default()]);
    refused(client.cas().register_chunk_mapping(register).await, Code::Unimplemented, &["chunk"]);
    Ok(())
}
