//! Symbolic links in the input tree.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use longshore_proto::{protobuf, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::tree::InputTree;
use tonic::Code;

use crate::run::{Ran, run, run_on};
use crate::support::{files_in, put_message, shared_client, unique};

fn link(name: &str, target: &str) -> reapi::SymlinkNode {
    reapi::SymlinkNode { name: name.to_owned(), target: target.to_owned(), ..Default::default() }
}

/// Executes a script in an input root of one link.
async fn run_with(client: &Client, node: reapi::SymlinkNode, script: &str) -> Result<Ran> {
    let root = reapi::Directory { symlinks: vec![node], ..Default::default() };
    let root = put_message(client, &root).await?;
    run_on(client, root, TestAction::shell(script)).await
}

/// What `readlink` says of links with these targets, at the root and below it.
async fn targets_are_kept(targets: &[&str]) -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for target in targets {
        let tree = InputTree::new().symlink("l", target).symlink("d/l", target);
        let ran = run(&TestAction::shell("readlink l && readlink d/l").inputs(tree)).await?;
        let stdout = client.stdout(ran.result().await?).await?;
        ensure!(stdout == format!("{target}\n{target}\n"), "{target:?} became {stdout:?}");
    }
    Ok(())
}

/// A relative target is kept byte for byte, and counts from the folder of the link.
#[tokio::test]
async fn sym_01() -> Result<()> {
    targets_are_kept(&["f", "./f", "a//b/./c", "a/../f", "d/", "with space", "ünï", "-rf", "a\\b"]).await?;
    let tree = InputTree::new()
        .file("d/f", "below")
        .file("f", "above")
        .symlink("d/near", "f")
        .symlink("d/far", "../f")
        .symlink("folder", "d/");
    let ran = run(&TestAction::shell("cat d/near d/far folder/f").inputs(tree)).await?;
    ensure!(ran.client.stdout(ran.result().await?).await? == "belowabovebelow");
    Ok(())
}

/// A target may climb, above the input root too: the link is made as it is.
#[tokio::test]
async fn sym_02() -> Result<()> {
    targets_are_kept(&["..", "../..", "../../../../../../../etc/hostname", "d/../../x"]).await
}

/// Absolute targets are allowed, as it is announced, and kept.
#[tokio::test]
async fn sym_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let request = reapi::GetCapabilitiesRequest::default();
    let capabilities = client.capabilities().get_capabilities(request).await?.into_inner();
    let strategy = capabilities.cache_capabilities.context("a cache")?.symlink_absolute_path_strategy;
    ensure!(strategy == i32::from(reapi::symlink_absolute_path_strategy::Value::Allowed));
    targets_are_kept(&["/", "/etc/hostname", "//usr//bin", "/no/such/place"]).await?;
    let tree = InputTree::new().symlink("null", "/dev/null");
    run(&TestAction::shell("test -c null").inputs(tree)).await?.result().await?;
    Ok(())
}

/// An empty target is `INVALID_ARGUMENT`.
#[tokio::test]
async fn sym_04() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let ran = run_with(&client, link("l", ""), "true").await?;
    ran.failed_with(Code::InvalidArgument, &["symlinks[\"l\"].target", "empty"])
}

/// Dangling links are legal, and so are loops.
#[tokio::test]
async fn sym_05() -> Result<()> {
    let tree = InputTree::new()
        .symlink("nowhere", "no/such/file")
        .symlink("self", "self")
        .symlink("ping", "pong")
        .symlink("pong", "ping");
    let script = "for l in nowhere self ping pong; do test -L $l && ! test -e $l || exit 1; done";
    run(&TestAction::shell(script).inputs(tree)).await?.result().await?;
    Ok(())
}

/// A target with a NUL byte or beyond `PATH_MAX` is `INVALID_ARGUMENT`.
#[tokio::test]
async fn sym_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for target in ["a\0b", "\0"] {
        let ran = run_with(&client, link("l", target), "true").await?;
        ran.failed_with(Code::InvalidArgument, &["symlinks[\"l\"].target", "NUL"])?;
    }
    let ran = run_with(&client, link("l", &"x/".repeat(2048)), "true").await?;
    ran.failed_with(Code::InvalidArgument, &["symlinks[\"l\"].target", "4096"])?;
    // The longest one that there can be.
    let longest = "x".repeat(4095);
    let ran = run_with(&client, link("l", &longest), "readlink l").await?;
    ensure!(client.stdout(ran.result().await?).await?.trim_end() == longest);
    Ok(())
}

/// Nothing is written through a link of the tree.
#[tokio::test]
async fn sym_07() -> Result<()> {
    let (longshore, client) = shared_client().await?;
    let outside = tempfile::tempdir()?;
    let target = outside.path().to_str().context("a path in UTF-8")?;
    let content = client.put(unique(10)).await?;
    let planted =
        reapi::FileNode { name: "planted".to_owned(), digest: Some(content.to_wire()), ..Default::default() };
    let inner = reapi::Directory { files: vec![planted], ..Default::default() };
    let inner = put_message(&client, &inner).await?;
    let child = |name: &str| reapi::DirectoryNode { name: name.to_owned(), digest: Some(inner.to_wire()) };
    // The link and the folder in one message: two nodes of one name.
    let root = reapi::Directory {
        directories: vec![child("way")],
        symlinks: vec![link("way", target)],
        ..Default::default()
    };
    let root = put_message(&client, &root).await?;
    let ran = run_on(&client, root, TestAction::shell("true")).await?;
    ran.failed_with(Code::InvalidArgument, &["way"])?;
    ensure!(std::fs::read_dir(outside.path())?.count() == 0, "something was written through the link");

    // The link in one tree, and the folder at its place in another.
    let linked = reapi::Directory { symlinks: vec![link("way", target)], ..Default::default() };
    let linked = put_message(&client, &linked).await?;
    let folder = reapi::Directory { directories: vec![child("way")], ..Default::default() };
    let folder = put_message(&client, &folder).await?;
    for root in [linked, folder, linked] {
        run_on(&client, root, TestAction::shell("ls way/ > /dev/null || true")).await?.result().await?;
    }
    ensure!(std::fs::read_dir(outside.path())?.count() == 0, "something was written through the link");

    // An output's parent that is such a link is not created behind it, nor followed when outputs are collected.
    let tree = InputTree::new().symlink("out", target);
    let action = crate::run::declaring(TestAction::shell("true").inputs(tree), &["out/made/file"]);
    let ran = run(&action).await?;
    ensure!(ran.any_result()?.output_files.is_empty(), "{:?}", ran.response);
    ensure!(std::fs::read_dir(outside.path())?.count() == 0, "a folder was made behind the link");
    ensure!(files_in(&longshore.root().join("work")).iter().all(|path| !path.ends_with("made")));
    Ok(())
}

/// A link's own `mtime` is the link's, not its target's.
#[tokio::test]
async fn sym_08() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let mtime = Duration::new(1_234_567_890, 123_456_789);
    let properties = reapi::NodeProperties {
        mtime: Some(protobuf::Timestamp { seconds: 1_234_567_890, nanos: 123_456_789 }),
        properties: vec![reapi::NodeProperty { name: "unknown".to_owned(), value: "1".to_owned() }],
        ..Default::default()
    };
    let content = client.put(unique(10)).await?;
    let target =
        reapi::FileNode { name: "f".to_owned(), digest: Some(content.to_wire()), ..Default::default() };
    let node = reapi::SymlinkNode { node_properties: Some(properties), ..link("l", "f") };
    let root = reapi::Directory { files: vec![target], symlinks: vec![node], ..Default::default() };
    let root = put_message(&client, &root).await?;
    let ran = run_on(&client, root, TestAction::shell("stat -c %.9Y l; stat -L -c %.9Y l")).await?;
    let stdout = client.stdout(ran.result().await?).await?;
    let times: Vec<&str> = stdout.lines().collect();
    let [own, targets] = times[..] else { anyhow::bail!("{stdout:?}") };
    ensure!(own == format!("{}.{:09}", mtime.as_secs(), mtime.subsec_nanos()), "{own}");
    ensure!(targets != own, "the target has the link's time");
    Ok(())
}
