//! `ActionCache`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::{Message as _, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::longshore::{Launch, Longshore};
use tonic::{Code, Status};

use crate::support::{
    absent, damage, details, files_in, missing_subjects, put_message, refused, shared_client, subject,
    succeeded, unique, wire_of,
};

/// Uploads an Action and its Command that no other test has; its working directory is `work`.
async fn stored_action(client: &Client) -> Result<Digest> {
    let mut action = TestAction::shell("true").salt(unique(16));
    "work".clone_into(&mut action.command.working_directory);
    let blobs = action.build(client.function());
    client.upload(&blobs.blobs).await?;
    Ok(blobs.digest)
}

async fn get(client: &Client, action: &Digest) -> Result<reapi::ActionResult, Status> {
    get_with(client, action, reapi::GetActionResultRequest::default()).await
}

async fn get_with(
    client: &Client,
    action: &Digest,
    request: reapi::GetActionResultRequest,
) -> Result<reapi::ActionResult, Status> {
    let request = reapi::GetActionResultRequest {
        action_digest: Some(action.to_wire()),
        digest_function: wire_of(action.function()),
        ..request
    };
    Ok(client.action_cache().get_action_result(request).await?.into_inner())
}

async fn update(
    client: &Client,
    action: &Digest,
    result: reapi::ActionResult,
) -> Result<reapi::ActionResult, Status> {
    update_in(client, "", action, result).await
}

async fn update_in(
    client: &Client,
    instance_name: &str,
    action: &Digest,
    result: reapi::ActionResult,
) -> Result<reapi::ActionResult, Status> {
    let request = reapi::UpdateActionResultRequest {
        instance_name: instance_name.to_owned(),
        action_digest: Some(action.to_wire()),
        action_result: Some(result),
        digest_function: wire_of(action.function()),
        ..Default::default()
    };
    Ok(client.action_cache().update_action_result(request).await?.into_inner())
}

fn file(path: &str, digest: &Digest) -> reapi::OutputFile {
    reapi::OutputFile { path: path.to_owned(), digest: Some(digest.to_wire()), ..Default::default() }
}

fn files(paths: &[&str], digest: &Digest) -> reapi::ActionResult {
    reapi::ActionResult {
        output_files: paths.iter().map(|path| file(path, digest)).collect(),
        ..Default::default()
    }
}

fn exited(exit_code: i32) -> reapi::ActionResult {
    reapi::ActionResult { exit_code, ..Default::default() }
}

fn directory_of(files: &[(&str, Digest)]) -> reapi::Directory {
    let node = |(name, digest): &(&str, Digest)| reapi::FileNode {
        name: (*name).to_owned(),
        digest: Some(digest.to_wire()),
        ..Default::default()
    };
    reapi::Directory { files: files.iter().map(node).collect(), ..Default::default() }
}

fn parent_of(name: &str, child: &Digest) -> reapi::Directory {
    let node = reapi::DirectoryNode { name: name.to_owned(), digest: Some(child.to_wire()) };
    reapi::Directory { directories: vec![node], ..Default::default() }
}

/// A result with an output directory that is a tree whose child has `files`.
async fn result_of_tree(client: &Client, files: &[(&str, Digest)]) -> Result<reapi::ActionResult> {
    let child = directory_of(files);
    let root = parent_of("sub", &client.function().digest(&child.encode_to_vec()));
    let tree = put_message(client, &reapi::Tree { root: Some(root), children: vec![child] }).await?;
    let directory = reapi::OutputDirectory {
        path: "d".to_owned(),
        tree_digest: Some(tree.to_wire()),
        ..Default::default()
    };
    Ok(reapi::ActionResult { output_directories: vec![directory], ..Default::default() })
}

/// The same as a directory of the store, by its root.
async fn result_of_root(client: &Client, files: &[(&str, Digest)]) -> Result<reapi::ActionResult> {
    let child = put_message(client, &directory_of(files)).await?;
    let root = put_message(client, &parent_of("sub", &child)).await?;
    let directory = reapi::OutputDirectory {
        path: "d".to_owned(),
        root_directory_digest: Some(root.to_wire()),
        ..Default::default()
    };
    Ok(reapi::ActionResult { output_directories: vec![directory], ..Default::default() })
}

/// The subjects of what is missing by an error that says so.
fn missing_in(status: &Status) -> Result<Vec<String>> {
    Ok(missing_subjects(&details(status)?))
}

/// An action without a result is `NOT_FOUND`.
#[tokio::test]
async fn ac_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let stored = stored_action(&client).await?;
        for action in [stored, absent(function), Digest::empty(function)] {
            refused(get(&client, &action).await, Code::NotFound, &[&action.hash_hex()]);
        }
    }
    Ok(())
}

/// A result belongs to its instance, and to the function, the hash and the size of its action.
#[tokio::test]
async fn ac_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let action = stored_action(&client).await?;
        update_in(&client, "one", &action, exited(1)).await?;
        update_in(&client, "one/two", &action, exited(2)).await?;
        let of = |instance: &str| {
            let instance_name = instance.to_owned();
            get_with(&client, &action, reapi::GetActionResultRequest { instance_name, ..Default::default() })
        };
        assert_eq!(of("one").await?.exit_code, 1);
        assert_eq!(of("one/two").await?.exit_code, 2);
        for other in ["", "One", "one/2", "two"] {
            refused(of(other).await, Code::NotFound, &[]);
        }
        update(&client, &action, exited(3)).await?;
        assert_eq!((of("").await?.exit_code, of("one").await?.exit_code), (3, 1));
        let size = action.to_wire().size_bytes;
        for size in [0, size - 1, size + 1] {
            refused(
                get(&client, &Digest::parse(function, &action.hash_hex(), size)?).await,
                Code::NotFound,
                &[],
            );
        }
        if function == DigestFunction::Sha256 {
            let alike = Digest::parse(DigestFunction::Blake3, &action.hash_hex(), size)?;
            refused(get(&client, &alike).await, Code::NotFound, &[]);
        }
    }
    Ok(())
}

/// A result is served only while everything that it names is here, what its trees name included.
#[tokio::test]
async fn ac_03() -> Result<()> {
    for function in DigestFunction::ALL {
        let longshore = Longshore::start().await?;
        let client = longshore.client().await?.with_function(function);
        let kept = client.put(unique(20)).await?;
        let mut results = Vec::new();
        for lost in (0..6).map(|_| unique(5000)) {
            let lost = client.put(lost).await?;
            let result = match results.len() {
                0 => files(&["a"], &lost),
                1 => result_of_tree(&client, &[("a", kept), ("b", lost)]).await?,
                2 => result_of_root(&client, &[("a", lost), ("b", kept)]).await?,
                3 => reapi::ActionResult { stdout_digest: Some(lost.to_wire()), ..files(&["a"], &kept) },
                4 => reapi::ActionResult { stderr_digest: Some(lost.to_wire()), ..Default::default() },
                // The tree itself.
                _ => result_of_tree(&client, &[("a", kept)]).await?,
            };
            let lost = match results.len() {
                5 => Digest::from_wire(function, result.output_directories[0].tree_digest.as_ref())?,
                _ => lost,
            };
            let action = stored_action(&client).await?;
            update(&client, &action, result.clone()).await?;
            assert_eq!(get(&client, &action).await?, result);
            results.push((action, result, lost));
        }
        for (action, result, lost) in results {
            let content = client.read(&lost).await?;
            damage(&longshore, &lost, b"damaged")?;
            assert!(client.read(&lost).await.is_err(), "a reader finds out");
            refused(get(&client, &action).await, Code::NotFound, &[&action.hash_hex()]);
            client.put(content).await?;
            assert_eq!(get(&client, &action).await?, result, "here again, it is served again");
        }
    }
    Ok(())
}

/// A result that is asked for keeps all that it names from being evicted early.
#[tokio::test]
async fn ac_04() -> Result<()> {
    let flags = vec!["--max-size".to_owned(), "4MiB".to_owned()];
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    let mut named = Vec::new();
    for _ in 0..6 {
        named.push(client.put(unique(1000)).await?);
    }
    let mut result = files(&["a"], &named[0]);
    result.output_directories = result_of_tree(&client, &[("b", named[1])]).await?.output_directories;
    let mut root = result_of_root(&client, &[("c", named[2])]).await?.output_directories.remove(0);
    root.path = "e".to_owned();
    named.push(Digest::from_wire(client.function(), root.root_directory_digest.as_ref())?);
    result.output_directories.push(root);
    result.stdout_digest = Some(named[3].to_wire());
    result.stderr_digest = Some(named[4].to_wire());
    let unnamed = named.remove(5);
    let action = stored_action(&client).await?;
    update(&client, &action, result.clone()).await?;
    for _ in 0..40 {
        client.put(unique(256 << 10)).await?;
        assert_eq!(get(&client, &action).await?, result, "it was asked for a moment ago");
    }
    assert_eq!(client.missing([&unnamed]).await?, [unnamed], "ten times its store went by");
    for digest in &named {
        client.read(digest).await?;
    }
    // So does one that is asked for with contents.
    for _ in 0..40 {
        client.put(unique(256 << 10)).await?;
        let get = reapi::GetActionResultRequest { inline_stdout: true, ..Default::default() };
        assert!(!get_with(&client, &action, get).await?.stdout_raw.is_empty());
    }
    Ok(())
}

/// Contents are inline where a client asks for them, and left out where the response would become too large.
#[tokio::test]
async fn ac_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let contents: Vec<_> = (0..4).map(|_| unique(100)).collect();
        let mut digests = Vec::new();
        for content in &contents {
            digests.push(client.put(content.clone()).await?);
        }
        let result = reapi::ActionResult {
            output_files: vec![
                file("a", &digests[0]),
                file("b", &digests[1]),
                file("none", &Digest::empty(function)),
            ],
            stdout_digest: Some(digests[2].to_wire()),
            stderr_digest: Some(digests[3].to_wire()),
            ..Default::default()
        };
        let action = stored_action(&client).await?;
        update(&client, &action, result.clone()).await?;
        let stdout = get_with(
            &client,
            &action,
            reapi::GetActionResultRequest { inline_stdout: true, ..Default::default() },
        );
        let expected = reapi::ActionResult { stdout_raw: contents[2].clone(), ..result.clone() };
        assert_eq!(stdout.await?, expected, "the digest stays, and nothing else comes");
        let everything = reapi::GetActionResultRequest {
            inline_stdout: true,
            inline_stderr: true,
            inline_output_files: ["b", "none", "b", "unknown"].map(str::to_owned).to_vec(),
            ..Default::default()
        };
        let mut expected = reapi::ActionResult { stderr_raw: contents[3].clone(), ..expected };
        expected.output_files[1].contents.clone_from(&contents[1]);
        assert_eq!(get_with(&client, &action, everything).await?, expected);
    }
    // More than a message takes; the client refuses larger ones.
    let large = client.put(unique(2 << 20)).await?;
    let paths: Vec<_> = (0..5).map(|index| format!("f{index}")).collect();
    let mut result = files(&paths.iter().map(String::as_str).collect::<Vec<_>>(), &large);
    let small = client.put(&b"small"[..]).await?;
    result.stdout_digest = Some(large.to_wire());
    result.stderr_digest = Some(small.to_wire());
    let action = stored_action(&client).await?;
    update(&client, &action, result).await?;
    let everything = reapi::GetActionResultRequest {
        inline_stdout: true,
        inline_stderr: true,
        inline_output_files: paths,
        ..Default::default()
    };
    let served = get_with(&client, &action, everything).await?;
    assert!(served.encoded_len() < 4 << 20);
    assert_eq!(served.stderr_raw, b"small");
    assert!(served.output_files.iter().all(|file| file.digest == Some(large.to_wire())));
    Ok(())
}

/// Without hints nothing is inline, whatever was uploaded inline.
#[tokio::test]
async fn ac_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (out, content) = (unique(50), unique(60));
    let inline =
        reapi::OutputFile { contents: content.clone(), ..file("a", &client.function().digest(&content)) };
    let result =
        reapi::ActionResult { output_files: vec![inline], stdout_raw: out.clone(), ..Default::default() };
    let action = stored_action(&client).await?;
    for answer in [update(&client, &action, result).await?, get(&client, &action).await?] {
        assert!(answer.stdout_raw.is_empty() && answer.output_files[0].contents.is_empty(), "{answer:?}");
        assert_eq!(answer.stdout_digest, Some(client.function().digest(&out).to_wire()));
    }
    // Nor after an execution that was asked for inline contents.
    let action =
        TestAction::shell("echo out; echo file > f").outputs(["f"]).salt(unique(8)).build(client.function());
    client.upload(&action.blobs).await?;
    let request = reapi::ExecuteRequest {
        action_digest: Some(action.digest.to_wire()),
        inline_stdout: true,
        inline_output_files: vec!["f".to_owned()],
        ..Default::default()
    };
    for cached in [false, true] {
        let stream = client.execution().execute(request.clone()).await?.into_inner();
        let response = longshore_tests::client::finished(stream).await?;
        assert_eq!(response.cached_result, cached);
        let result = succeeded(&response);
        assert_eq!(
            (&result.stdout_raw[..], &result.output_files[0].contents[..]),
            (&b"out\n"[..], &b"file\n"[..])
        );
    }
    let answer = get(&client, &action.digest).await?;
    assert!(answer.stdout_raw.is_empty() && answer.output_files[0].contents.is_empty());
    Ok(())
}

/// Contents that a client uploads inside a result become blobs, with or without their digest.
#[tokio::test]
async fn ac_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let (out, err, content) = (unique(50), unique(60), unique(70));
        let without =
            reapi::OutputFile { path: "a".to_owned(), contents: content.clone(), ..Default::default() };
        let result = reapi::ActionResult {
            stdout_raw: out.clone(),
            stderr_raw: err.clone(),
            stderr_digest: Some(function.digest(&err).to_wire()),
            output_files: vec![without],
            ..Default::default()
        };
        let action = stored_action(&client).await?;
        let stored = update(&client, &action, result).await?;
        for (digest, content) in [
            (&stored.stdout_digest, out),
            (&stored.stderr_digest, err),
            (&stored.output_files[0].digest, content),
        ] {
            let digest = Digest::from_wire(function, digest.as_ref())?;
            assert_eq!(client.read(&digest).await?, content, "{function}");
        }
        // What contradicts its digest is an error, not one of the two.
        let wrong = file("f", &function.digest(b"right"));
        let wrong = reapi::OutputFile { contents: b"wrong".to_vec(), ..wrong };
        let result = reapi::ActionResult { output_files: vec![wrong], ..Default::default() };
        let words = ["action_result", "output_files[0]", "does not match"];
        refused(update(&client, &action, result).await, Code::InvalidArgument, &words);
    }
    Ok(())
}

/// The Action and its Command have to be here before a result is.
#[tokio::test]
async fn ac_08() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let lost = absent(function);
        let status =
            refused(update(&client, &lost, exited(0)).await, Code::FailedPrecondition, &["action_digest"]);
        assert_eq!(missing_in(&status)?, [subject(&lost)]);
        let action = reapi::Action { command_digest: Some(lost.to_wire()), ..Default::default() };
        let action = put_message(&client, &action).await?;
        let status =
            refused(update(&client, &action, exited(0)).await, Code::FailedPrecondition, &["command"]);
        assert_eq!(missing_in(&status)?, [subject(&lost)]);
        refused(get(&client, &action).await, Code::NotFound, &[]);
    }
    Ok(())
}

/// So do the outputs; all that are missing are told at once.
#[tokio::test]
async fn ac_09() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let action = stored_action(&client).await?;
        let kept = client.put(unique(20)).await?;
        let lost: Vec<_> = (0..5).map(|_| absent(function)).collect();
        let mut result = files(&["a", "b", "c"], &lost[0]);
        result.output_files.push(file("kept", &kept));
        result.stderr_digest = Some(lost[1].to_wire());
        let tree = result_of_tree(&client, &[("x", lost[2]), ("y", kept)]).await?;
        let mut root =
            result_of_root(&client, &[("x", lost[3]), ("y", lost[0])]).await?.output_directories.remove(0);
        root.path = "e".to_owned();
        result.output_directories = tree.output_directories;
        result.output_directories.push(root);
        result.output_directories.push(reapi::OutputDirectory {
            path: "f".to_owned(),
            tree_digest: Some(lost[4].to_wire()),
            ..Default::default()
        });
        let status = refused(update(&client, &action, result).await, Code::FailedPrecondition, &["output"]);
        let mut expected: Vec<_> = lost.iter().map(subject).collect();
        expected.sort();
        assert_eq!(missing_in(&status)?, expected, "{function}");
        refused(get(&client, &action).await, Code::NotFound, &[]);
    }
    Ok(())
}

/// What is absent or malformed in a request is `INVALID_ARGUMENT`, by its field.
#[tokio::test]
async fn ac_10() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let action = stored_action(&client).await?;
    let request =
        reapi::UpdateActionResultRequest { action_digest: Some(action.to_wire()), ..Default::default() };
    refused(
        client.action_cache().update_action_result(request).await,
        Code::InvalidArgument,
        &["action_result"],
    );
    let request = reapi::UpdateActionResultRequest { action_result: Some(exited(0)), ..Default::default() };
    refused(
        client.action_cache().update_action_result(request).await,
        Code::InvalidArgument,
        &["action_digest"],
    );
    let request = reapi::GetActionResultRequest::default();
    refused(
        client.action_cache().get_action_result(request).await,
        Code::InvalidArgument,
        &["action_digest"],
    );

    let beef = Some(reapi::Digest { hash: "beef".to_owned(), size_bytes: 1 });
    let directory = |directory: reapi::OutputDirectory| reapi::ActionResult {
        output_directories: vec![reapi::OutputDirectory { path: "d".to_owned(), ..directory }],
        ..Default::default()
    };
    let of_tree = directory(reapi::OutputDirectory { tree_digest: beef.clone(), ..Default::default() });
    let of_root =
        directory(reapi::OutputDirectory { root_directory_digest: beef.clone(), ..Default::default() });
    let nameless = reapi::OutputFile { path: "a".to_owned(), ..Default::default() };
    let nameless = reapi::ActionResult { output_files: vec![nameless], ..Default::default() };
    let mut malformed = files(&["a"], &client.put(unique(5)).await?);
    malformed.output_files[0].digest.clone_from(&beef);
    let no_tree = client.put([b"\xff\xff", &unique(9)[..]].concat()).await?;
    let no_tree =
        directory(reapi::OutputDirectory { tree_digest: Some(no_tree.to_wire()), ..Default::default() });
    for (result, word) in [
        (nameless, "output_files[0].digest"),
        (malformed, "output_files[0].digest"),
        (reapi::ActionResult { stdout_digest: beef.clone(), ..Default::default() }, "stdout_digest"),
        (reapi::ActionResult { stderr_digest: beef, ..Default::default() }, "stderr_digest"),
        (of_tree, "output_directories[0].tree_digest"),
        (of_root, "output_directories[0].root_directory_digest"),
        (directory(reapi::OutputDirectory::default()), "output_directories[0]"),
        (no_tree, "tree"),
        (result_of_tree(&client, &[("../up", Digest::empty(client.function()))]).await?, "../up"),
        (result_of_root(&client, &[("..", Digest::empty(client.function()))]).await?, ".."),
    ] {
        let outcome = update(&client, &action, result).await;
        refused(outcome, Code::InvalidArgument, &["action_result", word]);
        refused(get(&client, &action).await, Code::NotFound, &[]);
    }
    // A tree that lacks a directory that it names, though the store may have it.
    let child = put_message(&client, &directory_of(&[("x", Digest::empty(client.function()))])).await?;
    let tree = reapi::Tree { root: Some(parent_of("sub", &child)), children: Vec::new() };
    let tree = put_message(&client, &tree).await?;
    let torn = directory(reapi::OutputDirectory { tree_digest: Some(tree.to_wire()), ..Default::default() });
    let words = ["action_result", &tree.hash_hex(), &child.hash_hex()];
    refused(update(&client, &action, torn).await, Code::InvalidArgument, &words);
    // A tree beside the root of another one: clients take the one or the other.
    let mut of_two = result_of_tree(&client, &[("x", Digest::empty(client.function()))]).await?;
    let of_root = result_of_root(&client, &[("y", Digest::empty(client.function()))]).await?;
    let root = of_root.output_directories[0].root_directory_digest.clone().context("a root")?;
    of_two.output_directories[0].root_directory_digest = Some(root);
    let words = ["action_result", "root_directory_digest"];
    refused(update(&client, &action, of_two.clone()).await, Code::InvalidArgument, &words);
    let of_one = result_of_root(&client, &[("x", Digest::empty(client.function()))]).await?;
    let root = of_one.output_directories[0].root_directory_digest.clone();
    of_two.output_directories[0].root_directory_digest = root;
    update(&client, &action, of_two).await?;
    // What stands under the digests of the Action and the Command is none.
    let junk = client.put([b"\xff\xff", &unique(9)[..]].concat()).await?;
    refused(
        update(&client, &junk, exited(0)).await,
        Code::InvalidArgument,
        &["action_digest", &junk.hash_hex()],
    );
    let action = reapi::Action { command_digest: Some(junk.to_wire()), ..Default::default() };
    let action = put_message(&client, &action).await?;
    refused(update(&client, &action, exited(0)).await, Code::InvalidArgument, &["command", &junk.hash_hex()]);
    Ok(())
}

/// Output paths that lead out of the tree, lie below a link or are used twice are `INVALID_ARGUMENT`.
#[tokio::test]
async fn ac_11() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let action = stored_action(&client).await?;
    let output = client.put(unique(10)).await?;
    let link = reapi::OutputSymlink { path: "l".to_owned(), target: "/etc".to_owned(), ..Default::default() };
    let linked =
        |path: &str| reapi::ActionResult { output_symlinks: vec![link.clone()], ..files(&[path], &output) };
    let directory = reapi::OutputDirectory {
        path: "../../d".to_owned(),
        ..result_of_tree(&client, &[("x", output)]).await?.output_directories.remove(0)
    };
    let directory = reapi::ActionResult { output_directories: vec![directory], ..Default::default() };
    for (result, word) in [
        (files(&["/etc/passwd"], &output), "/etc/passwd"),
        (files(&["../../out"], &output), "../../out"),
        (files(&["a/../../../out"], &output), "a/../../../out"),
        (files(&["a", "b", "a"], &output), "twice"),
        (files(&["a", "x/../a"], &output), "twice"),
        (files(&["a", "a/b"], &output), "a/b"),
        (files(&["a\0b"], &output), "output path"),
        (files(&[".."], &output), "\"..\""),
        (linked("l/passwd"), "l/passwd"),
        (linked("l"), "twice"),
        (directory, "../../d"),
    ] {
        let outcome = update(&client, &action, result).await;
        refused(outcome, Code::InvalidArgument, &["output path", word]);
        refused(get(&client, &action).await, Code::NotFound, &[]);
    }
    // The working directory is `work`: these stay inside.
    let fine =
        reapi::ActionResult { output_symlinks: vec![link], ..files(&["../out", "a/../b", "l2"], &output) };
    assert_eq!(update(&client, &action, fine.clone()).await?, fine);
    Ok(())
}

/// A result for which there is no space is refused.
///
/// What could never fit is `INVALID_ARGUMENT`, as everywhere; what finds the store full is `RESOURCE_EXHAUSTED`.
#[tokio::test]
async fn ac_12() -> Result<()> {
    let flags = vec!["--max-size".to_owned(), "12MiB".to_owned()];
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    let action = stored_action(&client).await?;
    let held = client.put(unique(10 << 20)).await?;
    let request = longshore_proto::bytestream::ReadRequest {
        resource_name: client.read_name(&held),
        ..Default::default()
    };
    let mut reading = client.byte_stream().read(request).await?.into_inner();
    reading.message().await?.context("a first chunk")?;
    let result = reapi::ActionResult { stdout_raw: unique(3 << 20), ..Default::default() };
    let outcome = update(&client, &action, result).await;
    refused(outcome, Code::ResourceExhausted, &["action_result", "stdout", "space"]);
    refused(get(&client, &action).await, Code::NotFound, &[]);
    Ok(())
}

/// Every client may update the cache, which the capabilities say.
///
/// Absent: whoever reaches the endpoint may also have results made by executing; a right to update apart from that
/// would protect nothing.
#[tokio::test]
async fn ac_13() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let request = reapi::GetCapabilitiesRequest::default();
    let capabilities = client.capabilities().get_capabilities(request).await?.into_inner();
    let cache = capabilities.cache_capabilities.context("no cache")?;
    assert!(cache.action_cache_update_capabilities.context("no update capabilities")?.update_enabled);
    let action = stored_action(&client).await?;
    update(&client, &action, exited(0)).await?;
    get(&client, &action).await?;
    Ok(())
}

/// The answer to an update is the result as it is stored.
#[tokio::test]
async fn ac_14() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let action = stored_action(&client).await?;
    let output = client.put(unique(10)).await?;
    let result = reapi::ActionResult {
        stdout_raw: unique(10),
        execution_metadata: Some(reapi::ExecutedActionMetadata {
            worker: "elsewhere".to_owned(),
            ..Default::default()
        }),
        ..files(&["z", "a"], &output)
    };
    let stored = update(&client, &action, result.clone()).await?;
    assert_eq!(get(&client, &action).await?, stored);
    let expected =
        reapi::ActionResult { stdout_raw: Vec::new(), stdout_digest: stored.stdout_digest.clone(), ..result };
    assert_eq!(stored, expected);
    Ok(())
}

/// A result with another exit code than 0 is taken: that is the client's decision.
#[tokio::test]
async fn ac_15() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for exit_code in [1, 137, -1, i32::MIN] {
        let action = stored_action(&client).await?;
        update(&client, &action, exited(exit_code)).await?;
        assert_eq!(get(&client, &action).await?.exit_code, exit_code);
        // An execution is answered by it too.
        let response = client.execute(&action, false).await?;
        assert!(response.cached_result);
        assert_eq!(response.result.context("a result")?.exit_code, exit_code);
    }
    Ok(())
}

/// The last writer wins, and readers see one result or the other.
#[tokio::test]
async fn ac_16() -> Result<()> {
    const ROUNDS: i32 = 30;
    let (_longshore, client) = shared_client().await?;
    let action = stored_action(&client).await?;
    let outputs = [client.put(unique(10)).await?, client.put(unique(20)).await?];
    let result = |round: i32| {
        let paths: Vec<_> = (0..=round).map(|index| format!("f{index}")).collect();
        let paths: Vec<_> = paths.iter().map(String::as_str).collect();
        reapi::ActionResult { exit_code: round, ..files(&paths, &outputs[usize::from(round % 2 == 1)]) }
    };
    update(&client, &action, result(0)).await?;
    let write = async {
        for round in 1..=ROUNDS {
            update(&client, &action, result(round)).await?;
            assert_eq!(get(&client, &action).await?.exit_code, round);
        }
        Ok::<_, Status>(())
    };
    let read = async {
        loop {
            let found = get(&client, &action).await?;
            assert_eq!(found, result(found.exit_code));
            if found.exit_code == ROUNDS {
                return Ok::<_, Status>(());
            }
        }
    };
    tokio::try_join!(write, read)?;
    Ok(())
}

/// An entry that is damaged on the disk is `NOT_FOUND`, and can be written anew.
#[tokio::test]
async fn ac_17() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let changes: [fn(&mut Vec<u8>); 4] = [
        |record| record.truncate(record.len() / 2),
        |record| record.clear(),
        |record| record[0] ^= 1,
        |record| record.extend_from_slice(b"more"),
    ];
    let action = stored_action(&client).await?;
    for change in changes {
        update(&client, &action, exited(5)).await?;
        let records = files_in(&longshore.root().join("records"));
        let [record] = &records[..] else { panic!("one record, not {records:?}") };
        let mut content = fs::read(record)?;
        change(&mut content);
        fs::set_permissions(record, fs::Permissions::from_mode(0o600))?;
        fs::write(record, content)?;
        for _ in 0..2 {
            refused(get(&client, &action).await, Code::NotFound, &[&action.hash_hex()]);
        }
        assert!(files_in(&longshore.root().join("records")).is_empty(), "it is dropped");
    }
    update(&client, &action, exited(6)).await?;
    assert_eq!(get(&client, &action).await?.exit_code, 6);
    Ok(())
}
