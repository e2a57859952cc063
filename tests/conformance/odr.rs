//! Output directories.

use std::collections::HashSet;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::reapi::command::OutputDirectoryFormat;
use longshore_proto::{Message as _, reapi};
use longshore_tests::action::TestAction;
use tonic::Code;

use crate::run::{Ran, declaring, declaring_older, run, run_by, run_script};
use crate::support::shared_client;

/// A script whose directory `d` has equal directories in it, empty ones, links, and every mode.
const MIXED: &str = "mkdir -p d/b/same d/a/same d/c/other/same d/empty d/a/empty d/z/y/x && \
    for p in a b c/other; do echo s > d/$p/same/f; ln -s ../f d/$p/same/l; done && \
    echo x > d/run && chmod 755 d/run && echo y > d/z/y/x/plain && echo z > d/B && ln -s gone d/link";

/// Reads a protobuf varint.
fn varint(bytes: &mut &[u8]) -> Result<usize> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first().context("a varint is cut off")?;
        *bytes = rest;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    anyhow::bail!("an overlong varint")
}

/// The Directory messages of a Tree as bytes, root first, read as a stream of records.
fn records(tree: &[u8]) -> Result<Vec<Bytes>> {
    let (mut left, mut records) = (tree, Vec::new());
    while let Some((tag, rest)) = left.split_first() {
        ensure!(*tag == if records.is_empty() { 0x0a } else { 0x12 }, "tag {tag:#x} at {}", records.len());
        left = rest;
        let len = varint(&mut left)?;
        let (record, rest) = left.split_at_checked(len).context("a record is cut off")?;
        records.push(Bytes::copy_from_slice(record));
        left = rest;
    }
    Ok(records)
}

/// Checks all that `is_topologically_sorted` promises, and that every message is canonical.
fn check_sorted(function: DigestFunction, tree: &[u8]) -> Result<Vec<reapi::Directory>> {
    let mut named = HashSet::new();
    let mut seen = HashSet::new();
    let mut directories = Vec::new();
    for (index, record) in records(tree)?.into_iter().enumerate() {
        let digest = function.digest(&record);
        ensure!(seen.insert(digest), "{digest} comes twice");
        ensure!(index == 0 || named.contains(&digest), "{digest} comes before what names it");
        let directory = reapi::Directory::decode(record.clone())?;
        ensure!(directory.encode_to_vec() == record, "not encoded canonically: {directory:?}");
        check_canonical(&directory)?;
        for child in &directory.directories {
            named.insert(Digest::from_wire(function, child.digest.as_ref())?);
        }
        directories.push(directory);
    }
    ensure!(seen.len() == named.len() + 1, "every name has a message, and only the root has no name");
    Ok(directories)
}

fn check_canonical(directory: &reapi::Directory) -> Result<()> {
    let files: Vec<_> = directory.files.iter().map(|node| &node.name).collect();
    let directories: Vec<_> = directory.directories.iter().map(|node| &node.name).collect();
    let links: Vec<_> = directory.symlinks.iter().map(|node| &node.name).collect();
    let mut all = HashSet::new();
    for names in [files, directories, links] {
        ensure!(names.is_sorted_by(|a, b| a.as_bytes() < b.as_bytes()), "not sorted: {names:?}");
        ensure!(names.iter().all(|name| all.insert((*name).clone())), "a name of two nodes: {names:?}");
    }
    Ok(())
}

async fn run_format(format: i32) -> Result<Ran> {
    let mut action = declaring(TestAction::shell(MIXED), &["d"]);
    action.command.output_directory_format = format;
    let ran = run(&action).await?;
    ran.result().await?;
    Ok(ran)
}

/// An output directory is a Tree with each distinct Directory once.
#[tokio::test]
async fn odr_01() -> Result<()> {
    let ran = run_script(MIXED, &["d"]).await?;
    ran.result().await?;
    let expected = [
        "B",
        "a/",
        "a/empty/",
        "a/same/",
        "a/same/f",
        "a/same/l -> ../f",
        "b/",
        "b/same/",
        "b/same/f",
        "b/same/l -> ../f",
        "c/",
        "c/other/",
        "c/other/same/",
        "c/other/same/f",
        "c/other/same/l -> ../f",
        "empty/",
        "link -> gone",
        "run",
        "z/",
        "z/y/",
        "z/y/x/",
        "z/y/x/plain",
    ];
    assert_eq!(ran.contents("d").await?, expected);
    // The root; a; b and c/other are the same; same; empty; c; z, z/y, z/y/x.
    assert_eq!(records(&ran.tree_bytes("d").await?)?.len(), 9);
    Ok(())
}

/// An empty output directory comes back, and nested ones are kept.
#[tokio::test]
async fn odr_02() -> Result<()> {
    let script = "mkdir -p d e/f/g h";
    for action in [
        declaring(TestAction::shell(script), &["d", "e"]),
        declaring_older(TestAction::shell(script), &[], &["d", "e"]),
    ] {
        let ran = run(&action).await?;
        ran.result().await?;
        let tree = ran.directory("d")?.tree_digest.clone().context("a digest")?;
        assert_eq!(tree.hash, "102b51b9765a56a3e899f7cf0ee38e5251f9c503b357b330a49183eb7b155604");
        assert_eq!(tree.size_bytes, 2);
        assert_eq!(ran.tree_bytes("d").await?, [0x0a, 0].as_slice());
        assert_eq!(ran.contents("e").await?, ["f/", "f/g/"]);
    }
    Ok(())
}

/// Equal content gives equal Trees, whatever the order in which it was made.
#[tokio::test]
async fn odr_03() -> Result<()> {
    let orders = ["a b c d e f g h", "h g f e d c b a", "d a h c f b g e"];
    let mut digests = HashSet::new();
    for order in orders {
        let script =
            format!("for p in {order}; do mkdir -p d/$p/sub; echo $p > d/$p/f; ln -s $p d/l$p; done");
        let ran = run_script(&script, &["d"]).await?;
        ran.result().await?;
        digests.insert(ran.directory("d")?.tree_digest.clone().context("a digest")?.hash);
    }
    assert_eq!(digests.len(), 1);
    Ok(())
}

/// A Tree is a stream of records: root first, parents before children, nothing twice or in vain.
#[tokio::test]
async fn odr_04() -> Result<()> {
    // What is equal lies at different depths, so that a walk by levels or by depth alone gets it wrong.
    let deep = "mkdir -p d/x/y/z/same d/same d/y/z/same d/k/same/in && echo f > d/k/f";
    for script in [MIXED, deep, "mkdir d", "mkdir -p d/a/b/c/d/e/f/g"] {
        let ran = run_script(script, &["d"]).await?;
        ran.result().await?;
        assert!(ran.directory("d")?.is_topologically_sorted);
        check_sorted(DigestFunction::Sha256, &ran.tree_bytes("d").await?)?;
    }
    Ok(())
}

/// `TREE_ONLY` gives `tree_digest`, the other formats `root_directory_digest` with all Directories stored.
#[tokio::test]
async fn odr_05() -> Result<()> {
    let unknown = 77;
    let formats = [
        (OutputDirectoryFormat::TreeOnly.into(), false),
        (OutputDirectoryFormat::DirectoryOnly.into(), true),
        (OutputDirectoryFormat::TreeAndDirectory.into(), true),
        (unknown, false),
    ];
    for (format, has_directories) in formats {
        let ran = run_format(format).await?;
        let directory = ran.directory("d")?;
        assert_eq!(directory.root_directory_digest.is_some(), has_directories, "{format}");
        for record in records(&ran.tree_bytes("d").await?)?.iter().filter(|_| has_directories) {
            let digest = DigestFunction::Sha256.digest(record);
            assert_eq!(ran.client.read(&digest).await?, record);
        }
    }
    Ok(())
}

/// `tree_digest` is there with every format.
#[tokio::test]
async fn odr_06() -> Result<()> {
    for format in 0..3 {
        let ran = run_format(format).await?;
        check_sorted(DigestFunction::Sha256, &ran.tree_bytes("d").await?)?;
    }
    Ok(())
}

/// `root_directory_digest` is the digest of the Tree's root.
#[tokio::test]
async fn odr_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        for script in [MIXED, "mkdir d"] {
            let mut action = declaring(TestAction::shell(script), &["d"]);
            action.command.output_directory_format = OutputDirectoryFormat::TreeAndDirectory.into();
            let ran = run_by(&client.with_function(function), &action).await?;
            ran.result().await?;
            let root = ran.tree("d").await?.root.context("a root")?;
            let digest = function.digest(&root.encode_to_vec());
            assert_eq!(ran.directory("d")?.root_directory_digest, Some(digest.to_wire()));
        }
    }
    Ok(())
}

/// Directories in a Tree are canonical, tell what is executable, and have properties only if asked.
#[tokio::test]
async fn odr_08() -> Result<()> {
    for names in [vec![], vec!["unix_mode"], vec!["mtime", "unix_mode"]] {
        let mut action = declaring(TestAction::shell(MIXED), &["d"]);
        action.command.output_node_properties = names.iter().map(|name| (*name).to_owned()).collect();
        let ran = run(&action).await?;
        ran.result().await?;
        let directories = check_sorted(DigestFunction::Sha256, &ran.tree_bytes("d").await?)?;
        for node in directories.iter().flat_map(|directory| &directory.files) {
            assert_eq!(node.is_executable, node.name == "run");
            assert_eq!(node.node_properties.is_some(), !names.is_empty());
        }
        for directory in &directories {
            assert_eq!(directory.node_properties.is_some(), !names.is_empty());
        }
    }
    Ok(())
}

/// Links in an output directory keep their targets and are not followed.
#[tokio::test]
async fn odr_09() -> Result<()> {
    let script = "mkdir -p d/real in && echo f > d/real/f && echo s > in/secret && cd d && ln -s real dir && \
        ln -s real/f file && ln -s gone dangling && ln -s . self && ln -s .. up && ln -s ../in out && \
        ln -s /etc/passwd abs && ln -s ../../../../.. climb && ln -s 'a//b/../c/' raw";
    let expected = [
        "abs -> /etc/passwd",
        "climb -> ../../../../..",
        "dangling -> gone",
        "dir -> real",
        "file -> real/f",
        "out -> ../in",
        "raw -> a//b/../c/",
        "real/",
        "real/f",
        "self -> .",
        "up -> ..",
    ];
    for action in [
        declaring(TestAction::shell(script), &["d"]),
        declaring_older(TestAction::shell(script), &[], &["d"]),
    ] {
        let ran = run(&action).await?;
        ran.result().await?;
        assert_eq!(ran.contents("d").await?, expected);
    }
    Ok(())
}

/// A Tree of more than 4 MiB is stored and read like any other blob.
#[tokio::test]
async fn odr_10() -> Result<()> {
    let script = "mkdir d && cd d && n=$(printf %0180d 0) && seq -f \"$n%06g\" 1 17000 | xargs touch";
    let ran = run_script(script, &["d"]).await?;
    assert_eq!(ran.code(), Code::Ok, "{:?}", ran.status());
    let bytes = ran.tree_bytes("d").await?;
    assert!(bytes.len() > 4 << 20, "{} bytes", bytes.len());
    let root = reapi::Tree::decode(bytes)?.root.context("a root")?;
    assert_eq!(root.files.len(), 17_000);
    Ok(())
}
