//! What known clients do, call by call.

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::Digest;
use longshore_proto::{Message as _, bytestream, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::{Client, finished};
use longshore_tests::tree::{Blob, InputTree};
use tonic::Code;

use crate::support::{
    all_of, details, execute, missing_subjects, refused, shared_client, subject, succeeded, unique,
};

/// Uploads blobs as Bazel 4 does: by streams, without naming a function.
async fn upload_by_streams(client: &Client, blobs: &[Blob]) -> Result<()> {
    let blob_digests = blobs.iter().map(|(digest, _)| digest.to_wire()).collect();
    let find = reapi::FindMissingBlobsRequest { blob_digests, ..Default::default() };
    let missing = client.cas().find_missing_blobs(find).await?.into_inner().missing_blob_digests;
    for (digest, data) in blobs.iter().filter(|(digest, _)| missing.contains(&digest.to_wire())) {
        let request = bytestream::WriteRequest {
            resource_name: client.write_name(digest),
            finish_write: true,
            data: data.to_vec(),
            ..Default::default()
        };
        let response = client.byte_stream().write(futures::stream::iter([request])).await?.into_inner();
        assert_eq!(response.committed_size, digest.to_wire().size_bytes);
    }
    Ok(())
}

/// Bazel 4: version 2.0, no function named, uploads by streams, outputs in the old lists or in all three.
#[tokio::test]
#[expect(deprecated, reason = "this is what Bazel 4 sends")]
async fn cli_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for fills_output_paths in [false, true] {
        let inputs = InputTree::new().file("in", "content\n");
        let mut action =
            TestAction::shell("cp in out/file; mkdir dir; cp in dir/x").inputs(inputs).salt(unique(8));
        action.command.output_files = vec!["out/file".to_owned()];
        action.command.output_directories = vec!["dir".to_owned()];
        if fills_output_paths {
            action = action.outputs(["dir", "out/file"]);
        }
        let blobs = action.build(client.function());
        let get = reapi::GetActionResultRequest {
            action_digest: Some(blobs.digest.to_wire()),
            inline_stdout: true,
            inline_stderr: true,
            ..Default::default()
        };
        refused(client.action_cache().get_action_result(get.clone()).await, Code::NotFound, &[]);
        upload_by_streams(&client, &blobs.blobs).await?;
        let request =
            reapi::ExecuteRequest { action_digest: Some(blobs.digest.to_wire()), ..Default::default() };
        let response = finished(client.execution().execute(request).await?.into_inner()).await?;
        let result = succeeded(&response);
        let paths: Vec<_> = result.output_files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["out/file"]);
        assert_eq!(result.output_directories.len(), 1);
        assert!(result.output_directories[0].tree_digest.is_some());
        assert_eq!(client.output_file(result, "out/file").await?, "content\n");
        let cached = client.action_cache().get_action_result(get).await?.into_inner();
        assert_eq!(cached.output_files, result.output_files);
    }
    Ok(())
}

/// Bazel: what is missing is uploaded again and executed again; an operation that is unknown is executed anew.
#[tokio::test]
async fn cli_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (one, two) = (unique(100), unique(200));
    let inputs = InputTree::new().file("one", one.clone()).file("d/two", two.clone());
    let action = TestAction::shell("cat one d/two | wc -c").inputs(inputs).salt(unique(8));
    let blobs = action.build(client.function());
    let lost = [client.function().digest(&one), client.function().digest(&two)];
    let known: Vec<_> = blobs.blobs.iter().filter(|(digest, _)| !lost.contains(digest)).cloned().collect();
    client.upload(&known).await?;
    let response = execute(&client, &blobs.digest).await?;
    let status = response.status.context("a status")?;
    assert_eq!(status.code, i32::from(Code::FailedPrecondition));
    let mut expected = lost.map(|digest| subject(&digest));
    expected.sort();
    assert_eq!(missing_subjects(&status.details), expected, "nothing else, or Bazel does not retry");
    client.upload(&blobs.blobs).await?;
    let operations = all_of(client.start(&blobs.digest, true).await.map(tonic::Response::new)).await?;
    let end = operations.last().context("an operation")?;
    assert!(end.done && operations.iter().filter(|operation| operation.done).count() == 1);
    let Some(longshore_proto::longrunning::operation::Result::Response(any)) = &end.result else {
        panic!("done without a response: {end:?}")
    };
    let response = reapi::ExecuteResponse::decode(any.value.as_slice())?;
    assert_eq!(client.stdout(succeeded(&response)).await?.trim(), "300");

    // An action that is not there itself.
    let absent = TestAction::shell("true").salt(unique(8)).build(client.function()).digest;
    let status = match client.start(&absent, true).await {
        Err(status) => missing_subjects(&details(&status)?),
        Ok(stream) => missing_subjects(&finished(stream).await?.status.context("a status")?.details),
    };
    assert_eq!(status, [subject(&absent)]);
    let wait = reapi::WaitExecutionRequest { name: "operations/of-another-server".to_owned() };
    let outcome = all_of(client.execution().wait_execution(wait).await).await;
    refused(outcome, Code::NotFound, &["operations/of-another-server"]);
    Ok(())
}

/// Bazel: a result is asked for with its streams inline, and newer ones ask for single outputs.
#[tokio::test]
async fn cli_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let script = "echo out; echo err >&2; echo object > x.o; echo 'x.o: x.c' > x.d";
    let action = TestAction::shell(script).outputs(["x.d", "x.o"]).salt(unique(8));
    succeeded(&client.run(&action).await?);
    let get = reapi::GetActionResultRequest {
        action_digest: Some(action.build(client.function()).digest.to_wire()),
        inline_stdout: true,
        inline_stderr: true,
        inline_output_files: vec!["x.d".to_owned()],
        ..Default::default()
    };
    let result = client.action_cache().get_action_result(get).await?.into_inner();
    assert_eq!((&result.stdout_raw[..], &result.stderr_raw[..]), (&b"out\n"[..], &b"err\n"[..]));
    let contents: Vec<_> =
        result.output_files.iter().map(|file| (&file.path[..], &file.contents[..])).collect();
    assert_eq!(contents, [("x.d", &b"x.o: x.c\n"[..]), ("x.o", &b""[..])]);
    Ok(())
}

/// Bazel: after an upload that broke off it asks how far it came, goes on there, and wants the whole size committed.
#[tokio::test]
async fn cli_04() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let data = unique(1_000_000);
    let digest = client.function().digest(&data);
    let name = client.write_name(&digest);
    let request = |offset: usize, end: usize| bytestream::WriteRequest {
        resource_name: name.clone(),
        write_offset: i64::try_from(offset).expect("small"),
        finish_write: end == data.len(),
        data: data[offset..end].to_vec(),
    };
    let broken = client.byte_stream().write(futures::stream::iter([request(0, 600_000)])).await;
    assert_eq!(broken?.into_inner().committed_size, 600_000);
    let query = || bytestream::QueryWriteStatusRequest { resource_name: name.clone() };
    let status = client.byte_stream().query_write_status(query()).await?.into_inner();
    assert!(!status.complete && status.committed_size == 600_000);
    let rest = client.byte_stream().write(futures::stream::iter([request(600_000, data.len())])).await?;
    assert_eq!(rest.into_inner().committed_size, 1_000_000);
    let status = client.byte_stream().query_write_status(query()).await?.into_inner();
    assert!(status.complete && status.committed_size == 1_000_000);
    assert_eq!(client.read(&digest).await?, data);
    Ok(())
}

/// The SDKs: `output_paths`, batches both ways, the root of `GetTree` first.
#[tokio::test]
async fn cli_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let request = reapi::GetCapabilitiesRequest::default();
    let capabilities = client.capabilities().get_capabilities(request).await?.into_inner();
    let high = capabilities.high_api_version.context("a version")?;
    assert!((high.major, high.minor) >= (2, 1), "or they would not use output_paths");
    let inputs = InputTree::new().file("src/a", unique(100)).file("src/b/c", unique(100));
    let action =
        TestAction::shell("cat src/a src/b/c > out").inputs(inputs.clone()).outputs(["out"]).salt(unique(8));
    let blobs = action.build(client.function());
    // The kit's upload is by batches.
    client.upload(&blobs.blobs).await?;
    let root = inputs.build(client.function()).root;
    let tree = reapi::GetTreeRequest { root_digest: Some(root.to_wire()), ..Default::default() };
    let pages = all_of(client.cas().get_tree(tree).await).await?;
    let first = pages[0].directories[0].encode_to_vec();
    assert_eq!(client.function().digest(&first), root);
    let response = client.execute(&blobs.digest, false).await?;
    let file = succeeded(&response).output_files[0].digest.clone().context("a digest")?;
    let read = reapi::BatchReadBlobsRequest { digests: vec![file], ..Default::default() };
    let response = client.cas().batch_read_blobs(read).await?.into_inner();
    assert_eq!(response.responses[0].data.len(), 200);
    Ok(())
}

/// BuildStream: outputs above the working directory, as directories, with the times of files.
#[tokio::test]
async fn cli_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let inputs = InputTree::new().file("buildstream/project/element/file", "x");
    let script =
        "mkdir -p ../../install/d; echo y > ../../install/d/y; touch -d @1000000000 ../../install/d/y";
    let mut action = TestAction::shell(script).inputs(inputs).outputs(["../../install", "."]).salt(unique(8));
    "buildstream/project".clone_into(&mut action.command.working_directory);
    action.command.output_directory_format = reapi::command::OutputDirectoryFormat::DirectoryOnly.into();
    action.command.output_node_properties = vec!["mtime".to_owned()];
    let blobs = action.build(client.function());
    client.upload(&blobs.blobs).await?;
    let response = client.execute(&blobs.digest, false).await?;
    let directories = &succeeded(&response).output_directories;
    let root = |path: &str| {
        let directory = directories.iter().find(|directory| directory.path == path);
        let directory = directory.with_context(|| format!("{path} in {directories:?}"));
        directory.and_then(|directory| {
            Ok(Digest::from_wire(client.function(), directory.root_directory_digest.as_ref())?)
        })
    };
    let install = reapi::Directory::decode(client.read(&root("../../install")?).await?)?;
    let below = Digest::from_wire(client.function(), install.directories[0].digest.as_ref())?;
    let below = reapi::Directory::decode(client.read(&below).await?)?;
    let properties = below.files[0].node_properties.as_ref().context("no properties")?;
    assert_eq!(properties.mtime.as_ref().map(|mtime| mtime.seconds), Some(1_000_000_000));
    let here = reapi::Directory::decode(client.read(&root(".")?).await?)?;
    assert_eq!(here.directories[0].name, "element");
    Ok(())
}
