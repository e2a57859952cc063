//! Directory, Tree and other messages in the store that are not what they should be.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use longshore_cas_store::digest::Digest;
use longshore_proto::{Message, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use tonic::{Code, Status};

use super::{OWN_BYTES, Target, refused};

/// Levels of a tree in which each directory has the one below it twice: more nodes than there are atoms to build it.
const BOMB_LEVELS: usize = 300;

fn file(name: &str, digest: &Digest) -> reapi::FileNode {
    reapi::FileNode { name: name.to_owned(), digest: Some(digest.to_wire()), ..Default::default() }
}

fn child(name: &str, digest: &Digest) -> reapi::DirectoryNode {
    reapi::DirectoryNode { name: name.to_owned(), digest: Some(digest.to_wire()) }
}

fn link(name: &str, target: &str) -> reapi::SymlinkNode {
    reapi::SymlinkNode { name: name.to_owned(), target: target.to_owned(), ..Default::default() }
}

/// Directories that nobody may build, with what is said about them.
fn malformed(blob: &Digest) -> Vec<(reapi::Directory, &'static str)> {
    let files = |files: Vec<_>| reapi::Directory { files, ..Default::default() };
    let links = |symlinks: Vec<_>| reapi::Directory { symlinks, ..Default::default() };
    let directories = |directories: Vec<_>| reapi::Directory { directories, ..Default::default() };
    let empty = Digest::empty(blob.function());
    let bad_digest = |hash: &str, size_bytes| reapi::FileNode {
        digest: Some(reapi::Digest { hash: hash.to_owned(), size_bytes }),
        ..file("f", blob)
    };
    let mut cases: Vec<_> = ["", ".", "..", "a/b", "../../etc", "/etc", "a\0b"]
        .into_iter()
        .flat_map(|name| {
            [
                files(vec![file(name, blob)]),
                directories(vec![child(name, &empty)]),
                links(vec![link(name, "t")]),
            ]
        })
        .map(|directory| (directory, ".name"))
        .collect();
    cases.extend([
        (files(vec![file(&"n".repeat(1 << 20), blob)]), "files["),
        (files(vec![file("a", blob), file("a", blob)]), "is used twice"),
        (
            reapi::Directory {
                files: vec![file("a", blob)],
                directories: vec![child("a", &empty)],
                symlinks: vec![link("a", "/etc")],
                ..Default::default()
            },
            "is used twice",
        ),
        (links(vec![link("a", "")]), ".target"),
        (links(vec![link("a", &"t".repeat(1 << 20))]), ".target"),
        (files(vec![reapi::FileNode { digest: None, ..file("f", blob) }]), ".digest"),
        (files(vec![bad_digest("../../etc/passwd", 1)]), ".digest"),
        (files(vec![bad_digest(&"A".repeat(64), 1)]), ".digest"),
        (files(vec![bad_digest(&"a".repeat(64), -1)]), ".digest"),
    ]);
    cases
}

async fn put(client: &Client, message: &impl Message) -> Result<Digest> {
    client.put(message.encode_to_vec()).await
}

/// Executes a command in an input root, and returns the status of the response.
async fn execute(client: &Client, root: Digest) -> Result<longshore_proto::rpc::Status> {
    let command = put(client, &TestAction::shell("true").command).await?;
    let action = reapi::Action {
        command_digest: Some(command.to_wire()),
        input_root_digest: Some(root.to_wire()),
        ..Default::default()
    };
    let action = put(client, &action).await?;
    Ok(client.execute(&action, true).await?.status.unwrap_or_default())
}

/// Offers a result to the action cache whose only output is a directory.
async fn offer(client: &Client, output: reapi::OutputDirectory) -> Result<Result<(), Status>> {
    let action = TestAction::shell("true").salt(uuid::Uuid::new_v4().to_string()).build(client.function());
    client.upload(&action.blobs).await?;
    let result = reapi::ActionResult { output_directories: vec![output], ..Default::default() };
    let request = reapi::UpdateActionResultRequest {
        action_digest: Some(action.digest.to_wire()),
        action_result: Some(result),
        ..Default::default()
    };
    let outcome = client.action_cache().update_action_result(request).await.map(drop);
    // A refusal must not be one that stores.
    let get =
        reapi::GetActionResultRequest { action_digest: Some(action.digest.to_wire()), ..Default::default() };
    let found = client.action_cache().get_action_result(get).await;
    ensure!(found.is_ok() == outcome.is_ok(), "{outcome:?}, and then {found:?}");
    Ok(outcome)
}

// Whoever executes in such a tree is told which field is wrong, and nothing is built.
#[tokio::test]
async fn malformed_directories_are_refused() -> Result<()> {
    let target = Target::start().await?;
    let client = target.longshore.client().await?;
    let blob = client.put("content").await?;
    for (directory, reason) in malformed(&blob) {
        let digest = put(&client, &directory).await?;
        let parent = reapi::Directory { directories: vec![child("below", &digest)], ..Default::default() };
        let parent = put(&client, &parent).await?;
        for root in [digest, parent] {
            let status = execute(&client, root).await?;
            let fits = status.code == Code::InvalidArgument as i32 && status.message.contains(reason);
            ensure!(fits, "{status:?}, not {reason}");
        }
        // A tree goes to nobody who could not build it either.
        let tree = reapi::Tree { root: Some(directory.clone()), ..Default::default() };
        let by_tree = reapi::OutputDirectory {
            path: "out".to_owned(),
            tree_digest: Some(put(&client, &tree).await?.to_wire()),
            ..Default::default()
        };
        let by_root = reapi::OutputDirectory {
            path: "out".to_owned(),
            root_directory_digest: Some(digest.to_wire()),
            ..Default::default()
        };
        for output in [by_tree, by_root] {
            let shown = format!("{output:?}: {reason}");
            refused(offer(&client, output).await?, Code::InvalidArgument, "action_result").context(shown)?;
        }
    }
    ensure!(client.read(&blob).await? == "content");
    drop(client);
    target.leaves_nothing().await
}

// Bytes that are no message, or not one in the form that its digest promises.
#[tokio::test]
async fn bytes_that_are_no_directory_are_refused() -> Result<()> {
    let target = Target::start().await?;
    let client = target.longshore.client().await?;
    let blob = client.put("content").await?;
    let fine = reapi::Directory { files: vec![file("f", &blob)], ..Default::default() }.encode_to_vec();
    let no_messages = [
        Bytes::from_static(b"\xff\xff\xff\xff"),
        Bytes::copy_from_slice(&fine[..fine.len() - 1]),
        // A length of four gigabytes, and groups within groups.
        Bytes::from_static(b"\x0a\xff\xff\xff\xff\x0f"),
        Bytes::from(vec![0x0b; 1 << 20]),
        // A name that is no UTF-8.
        Bytes::from_static(b"\x0a\x04\x0a\x02\xff\xfe"),
    ];
    for bytes in no_messages {
        let digest = client.put(bytes.clone()).await?;
        let status = execute(&client, digest).await?;
        let fits =
            status.code == Code::InvalidArgument as i32 && status.message.contains("is not a Directory");
        ensure!(fits, "{status:?}");
        let request = reapi::GetTreeRequest { root_digest: Some(digest.to_wire()), ..Default::default() };
        let page = client.cas().get_tree(request).await?.into_inner().message().await;
        refused(page, Code::InvalidArgument, "is not a Directory")?;
        let output = reapi::OutputDirectory {
            path: "out".to_owned(),
            tree_digest: Some(digest.to_wire()),
            ..Default::default()
        };
        refused(offer(&client, output).await?, Code::InvalidArgument, "tree")?;
    }
    drop(client);
    target.holds_at_most(OWN_BYTES).await?;
    target.leaves_nothing().await
}

// A tree that is small to send and endless to build is refused by arithmetic, and walked once where it is only read.
#[tokio::test]
async fn a_tree_of_trees_is_not_expanded() -> Result<()> {
    let target = Target::start().await?;
    let client = target.longshore.client().await?;
    let mut digest = put(&client, &reapi::Directory::default()).await?;
    for _ in 0..BOMB_LEVELS {
        let directories = ["a", "b"].map(|name| child(name, &digest)).to_vec();
        digest = put(&client, &reapi::Directory { directories, ..Default::default() }).await?;
    }
    let status = execute(&client, digest).await?;
    let fits = status.code == Code::InvalidArgument as i32 && status.message.contains("expands to");
    ensure!(fits, "{status:?}");

    let request = reapi::GetTreeRequest { root_digest: Some(digest.to_wire()), ..Default::default() };
    let mut pages = client.cas().get_tree(request).await?.into_inner();
    let mut directories = 0;
    while let Some(page) = pages.message().await? {
        directories += page.directories.len();
    }
    ensure!(directories == BOMB_LEVELS + 1, "{directories} directories");

    let output = reapi::OutputDirectory {
        path: "out".to_owned(),
        root_directory_digest: Some(digest.to_wire()),
        ..Default::default()
    };
    offer(&client, output).await??;
    drop((pages, client));
    target.holds_at_most(OWN_BYTES).await?;
    target.leaves_nothing().await
}
