//! The canonical form of Directory messages.

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::{Message as _, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::tree::InputTree;
use tonic::Code;

use crate::run::{Ran, missing, run, run_on, run_script};
use crate::support::{absent, put_message, shared_client, subject, unique};

const LIST: &str = "find . -mindepth 1 | LC_ALL=C sort";

fn file(name: &str, digest: &Digest) -> reapi::FileNode {
    reapi::FileNode { name: name.to_owned(), digest: Some(digest.to_wire()), ..Default::default() }
}

fn child(name: &str, digest: &Digest) -> reapi::DirectoryNode {
    reapi::DirectoryNode { name: name.to_owned(), digest: Some(digest.to_wire()) }
}

fn link(name: &str) -> reapi::SymlinkNode {
    reapi::SymlinkNode { name: name.to_owned(), target: "target".to_owned(), ..Default::default() }
}

/// Executes a script in an input root that is this message.
async fn run_in(client: &Client, root: &reapi::Directory, script: &str) -> Result<Ran> {
    let root = put_message(client, root).await?;
    run_on(client, root, TestAction::shell(script)).await
}

/// Checks that a name is refused wherever it stands, and that the message says where and which.
async fn name_is_refused(name: &str) -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let content = client.put(unique(10)).await?;
    let empty = Digest::empty(client.function());
    let roots = [
        ("files", reapi::Directory { files: vec![file(name, &content)], ..Default::default() }),
        ("directories", reapi::Directory { directories: vec![child(name, &empty)], ..Default::default() }),
        ("symlinks", reapi::Directory { symlinks: vec![link(name)], ..Default::default() }),
    ];
    for (list, root) in roots {
        let digest = put_message(&client, &root).await?;
        let shown = format!("{list}[{name:?}].name");
        let words: &[&str] = if name.len() < 100 { &["Directory", &shown] } else { &["Directory", list] };
        let ran = run_on(&client, digest, TestAction::shell("true")).await?;
        ran.failed_with(Code::InvalidArgument, words).with_context(|| format!("at the root: {list}"))?;
        // The same one level below.
        let parent = reapi::Directory { directories: vec![child("below", &digest)], ..Default::default() };
        let ran = run_in(&client, &parent, "true").await?;
        ran.failed_with(Code::InvalidArgument, words).with_context(|| format!("below: {list}"))?;
    }
    Ok(())
}

/// A name with a slash is `INVALID_ARGUMENT`.
#[tokio::test]
async fn dir_01() -> Result<()> {
    for name in ["a/b", "/", "/etc", "a/", "../a"] {
        name_is_refused(name).await?;
    }
    Ok(())
}

/// An empty name is `INVALID_ARGUMENT`.
#[tokio::test]
async fn dir_02() -> Result<()> {
    name_is_refused("").await
}

/// The name "." is `INVALID_ARGUMENT`.
#[tokio::test]
async fn dir_03() -> Result<()> {
    name_is_refused(".").await
}

/// The name ".." is `INVALID_ARGUMENT`, and nothing is created outside.
#[tokio::test]
async fn dir_04() -> Result<()> {
    name_is_refused("..").await?;
    // Neither does a link that leads outside: what follows it in the tree is another node.
    let (longshore, client) = shared_client().await?;
    let content = client.put(unique(10)).await?;
    let inner = reapi::Directory { files: vec![file("planted", &content)], ..Default::default() };
    let inner = put_message(&client, &inner).await?;
    let root = reapi::Directory {
        directories: vec![child("way", &inner)],
        symlinks: vec![reapi::SymlinkNode { target: "..".to_owned(), ..link("way") }],
        ..Default::default()
    };
    run_in(&client, &root, "true").await?.failed_with(Code::InvalidArgument, &["way"])?;
    let planted = crate::support::files_in(&longshore.root().join("work"));
    ensure!(planted.iter().all(|path| !path.ends_with("planted")), "{planted:?}");
    Ok(())
}

/// A name with a NUL byte is `INVALID_ARGUMENT`.
#[tokio::test]
async fn dir_05() -> Result<()> {
    for name in ["a\0b", "\0", "a\0"] {
        name_is_refused(name).await?;
    }
    Ok(())
}

/// Names of up to 255 bytes of any UTF-8 work; longer ones and longer paths are `INVALID_ARGUMENT`.
#[tokio::test]
async fn dir_06() -> Result<()> {
    for name in ["x".repeat(256), "é".repeat(128)] {
        name_is_refused(&name).await?;
    }
    let odd = [
        "-rf",
        " lead",
        "trail ",
        "back\\slash",
        "new\nline",
        "tab\there",
        "ünï",
        "日本",
        "🦀",
        "*",
        "$x",
        "'\"",
    ];
    let long = ["x".repeat(255), "é".repeat(127)];
    let mut tree = InputTree::new();
    let names: Vec<&str> = odd.iter().copied().chain(long.iter().map(String::as_str)).collect();
    for name in &names {
        let content = name.as_bytes().to_vec();
        tree = tree.file(name, content.clone()).file(&format!("below/{name}"), content);
    }
    let script = "for f in *; do [ -d \"./$f\" ] || cmp -- \"./$f\" \"./below/$f\" || exit 1; done; \
                  printf '%s\\0' * > names";
    let ran = run(&crate::run::declaring(TestAction::shell(script).inputs(tree), &["names"])).await?;
    ran.result().await?;
    let written = ran.file("names").await?;
    let found: Vec<&[u8]> = written.split(|byte| *byte == 0).collect();
    for name in names {
        ensure!(found.contains(&name.as_bytes()), "{name:?} is not there");
    }

    // A path beyond PATH_MAX, of names that are all possible.
    let (_longshore, client) = shared_client().await?;
    let mut digest = Digest::empty(client.function());
    for _ in 0..20 {
        let parent =
            reapi::Directory { directories: vec![child(&"d".repeat(250), &digest)], ..Default::default() };
        digest = put_message(&client, &parent).await?;
    }
    let ran = run_on(&client, digest, TestAction::shell("true")).await?;
    ran.failed_with(Code::InvalidArgument, &["input root", "path"])
}

/// A name twice in one list is `INVALID_ARGUMENT`.
#[tokio::test]
async fn dir_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (a, b) = (client.put(unique(10)).await?, client.put(unique(11)).await?);
    let empty = Digest::empty(client.function());
    let roots = [
        reapi::Directory { files: vec![file("twice", &a), file("twice", &b)], ..Default::default() },
        // Not even if they are equal.
        reapi::Directory { files: vec![file("twice", &a), file("twice", &a)], ..Default::default() },
        reapi::Directory {
            directories: vec![child("twice", &empty), child("twice", &empty)],
            ..Default::default()
        },
        reapi::Directory { symlinks: vec![link("twice"), link("twice")], ..Default::default() },
        // Not next to each other.
        reapi::Directory {
            files: vec![file("twice", &a), file("other", &b), file("twice", &b)],
            ..Default::default()
        },
    ];
    for root in roots {
        run_in(&client, &root, "true").await?.failed_with(Code::InvalidArgument, &["Directory", "twice"])?;
    }
    Ok(())
}

/// A name in two lists is `INVALID_ARGUMENT`.
#[tokio::test]
async fn dir_08() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let content = client.put(unique(10)).await?;
    let empty = Digest::empty(client.function());
    let roots = [
        reapi::Directory {
            files: vec![file("both", &content)],
            directories: vec![child("both", &empty)],
            ..Default::default()
        },
        reapi::Directory {
            files: vec![file("both", &content)],
            symlinks: vec![link("both")],
            ..Default::default()
        },
        reapi::Directory {
            directories: vec![child("both", &empty)],
            symlinks: vec![link("both")],
            ..Default::default()
        },
    ];
    for root in roots {
        run_in(&client, &root, "true").await?.failed_with(Code::InvalidArgument, &["Directory", "both"])?;
    }
    Ok(())
}

/// Names that differ in case only are two nodes.
#[tokio::test]
async fn dir_09() -> Result<()> {
    let tree = InputTree::new().file("Foo", "upper").file("foo", "lower").directory("FOO/d");
    let action = TestAction::shell("cat Foo foo; ls -d FOO/d").inputs(tree);
    let ran = run(&action).await?;
    ensure!(ran.client.stdout(ran.result().await?).await? == "upperlowerFOO/d\n");
    Ok(())
}

/// What longshore writes is sorted by the bytes of the names.
#[tokio::test]
async fn dir_10() -> Result<()> {
    // U+FFFF is less than U+1F980 in UTF-8, and greater in UTF-16.
    let script = "mkdir -p d/a d/b d/aB; for n in a-b aC Z é \u{ffff} \u{1f980} 0; do \
                  echo > d/$n.f; mkdir d/$n.d; ln -s x d/$n.l; done";
    let ran = run_script(script, &["d"]).await?;
    ran.result().await?;
    let tree = ran.tree("d").await?;
    let root = tree.root.context("a root")?;
    ensure!((root.files.len(), root.directories.len(), root.symlinks.len()) == (7, 10, 7), "{root:?}");
    ensure!(root.files.is_sorted_by(|a, b| a.name < b.name), "{:?}", root.files);
    ensure!(root.directories.is_sorted_by(|a, b| a.name < b.name), "{:?}", root.directories);
    ensure!(root.symlinks.is_sorted_by(|a, b| a.name < b.name), "{:?}", root.symlinks);
    Ok(())
}

/// An unsorted input Directory is taken as it is.
#[tokio::test]
async fn dir_11() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let content = client.put(unique(10)).await?;
    let empty = Digest::empty(client.function());
    let root = reapi::Directory {
        files: vec![file("z", &content), file("a", &content)],
        directories: vec![child("y", &empty), child("b", &empty)],
        symlinks: vec![link("x"), link("c")],
        ..Default::default()
    };
    let ran = run_in(&client, &root, LIST).await?;
    ensure!(client.stdout(ran.result().await?).await? == "./a\n./b\n./c\n./x\n./y\n./z\n");
    Ok(())
}

/// Node properties are sorted in what longshore writes (it writes none by name), and taken in any order.
#[tokio::test]
async fn dir_12() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let content = client.put(unique(10)).await?;
    let property = |name: &str| reapi::NodeProperty { name: name.to_owned(), value: "1".to_owned() };
    let properties =
        reapi::NodeProperties { properties: vec![property("z"), property("a")], ..Default::default() };
    let node = reapi::FileNode { node_properties: Some(properties), ..file("f", &content) };
    let root = reapi::Directory { files: vec![node], ..Default::default() };
    run_in(&client, &root, "test -f f").await?.result().await?;

    let mut action = crate::run::declaring(TestAction::shell("mkdir d; echo > d/f"), &["d"]);
    action.command.output_node_properties = vec!["unix_mode".to_owned(), "mtime".to_owned()];
    let ran = run(&action).await?;
    ran.result().await?;
    let tree = ran.tree("d").await?;
    let files = tree.root.context("a root")?.files;
    let written = files.first().and_then(|file| file.node_properties.clone()).context("no properties")?;
    ensure!(written.properties.is_empty() && written.mtime.is_some() && written.unix_mode.is_some());
    Ok(())
}

/// An upload is opaque: a malformed Directory is a blob like any other.
#[tokio::test]
async fn dir_13() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let content = client.put(unique(10)).await?;
    let root = reapi::Directory { files: vec![file("..", &content)], ..Default::default() };
    let digest = put_message(&client, &root).await?;
    ensure!(client.missing([&digest]).await?.is_empty());
    ensure!(client.read(&digest).await? == root.encode_to_vec());
    Ok(())
}

/// An input root that is no Directory is `INVALID_ARGUMENT`, and is named.
#[tokio::test]
async fn dir_14() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let garbage = client.put([b"\xff\xff\xff".as_slice(), &unique(10)].concat()).await?;
    let named = garbage.hash_hex();
    let ran = run_on(&client, garbage, TestAction::shell("true")).await?;
    ran.failed_with(Code::InvalidArgument, &["Directory", &named])?;
    let parent = reapi::Directory { directories: vec![child("d", &garbage)], ..Default::default() };
    run_in(&client, &parent, "true").await?.failed_with(Code::InvalidArgument, &["Directory", &named])
}

/// A tree that expands without bound is refused before anything is created.
#[tokio::test]
async fn dir_15() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let content = client.put(unique(10)).await?;
    let leaf = reapi::Directory { files: vec![file("f", &content)], ..Default::default() };
    let mut digest = put_message(&client, &leaf).await?;
    for _ in 0..40 {
        let parent = reapi::Directory {
            directories: vec![child("a", &digest), child("b", &digest)],
            ..Default::default()
        };
        digest = put_message(&client, &parent).await?;
    }
    let ran = run_on(&client, digest, TestAction::shell("true")).await?;
    ran.failed_with(Code::InvalidArgument, &["input root", "expands to"])?;

    // And one that is deeper than anybody means.
    let mut digest = Digest::empty(client.function());
    let mut blobs = Vec::new();
    for _ in 0..3_000 {
        let parent = reapi::Directory { directories: vec![child("d", &digest)], ..Default::default() };
        let message = parent.encode_to_vec();
        digest = client.function().digest(&message);
        blobs.push((digest, message.into()));
    }
    client.upload(&blobs).await?;
    let ran = run_on(&client, digest, TestAction::shell("true")).await?;
    ran.failed_with(Code::InvalidArgument, &["input root"])
}

/// The empty Directory is the empty blob, as a root and as a child, without an upload.
#[tokio::test]
async fn dir_16() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let empty = Digest::empty(function);
        let ran = run_on(&client, empty, TestAction::shell("ls -A | wc -l")).await?;
        ensure!(client.stdout(ran.result().await?).await?.trim() == "0", "{function}");
        let root = reapi::Directory { directories: vec![child("d", &empty)], ..Default::default() };
        let ran = run_in(&client, &root, LIST).await?;
        ensure!(client.stdout(ran.result().await?).await? == "./d\n", "{function}");
    }
    Ok(())
}

/// A node without a digest is `INVALID_ARGUMENT`.
#[tokio::test]
async fn dir_17() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let node = reapi::FileNode { name: "bare".to_owned(), ..Default::default() };
    let root = reapi::Directory { files: vec![node], ..Default::default() };
    let ran = run_in(&client, &root, "true").await?;
    ran.failed_with(Code::InvalidArgument, &["files[\"bare\"].digest"])?;
    let node = reapi::DirectoryNode { name: "bare".to_owned(), ..Default::default() };
    let root = reapi::Directory { directories: vec![node], ..Default::default() };
    let ran = run_in(&client, &root, "true").await?;
    ran.failed_with(Code::InvalidArgument, &["directories[\"bare\"].digest"])
}

/// Directories that are not there are MISSING, each of them, together with the files.
#[tokio::test]
async fn dir_18() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in [DigestFunction::Sha256, DigestFunction::Blake3] {
        let client = client.with_function(function);
        let (near, deep, content) = (absent(function), absent(function), absent(function));
        let middle = reapi::Directory {
            directories: vec![child("deep", &deep)],
            files: vec![file("f", &content)],
            ..Default::default()
        };
        let middle = put_message(&client, &middle).await?;
        let root = reapi::Directory {
            directories: vec![child("middle", &middle), child("near", &near)],
            ..Default::default()
        };
        let ran = run_in(&client, &root, "true").await?;
        ran.failed_with(Code::FailedPrecondition, &[])?;
        let mut expected = [near, deep, content].map(|digest| subject(&digest));
        expected.sort();
        let mut found = missing(&ran.status())?;
        found.sort();
        ensure!(found == expected, "{found:?}, not {expected:?}");
    }
    // The root itself.
    let root = absent(client.function());
    let ran = run_on(&client, root, TestAction::shell("true")).await?;
    ran.failed_with(Code::FailedPrecondition, &[])?;
    ensure!(missing(&ran.status())? == [subject(&root)]);
    Ok(())
}

/// A malformed tree is `INVALID_ARGUMENT` in the `ExecuteResponse`: final, and nothing to upload again.
#[tokio::test]
async fn dir_19() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    // What is missing beside it does not make it a matter of uploading.
    let root = reapi::Directory {
        files: vec![file("..", &absent(client.function()))],
        directories: vec![child("d", &absent(client.function()))],
        ..Default::default()
    };
    let ran = run_in(&client, &root, "true").await?;
    ran.failed_with(Code::InvalidArgument, &["files[\"..\"].name"])?;
    ensure!(ran.status().details.is_empty(), "{:?}", ran.status());
    Ok(())
}

/// It is never `FAILED_PRECONDITION` with a violation of type INVALID.
#[tokio::test]
async fn dir_20() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let garbage = client.put([b"\xff".as_slice(), &unique(10)].concat()).await?;
    let ran = run_on(&client, garbage, TestAction::shell("true")).await?;
    ran.failed_with(Code::InvalidArgument, &[])?;
    ensure!(ran.status().details.is_empty(), "{:?}", ran.status());
    Ok(())
}
