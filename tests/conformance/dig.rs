//! Digests and canonical encoding.

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::reapi::digest_function::Value;
use longshore_proto::{Message as _, longrunning, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::tree::InputTree;
use tonic::{Code, Status};

use crate::support::{
    absent, every_method, every_stream, execute, missing_subjects, put_message, refused, refused_inside,
    run_anew, shared_client, subject, succeeded, unique, wire_of,
};

const EVERY: [DigestFunction; 5] = DigestFunction::ALL;

/// What no request may name: everything that the enum has and longshore does not announce, and what it has not.
const NOT_OFFERED: [i32; 7] = [
    Value::Md5 as i32,
    Value::Vso as i32,
    Value::Murmur3 as i32,
    Value::Sha256tree as i32,
    Value::Gitsha1 as i32,
    4711,
    -1,
];

#[track_caller]
fn all_refused(answers: Vec<(&'static str, Status)>, words: &[&str], case: &str) {
    for (method, status) in answers {
        assert_eq!(status.code(), Code::InvalidArgument, "{method}: {case}: {status:?}");
        for word in words {
            assert!(
                status.message().contains(word),
                "{method}: {case}: {:?} lacks {word:?}",
                status.message()
            );
        }
    }
}

fn in_name(function: DigestFunction, hash: &str, size: impl std::fmt::Display) -> String {
    match function {
        DigestFunction::Blake3 => format!("blobs/blake3/{hash}/{size}"),
        _ => format!("blobs/{hash}/{size}"),
    }
}

/// Checks that every method refuses `hash` of `size_bytes`, by a message that names them.
async fn refused_everywhere(
    client: &Client,
    function: DigestFunction,
    hash: &str,
    size_bytes: i64,
    word: &str,
) {
    let digest = reapi::Digest { hash: hash.to_owned(), size_bytes };
    let case = format!("{function} {hash:?} {size_bytes}");
    all_refused(every_method(client, wire_of(function), Some(&digest)).await, &["digest", word], &case);
    all_refused(every_stream(client, &in_name(function, hash, size_bytes)).await, &[word], &case);
}

/// Uppercase hex is `INVALID_ARGUMENT`.
#[tokio::test]
async fn dig_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in EVERY {
        let client = client.with_function(function);
        let stored = client.put(unique(30)).await?;
        let upper = stored.hash_hex().to_uppercase();
        refused_everywhere(&client, function, &upper, 30, &upper).await;
        // One digit is enough.
        let at = stored.hash_hex().rfind(|digit: char| digit.is_ascii_lowercase()).context("a letter")?;
        let mut mixed = stored.hash_hex();
        mixed[at..=at].make_ascii_uppercase();
        refused_everywhere(&client, function, &mixed, 30, &mixed).await;
    }
    Ok(())
}

/// A hash of another length than the function's is `INVALID_ARGUMENT`.
#[tokio::test]
async fn dig_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in EVERY {
        let hash = function.digest(b"x").hash_hex();
        for wrong in [&hash[1..], &hash[2..], &format!("{hash}0"), &format!("00{hash}"), ""] {
            refused_everywhere(&client, function, wrong, 1, wrong).await;
        }
    }
    for length in [12, 32, 63, 65, 66, 129] {
        let digest = reapi::Digest { hash: "a".repeat(length), size_bytes: 1 };
        all_refused(every_method(&client, 0, Some(&digest)).await, &["aaaaaaaaaaaa"], "unnamed");
    }
    Ok(())
}

/// A hash with anything but hexadecimal digits is `INVALID_ARGUMENT`.
#[tokio::test]
async fn dig_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in EVERY {
        let hash = function.digest(b"x").hash_hex();
        for (wrong, digit) in [("g", "g"), (" ", " "), ("-", "-"), (".", "."), ("%", "%"), ("+", "+")] {
            refused_everywhere(&client, function, &format!("{wrong}{}", &hash[1..]), 1, digit).await;
            refused_everywhere(&client, function, &format!("{}{wrong}", &hash[1..]), 1, digit).await;
        }
        // Two bytes that are one letter, and a NUL.
        refused_everywhere(&client, function, &format!("é{}", &hash[2..]), 1, "é").await;
        let nul = reapi::Digest { hash: format!("\0{}", &hash[1..]), size_bytes: 1 };
        all_refused(every_method(&client, wire_of(function), Some(&nul)).await, &["hexadecimal"], "NUL");
    }
    Ok(())
}

/// A negative size is `INVALID_ARGUMENT`.
#[tokio::test]
async fn dig_04() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in EVERY {
        for size_bytes in [-1, i64::MIN] {
            let hash = function.digest(b"").hash_hex();
            refused_everywhere(&client, function, &hash, size_bytes, &size_bytes.to_string()).await;
        }
    }
    Ok(())
}

/// The right hash with another size is another blob, which is absent.
#[tokio::test]
async fn dig_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in EVERY {
        let client = client.with_function(function);
        let content = unique(100);
        let stored = client.put(content.clone()).await?;
        for size in [0, 99, 101, i64::MAX] {
            let other = Digest::parse(function, &stored.hash_hex(), size)?;
            assert_eq!(client.missing([&other, &stored]).await?, [other]);
            let read = reapi::BatchReadBlobsRequest {
                digests: vec![other.to_wire()],
                digest_function: wire_of(function),
                ..Default::default()
            };
            if size < 1_000 {
                let response = client.cas().batch_read_blobs(read).await?.into_inner();
                refused_inside(response.responses[0].status.as_ref(), Code::NotFound, &[]);
                assert!(response.responses[0].data.is_empty());
            } else {
                refused(client.cas().batch_read_blobs(read).await, Code::InvalidArgument, &["digests"]);
            }
            let read = every_stream(&client, &in_name(function, &stored.hash_hex(), size)).await.remove(0).1;
            assert_eq!(read.code(), Code::NotFound, "{read:?}");
            let entry = reapi::batch_update_blobs_request::Request {
                digest: Some(other.to_wire()),
                data: content.clone(),
                ..Default::default()
            };
            let update = reapi::BatchUpdateBlobsRequest {
                requests: vec![entry],
                digest_function: wire_of(function),
                ..Default::default()
            };
            let response = client.cas().batch_update_blobs(update).await?.into_inner();
            refused_inside(response.responses[0].status.as_ref(), Code::InvalidArgument, &["requests[0]"]);
        }
        let action = TestAction::shell("true").salt(unique(8)).build(function);
        client.upload(&action.blobs).await?;
        succeeded(&client.execute(&action.digest, false).await?);
        let other = Digest::parse(function, &action.digest.hash_hex(), 4)?;
        let response = execute(&client, &other).await?;
        refused_inside(response.status.as_ref(), Code::FailedPrecondition, &[]);
        assert_eq!(missing_subjects(&response.status.context("a status")?.details), [subject(&other)]);
        let get = reapi::GetActionResultRequest {
            action_digest: Some(other.to_wire()),
            digest_function: wire_of(function),
            ..Default::default()
        };
        refused(client.action_cache().get_action_result(get).await, Code::NotFound, &[&other.hash_hex()]);
    }
    Ok(())
}

/// An absent digest where one is needed is `INVALID_ARGUMENT` that names the field.
#[tokio::test]
async fn dig_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in EVERY {
        let client = client.with_function(function);
        all_refused(every_method(&client, wire_of(function), None).await, &["digest"], "none");
        // A digest that is there with nothing in it is not the empty blob's.
        let blank = reapi::Digest::default();
        all_refused(every_method(&client, wire_of(function), Some(&blank)).await, &["digest"], "blank");

        let command = reapi::Command { arguments: vec!["/bin/true".to_owned()], ..Default::default() };
        let command_digest = Some(put_message(&client, &command).await?.to_wire());
        let input_root_digest = Some(Digest::empty(function).to_wire());
        let node = reapi::FileNode { name: "f".to_owned(), ..Default::default() };
        let no_file = reapi::Directory { files: vec![node], ..Default::default() };
        let node = reapi::DirectoryNode { name: "d".to_owned(), digest: None };
        let no_directory = reapi::Directory { directories: vec![node], ..Default::default() };
        let no_file = Some(put_message(&client, &no_file).await?.to_wire());
        let no_directory = Some(put_message(&client, &no_directory).await?.to_wire());
        for (command_digest, input_root_digest, field) in [
            (None, input_root_digest, "command_digest"),
            (command_digest.clone(), None, "input_root_digest"),
            (command_digest.clone(), no_file, "files"),
            (command_digest, no_directory, "directories"),
        ] {
            let action = reapi::Action { command_digest, input_root_digest, ..Default::default() };
            let action = put_message(&client, &action).await?;
            let response = execute(&client, &action).await?;
            refused_inside(response.status.as_ref(), Code::InvalidArgument, &[field]);
        }
    }
    Ok(())
}

/// Messages are serialised canonically: fields in the order of their tags, defaults left out.
#[tokio::test]
async fn dig_07() -> Result<()> {
    let digest = |hash: &str| Some(reapi::Digest { hash: hash.to_owned(), size_bytes: 5 });
    let action = reapi::Action {
        command_digest: digest("c"),
        input_root_digest: digest("i"),
        do_not_cache: true,
        salt: b"s".to_vec(),
        ..Default::default()
    };
    // What protoc makes of: command_digest{hash:"c" size_bytes:5} input_root_digest{...} do_not_cache salt.
    let expected = b"\x0a\x05\x0a\x01c\x10\x05\x12\x05\x0a\x01i\x10\x05\x38\x01\x4a\x01s";
    assert_eq!(action.encode_to_vec(), expected);
    let command = reapi::Command {
        arguments: vec!["a".to_owned(), String::new()],
        environment_variables: vec![reapi::command::EnvironmentVariable {
            name: "N".to_owned(),
            value: "V".to_owned(),
        }],
        working_directory: "w".to_owned(),
        output_paths: vec!["o".to_owned()],
        ..Default::default()
    };
    let expected = b"\x0a\x01a\x0a\x00\x12\x06\x0a\x01N\x12\x01V\x32\x01w\x3a\x01o";
    assert_eq!(command.encode_to_vec(), expected);
    let directory = reapi::Directory {
        files: vec![reapi::FileNode {
            name: "f".to_owned(),
            digest: digest("h"),
            is_executable: true,
            ..Default::default()
        }],
        symlinks: vec![reapi::SymlinkNode {
            name: "l".to_owned(),
            target: "t".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let expected = b"\x0a\x0c\x0a\x01f\x12\x05\x0a\x01h\x10\x05\x20\x01\x1a\x06\x0a\x01l\x12\x01t";
    assert_eq!(directory.encode_to_vec(), expected);
    let tree = reapi::Tree { root: Some(directory.clone()), children: vec![reapi::Directory::default()] };
    assert_eq!(tree.encode_to_vec(), [b"\x0a\x16".as_slice(), expected, b"\x12\x00"].concat());

    // And so are those that come out of an execution.
    let (_longshore, client) = shared_client().await?;
    let script = "mkdir -p d/sub d/a; echo x > d/b; echo y > d/a-b; ln -s b d/l; echo z > d/sub/é";
    let response = run_anew(&client, &TestAction::shell(script).outputs(["d"]).salt(unique(8))).await?;
    let tree_digest = succeeded(&response).output_directories[0].tree_digest.clone();
    let bytes = client.read(&Digest::from_wire(client.function(), tree_digest.as_ref())?).await?;
    let tree = reapi::Tree::decode(bytes.clone())?;
    assert_eq!(tree.encode_to_vec(), bytes);
    assert_eq!(tree.children.len(), 2);
    for directory in tree.root.iter().chain(&tree.children) {
        assert!(directory.files.is_sorted_by(|a, b| a.name < b.name));
        assert!(directory.directories.is_sorted_by(|a, b| a.name < b.name));
    }
    Ok(())
}

/// An action with a message that a re-encoding would change, and its digest.
async fn action_of_raw(
    client: &Client,
    command: Vec<u8>,
    root: Vec<u8>,
    change: impl Fn(Vec<u8>) -> Vec<u8>,
) -> Result<Digest> {
    let action = reapi::Action {
        command_digest: Some(client.put(command).await?.to_wire()),
        input_root_digest: Some(client.put(root).await?.to_wire()),
        ..Default::default()
    };
    client.put(change(action.encode_to_vec())).await
}

/// A field that no version of the messages has: number 2000, a string.
fn with_unknown_field(mut message: Vec<u8>) -> Vec<u8> {
    message.extend_from_slice(b"\x82\x7d\x06newest");
    message
}

fn cat_command() -> reapi::Command {
    let mut command = TestAction::shell("cat f; cp f out").outputs(["out"]).command;
    command.arguments.push(String::from_utf8_lossy(&unique(4)).replace('\0', ""));
    command
}

fn root_of(content: &Digest) -> reapi::Directory {
    let node =
        reapi::FileNode { name: "f".to_owned(), digest: Some(content.to_wire()), ..Default::default() };
    reapi::Directory { files: vec![node], ..Default::default() }
}

/// A client's messages are known by the bytes that it stored, which are never encoded anew.
#[tokio::test]
async fn dig_08() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in EVERY {
        let client = client.with_function(function);
        let content = client.put(&b"content\n"[..]).await?;
        let command = with_unknown_field(cat_command().encode_to_vec());
        let root = with_unknown_field(root_of(&content).encode_to_vec());
        let action = action_of_raw(&client, command, root, with_unknown_field).await?;
        let response = client.execute(&action, false).await?;
        assert_eq!(client.stdout(succeeded(&response)).await?, "content\n");
        // The result is that of the digest which the client knows.
        let get = reapi::GetActionResultRequest {
            action_digest: Some(action.to_wire()),
            digest_function: wire_of(function),
            ..Default::default()
        };
        let cached = client.action_cache().get_action_result(get).await?.into_inner();
        assert_eq!(cached.output_files, succeeded(&response).output_files);
        let stream = client.start(&action, false).await?;
        let operation = crate::support::all_of(Ok(tonic::Response::new(stream))).await?.pop();
        assert_eq!(metadata_of(operation.as_ref())?.action_digest, Some(action.to_wire()));
    }
    Ok(())
}

fn metadata_of(operation: Option<&longrunning::Operation>) -> Result<reapi::ExecuteOperationMetadata> {
    let any = operation.and_then(|operation| operation.metadata.as_ref()).context("no metadata")?;
    Ok(reapi::ExecuteOperationMetadata::decode(any.value.as_slice())?)
}

/// Messages that are not canonical, and fields of a newer version, are read all the same.
#[tokio::test]
async fn dig_09() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let content = client.put(&b"content\n"[..]).await?;
    // The fields of the Action in the opposite order, a default written out, and one field given twice.
    let backwards = |action: Vec<u8>| {
        let action = reapi::Action::decode(action.as_slice()).expect("just encoded");
        let root = reapi::Action { command_digest: None, ..action.clone() }.encode_to_vec();
        let command = reapi::Action { input_root_digest: None, ..action }.encode_to_vec();
        [b"\x4a\x01x\x4a\x01s\x38\x00".as_slice(), &root, &command].concat()
    };
    // is_executable and node_properties as their defaults.
    let node =
        reapi::FileNode { name: "f".to_owned(), digest: Some(content.to_wire()), ..Default::default() };
    let node = [node.encode_to_vec(), b"\x20\x00\x32\x00".to_vec()].concat();
    let length = u8::try_from(node.len())?;
    let root = [vec![0x0a, length], node].concat();
    let mut command = cat_command();
    // Variables out of order.
    command
        .environment_variables
        .push(reapi::command::EnvironmentVariable { name: "A".to_owned(), value: "last".to_owned() });
    for change in [&backwards as &dyn Fn(Vec<u8>) -> Vec<u8>, &with_unknown_field] {
        let action = action_of_raw(&client, command.encode_to_vec(), root.clone(), change).await?;
        let response = client.execute(&action, false).await?;
        assert_eq!(client.stdout(succeeded(&response)).await?, "content\n");
    }
    Ok(())
}

/// Digests by two functions in one request are `INVALID_ARGUMENT` for the request.
#[tokio::test]
async fn dig_10() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let pairs = [
        (DigestFunction::Sha256, DigestFunction::Sha1),
        (DigestFunction::Sha1, DigestFunction::Sha512),
        (DigestFunction::Sha384, DigestFunction::Sha256),
    ];
    for (one, other) in pairs {
        let data = unique(10);
        let digests = vec![one.digest(&data).to_wire(), other.digest(&data).to_wire()];
        for digest_function in [0, wire_of(one)] {
            let find = reapi::FindMissingBlobsRequest {
                blob_digests: digests.clone(),
                digest_function,
                ..Default::default()
            };
            let word = if digest_function == 0 { other.name() } else { "blob_digests[1]" };
            refused(client.cas().find_missing_blobs(find).await, Code::InvalidArgument, &[word]);
            let read = reapi::BatchReadBlobsRequest {
                digests: digests.clone(),
                digest_function,
                ..Default::default()
            };
            refused(client.cas().batch_read_blobs(read).await, Code::InvalidArgument, &["digest"]);
        }
        let entry = |digest: &reapi::Digest| reapi::batch_update_blobs_request::Request {
            digest: Some(digest.clone()),
            data: data.clone(),
            ..Default::default()
        };
        let update = reapi::BatchUpdateBlobsRequest {
            requests: digests.iter().map(entry).collect(),
            ..Default::default()
        };
        refused(client.cas().batch_update_blobs(update).await, Code::InvalidArgument, &["digest_function"]);
        assert_eq!(
            client.with_function(one).missing([&one.digest(&data)]).await?.len(),
            1,
            "nothing is stored"
        );
    }
    // A result whose outputs are by another function than its action.
    let action = TestAction::shell("true").salt(unique(8)).build(DigestFunction::Sha256);
    client.upload(&action.blobs).await?;
    let sha1 = client.with_function(DigestFunction::Sha1).put(unique(10)).await?;
    let file =
        reapi::OutputFile { path: "out".to_owned(), digest: Some(sha1.to_wire()), ..Default::default() };
    let update = reapi::UpdateActionResultRequest {
        action_digest: Some(action.digest.to_wire()),
        action_result: Some(reapi::ActionResult { output_files: vec![file], ..Default::default() }),
        ..Default::default()
    };
    let outcome = client.action_cache().update_action_result(update).await;
    refused(outcome, Code::InvalidArgument, &["output_files[0].digest", &sha1.hash_hex()]);
    Ok(())
}

/// One execution uses one function throughout: its outputs, trees and streams are by that of its action.
#[tokio::test]
async fn dig_11() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in EVERY {
        let client = client.with_function(function);
        let script =
            "cat in/f; echo error >&2; cp in/f out; mkdir -p d/sub; echo deep > d/sub/file; ln -s f d/link";
        let mut action = TestAction::shell(script).outputs(["d", "out"]).salt(unique(8));
        action.inputs = InputTree::new().file("in/f", "content\n").symlink("in/l", "f");
        action.command.output_directory_format =
            reapi::command::OutputDirectoryFormat::TreeAndDirectory.into();
        let blobs = action.build(function);
        client.upload(&blobs.blobs).await?;
        let stream = client.start(&blobs.digest, false).await?;
        let operations = crate::support::all_of(Ok(tonic::Response::new(stream))).await?;
        for operation in &operations {
            assert_eq!(metadata_of(Some(operation))?.digest_function, wire_of(function));
        }
        let response = client.execute(&blobs.digest, false).await?;
        assert!(response.cached_result, "{function}");
        let result = succeeded(&response);
        assert_eq!(client.output_file(result, "out").await?, "content\n");
        assert_eq!(client.stdout(result).await?, "content\n");
        assert_eq!(client.stderr(result).await?, "error\n");
        let directory = &result.output_directories[0];
        let tree = Digest::from_wire(function, directory.tree_digest.as_ref())?;
        let tree = reapi::Tree::decode(client.read(&tree).await?)?;
        let root = tree.root.context("a root")?.encode_to_vec();
        assert_eq!(directory.root_directory_digest, Some(function.digest(&root).to_wire()), "{function}");
        client.read(&function.digest(&root)).await?;
        let file = tree.children[0].files[0].digest.clone();
        assert_eq!(file, Some(function.digest(b"deep\n").to_wire()));
        // And of the same result, nothing is known by another function.
        let others = EVERY.into_iter().filter(|other| other.hash_len() != function.hash_len());
        for other in others {
            let get = reapi::GetActionResultRequest {
                action_digest: Some(blobs.digest.to_wire()),
                digest_function: wire_of(other),
                ..Default::default()
            };
            refused(
                client.action_cache().get_action_result(get).await,
                Code::InvalidArgument,
                &["action_digest"],
            );
        }
    }
    Ok(())
}

/// A request that names no function is by the one that the length of its hashes implies.
#[tokio::test]
async fn dig_12() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in EVERY.into_iter().filter(|function| *function != DigestFunction::Blake3) {
        let data = unique(40);
        let digest = function.digest(&data);
        let entry = reapi::batch_update_blobs_request::Request {
            digest: Some(digest.to_wire()),
            data: data.clone(),
            ..Default::default()
        };
        let update = reapi::BatchUpdateBlobsRequest { requests: vec![entry], ..Default::default() };
        let response = client.cas().batch_update_blobs(update).await?.into_inner();
        assert_eq!(response.responses[0].status.clone().unwrap_or_default().code, 0, "{function}");
        assert_eq!(client.with_function(function).missing([&digest]).await?, []);
        let lost = absent(function);
        let find = reapi::FindMissingBlobsRequest {
            blob_digests: vec![digest.to_wire(), lost.to_wire()],
            ..Default::default()
        };
        let missing = client.cas().find_missing_blobs(find).await?.into_inner().missing_blob_digests;
        assert_eq!(missing, [lost.to_wire()]);
        let read = reapi::BatchReadBlobsRequest { digests: vec![digest.to_wire()], ..Default::default() };
        assert_eq!(client.cas().batch_read_blobs(read).await?.into_inner().responses[0].data, data);

        let action = TestAction::shell("echo out > out").outputs(["out"]).salt(unique(8)).build(function);
        client.with_function(function).upload(&action.blobs).await?;
        let action_digest = Some(action.digest.to_wire());
        let request = reapi::ExecuteRequest { action_digest: action_digest.clone(), ..Default::default() };
        let stream = client.execution().execute(request).await?.into_inner();
        let response = longshore_tests::client::finished(stream).await?;
        let output = succeeded(&response).output_files[0].digest.clone();
        assert_eq!(output, Some(function.digest(b"out\n").to_wire()));
        let get = reapi::GetActionResultRequest { action_digest, ..Default::default() };
        let cached = client.action_cache().get_action_result(get).await?.into_inner();
        assert_eq!(cached.output_files[0].digest, output);
    }
    Ok(())
}

/// BLAKE3 is never inferred: 64 digits without a function are SHA-256.
#[tokio::test]
async fn dig_13() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let blake3 = client.with_function(DigestFunction::Blake3);
    let data = unique(50);
    let stored = blake3.put(data.clone()).await?;
    assert_eq!(blake3.missing([&stored]).await?, []);
    let find = reapi::FindMissingBlobsRequest { blob_digests: vec![stored.to_wire()], ..Default::default() };
    let missing = client.cas().find_missing_blobs(find).await?.into_inner().missing_blob_digests;
    assert_eq!(missing, [stored.to_wire()]);
    let entry = reapi::batch_update_blobs_request::Request {
        digest: Some(stored.to_wire()),
        data,
        ..Default::default()
    };
    let update = reapi::BatchUpdateBlobsRequest { requests: vec![entry], ..Default::default() };
    let response = client.cas().batch_update_blobs(update).await?.into_inner();
    refused_inside(response.responses[0].status.as_ref(), Code::InvalidArgument, &["does not match"]);
    let read = every_stream(&client, &format!("blobs/{stored}")).await.remove(0).1;
    assert_eq!(read.code(), Code::NotFound);
    Ok(())
}

/// A function that is not announced is `INVALID_ARGUMENT`, by its name.
#[tokio::test]
async fn dig_14() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let digest = DigestFunction::Sha256.digest(b"data").to_wire();
    for value in NOT_OFFERED {
        let name =
            Value::try_from(value).map_or_else(|_| value.to_string(), |value| value.as_str_name().to_owned());
        let answers = every_method(&client, value, Some(&digest)).await;
        all_refused(answers, &["digest_function", &name], &name);
        // Without any digest too.
        let find = reapi::FindMissingBlobsRequest { digest_function: value, ..Default::default() };
        refused(client.cas().find_missing_blobs(find).await, Code::InvalidArgument, &[&name]);
    }
    Ok(())
}

/// A named function whose hashes have another length is `INVALID_ARGUMENT`.
#[tokio::test]
async fn dig_15() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for named in EVERY {
        for other in EVERY.into_iter().filter(|other| other.hash_len() != named.hash_len()) {
            let digest = other.digest(b"data").to_wire();
            let answers = every_method(&client, wire_of(named), Some(&digest)).await;
            all_refused(answers, &["digest", &digest.hash], &format!("{other} named {named}"));
        }
    }
    Ok(())
}

/// Digests of SHA-256 and BLAKE3 that look alike are different blobs and different actions.
#[tokio::test]
async fn dig_16() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let blake3 = client.with_function(DigestFunction::Blake3);
    let data = unique(60);
    let stored = client.put(data.clone()).await?;
    let alike = Digest::parse(DigestFunction::Blake3, &stored.hash_hex(), 60)?;
    assert_eq!(blake3.missing([&alike]).await?, [alike]);
    assert_eq!(every_stream(&client, &format!("blobs/blake3/{stored}")).await[0].1.code(), Code::NotFound);

    let action = TestAction::shell("true").salt(unique(8)).build(DigestFunction::Sha256);
    client.upload(&action.blobs).await?;
    succeeded(&client.execute(&action.digest, false).await?);
    let get = |function| reapi::GetActionResultRequest {
        action_digest: Some(action.digest.to_wire()),
        digest_function: wire_of(function),
        ..Default::default()
    };
    client.action_cache().get_action_result(get(DigestFunction::Sha256)).await?;
    refused(
        client.action_cache().get_action_result(get(DigestFunction::Blake3)).await,
        Code::NotFound,
        &[&action.digest.hash_hex()],
    );
    let alike =
        Digest::parse(DigestFunction::Blake3, &action.digest.hash_hex(), action.digest.to_wire().size_bytes)?;
    let response = execute(&blake3, &alike).await?;
    refused_inside(response.status.as_ref(), Code::FailedPrecondition, &[]);
    assert_eq!(missing_subjects(&response.status.context("a status")?.details), [subject(&alike)]);
    Ok(())
}

/// The empty blob of every function is known, and is nobody else's.
#[tokio::test]
async fn dig_17() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let published = [
        (DigestFunction::Sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (DigestFunction::Sha1, "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
        (
            DigestFunction::Sha384,
            "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b",
        ),
        (
            DigestFunction::Sha512,
            "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
        ),
        (DigestFunction::Blake3, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
    ];
    for (function, hash) in published {
        let client = client.with_function(function);
        assert_eq!(function.digest(b"").hash_hex(), hash);
        let empty = Digest::parse(function, hash, 0)?;
        assert_eq!(client.missing([&empty]).await?, []);
        assert!(client.read(&empty).await?.is_empty());
    }
    // BLAKE3's empty blob is a blob like any other where no function is named.
    let blake3 = reapi::Digest { hash: published[4].1.to_owned(), size_bytes: 0 };
    let find = reapi::FindMissingBlobsRequest { blob_digests: vec![blake3.clone()], ..Default::default() };
    assert_eq!(client.cas().find_missing_blobs(find).await?.into_inner().missing_blob_digests, [blake3]);
    let md5 = reapi::Digest { hash: "d41d8cd98f00b204e9800998ecf8427e".to_owned(), size_bytes: 0 };
    all_refused(every_method(&client, 0, Some(&md5)).await, &["d41d8cd98f00b204e9800998ecf8427e"], "MD5");
    Ok(())
}

/// Checks that a function is neither announced nor taken.
async fn not_offered(function: Value) -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let request = reapi::GetCapabilitiesRequest::default();
    let capabilities = client.capabilities().get_capabilities(request).await?.into_inner();
    let cache = capabilities.cache_capabilities.context("no cache")?;
    let execution = capabilities.execution_capabilities.context("no execution")?;
    assert!(!cache.digest_functions.contains(&function.into()), "{function:?}");
    assert!(!execution.digest_functions.contains(&function.into()), "{function:?}");
    assert_ne!(execution.digest_function, i32::from(function));
    let hash = "0".repeat(if function == Value::Gitsha1 { 40 } else { 64 });
    let digest = reapi::Digest { hash, size_bytes: 4 };
    let name = function.as_str_name();
    all_refused(every_method(&client, function.into(), Some(&digest)).await, &[name], name);
    let path = format!("blobs/{}/{}/4", name.to_lowercase(), digest.hash);
    all_refused(every_stream(&client, &path).await, &["resource_name"], name);
    Ok(())
}

/// SHA256TREE is not announced and not taken.
///
/// Absent: it helps where files are hashed in parts at several places, and no client here makes use of it.
#[tokio::test]
async fn dig_18() -> Result<()> {
    not_offered(Value::Sha256tree).await
}

/// GITSHA1 is not announced and not taken.
///
/// Absent: clients that take digests over from Git would have to fall back on other functions for trees anyway.
#[tokio::test]
async fn dig_19() -> Result<()> {
    not_offered(Value::Gitsha1).await
}

/// VSO and MURMUR3 are not announced and not taken.
#[tokio::test]
async fn dig_20() -> Result<()> {
    for function in [Value::Vso, Value::Murmur3, Value::Md5] {
        not_offered(function).await?;
    }
    Ok(())
}
