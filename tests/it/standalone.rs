//! The standalone mode from the outside: the real binary, over gRPC.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use longshore_proto::reapi;
use longshore_tests::action::TestAction;
use longshore_tests::longshore::Longshore;
use longshore_tests::process::foreign_descendants;
use longshore_tests::tree::InputTree;
use tonic::Code;

use crate::result_of;

// Bazel 4 refuses a server whose lowest version is above 2.0, and sends SHA-256 unless told otherwise.
#[tokio::test]
async fn capabilities_suit_old_and_new_clients() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let request = reapi::GetCapabilitiesRequest::default();
    let capabilities = client.capabilities().get_capabilities(request).await?.into_inner();
    let low = capabilities.low_api_version.context("no low_api_version")?;
    assert_eq!((low.major, low.minor), (2, 0));
    let sha256 = i32::from(reapi::digest_function::Value::Sha256);
    assert!(capabilities.cache_capabilities.context("no cache")?.digest_functions.contains(&sha256));
    let execution = capabilities.execution_capabilities.context("no execution")?;
    assert!(execution.exec_enabled);
    assert!(execution.digest_functions.contains(&sha256) || execution.digest_function == sha256);
    Ok(())
}

// What was uploaded is what is read, small and large, empty too.
#[tokio::test]
async fn blobs_come_back_as_they_were() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    for size in [0, 1, 4096, 10_000_000] {
        let data: Vec<u8> = (0..size).map(|index: u32| (index % 251).to_le_bytes()[0]).collect();
        let digest = client.put(data.clone()).await?;
        assert_eq!(client.missing([&digest]).await?, []);
        assert_eq!(client.read(&digest).await?, data);
    }
    Ok(())
}

// An action sees its inputs with their modes, runs in its folder, and its outputs and streams come back.
#[tokio::test]
async fn an_action_runs_on_its_inputs() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let inputs = InputTree::new()
        .file("in/data.txt", "some data")
        .executable("in/tool.sh", "#!/bin/sh\necho from the tool\n")
        .symlink("in/link.txt", "data.txt")
        .directory("in/empty");
    let script = "cat in/link.txt > out/copy.txt && ./in/tool.sh && echo to stderr >&2 && rmdir in/empty";
    let action = TestAction::shell(script).inputs(inputs).outputs(["out/copy.txt"]);

    let response = client.run(&action).await?;
    assert!(!response.cached_result);
    let result = result_of(&response, 0)?;
    assert_eq!(client.output_file(result, "out/copy.txt").await?, "some data");
    assert_eq!(client.stdout(result).await?, "from the tool\n");
    assert_eq!(client.stderr(result).await?, "to stderr\n");
    let metadata = result.execution_metadata.as_ref().context("no metadata")?;
    assert!(!metadata.worker.is_empty());
    assert!(metadata.execution_start_timestamp.is_some() && metadata.worker_completed_timestamp.is_some());
    Ok(())
}

// What vanishes of a cached tree, by an operator's hand or a disk's repair, costs no action.
#[tokio::test]
async fn a_damaged_tree_is_built_anew() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let inputs = InputTree::new().file("in/data.txt", "some data");
    let run = async |number: u32| {
        let script = format!("cat in/data.txt; exit {number}");
        let response = client.run(&TestAction::shell(&script).inputs(inputs.clone())).await?;
        let exit_code = i32::try_from(number)?;
        assert_eq!(client.stdout(result_of(&response, exit_code)?).await?, "some data");
        anyhow::Ok(())
    };
    let tree = || -> Result<PathBuf> {
        let mut trees = std::fs::read_dir(longshore.root().join("trees"))?;
        let tree = trees.find_map(|tree| tree.ok().filter(|tree| tree.path().join("in/data.txt").exists()));
        Ok(tree.context("there is no tree")?.path())
    };
    run(0).await?;
    std::fs::remove_file(tree()?.join("in/data.txt"))?;
    run(1).await?;
    std::fs::remove_dir_all(tree()?)?;
    run(2).await
}

// The environment is exactly what the Command says: nothing of the server's leaks into it.
#[tokio::test]
async fn an_action_has_the_environment_of_its_command() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let action = TestAction::new(["/usr/bin/env"]).environment("ONLY", "this");
    let response = client.run(&action).await?;
    let result = result_of(&response, 0)?;
    assert_eq!(client.stdout(result).await?, "ONLY=this\n");
    Ok(())
}

// A failing action is a result, not an error, and is not cached.
#[tokio::test]
async fn a_failing_action_is_reported_and_runs_again() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let action = TestAction::shell("echo why >&2; exit 7");
    for _ in 0..2 {
        let response = client.run(&action).await?;
        assert!(!response.cached_result);
        result_of(&response, 7)?;
    }
    Ok(())
}

// A timeout kills the action and everything below it, and says so.
#[tokio::test]
async fn a_timeout_leaves_nothing_behind() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let script = "echo so far; setsid sleep 1000 & sleep 1000";
    let response = client.run(&TestAction::shell(script).timeout(Duration::from_millis(300))).await?;
    let status = response.status.context("no status")?;
    assert_eq!(status.code, i32::from(Code::DeadlineExceeded), "{status:?}");
    let result = response.result.context("no result")?;
    assert_eq!(client.stdout(&result).await?, "so far\n");
    assert_eq!(foreign_descendants(longshore.pid())?, Vec::<String>::new());
    Ok(())
}
