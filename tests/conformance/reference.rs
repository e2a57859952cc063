//! What Buildbarn does, measured: where longshore agrees, and where it differs and why.

use std::time::Duration;

use anyhow::{Context as _, Result};
use longshore_proto::{Message as _, protobuf, reapi, rpc};
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::tree::InputTree;
use tonic::Code;

use crate::run::{Ran, declaring, missing, run, run_script};
use crate::support::{absent, execute, put_message, refused, shared_client, subject, unique};

const NOTHING: [&str; 0] = [];

/// Runs the command `true` on an input root that consists of `root` and of other blobs.
async fn run_on(client: &Client, root: &reapi::Directory) -> Result<rpc::Status> {
    run_on_blob(client, root.encode_to_vec()).await
}

async fn run_on_blob(client: &Client, root: Vec<u8>) -> Result<rpc::Status> {
    let root = client.put(root).await?;
    let command = put_message(client, &TestAction::shell("true").command).await?;
    let action = reapi::Action {
        command_digest: Some(command.to_wire()),
        input_root_digest: Some(root.to_wire()),
        ..Default::default()
    };
    status_of(client, &action).await
}

async fn status_of(client: &Client, action: &reapi::Action) -> Result<rpc::Status> {
    let action = put_message(client, action).await?;
    Ok(execute(client, &action).await?.status.unwrap_or_default())
}

#[track_caller]
fn has_nothing(ran: &Ran, code: Code) {
    assert_eq!(ran.code(), code, "{:?}", ran.status());
    let result = ran.any_result().expect("a result without outputs");
    assert!(result.stdout_digest.is_none() && ran.listing().is_ok_and(|listing| listing.is_empty()));
    assert_ne!(result.exit_code, 0, "a client that looks at nothing else must not read success");
}

/// Exit codes, signals and timeouts have the reference's statuses, results and partial outputs.
/// Deviation: A signal is 128 + N and a timeout 137, not -1 and 0, so that the exit code says that and how it failed.
#[tokio::test]
async fn ref_01() -> Result<()> {
    for (script, exit_code) in [("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143)] {
        let ran = run_script(script, &[]).await?;
        assert_eq!((ran.code(), ran.any_result()?.exit_code), (Code::Ok, exit_code));
    }
    let script = "echo so far; echo part > out; exec sleep 1000";
    let action = TestAction::shell(script).outputs(["out"]).timeout(Duration::from_secs(1));
    let ran = run(&action).await?;
    assert_eq!((ran.code(), ran.any_result()?.exit_code), (Code::DeadlineExceeded, 137));
    assert_eq!(ran.file("out").await?, "part\n");
    assert_eq!(ran.client.stdout(ran.any_result()?).await?, "so far\n");
    Ok(())
}

/// A program that cannot be executed is `INVALID_ARGUMENT`, with a result that has no outputs.
#[tokio::test]
async fn ref_02() -> Result<()> {
    let inputs = InputTree::new()
        .executable("garbage", "\u{0}\u{1}no program")
        .executable("bad_interpreter", "#!/no/such/interpreter\n")
        .file("plain", "#!/bin/sh\n")
        .file("kept", "an input that is an output")
        .directory("folder");
    let commands: [&[&str]; 8] = [
        &[],
        &["./absent"],
        &["absent-from-the-path"],
        &["/no/such/program"],
        &["./garbage"],
        &["./bad_interpreter"],
        &["./plain"],
        &["./folder"],
    ];
    for arguments in commands {
        let action = TestAction::new(arguments.iter().copied()).environment("PATH", "/usr/bin:/bin");
        let ran = run(&action.inputs(inputs.clone()).outputs(["kept"])).await?;
        has_nothing(&ran, Code::InvalidArgument);
        assert_eq!(ran.listing()?, NOTHING);
    }
    Ok(())
}

/// A working directory outside of the root is `INVALID_ARGUMENT`; one that an output needs is made.
#[tokio::test]
async fn ref_03() -> Result<()> {
    let within = |directory: &str| {
        let mut action = declaring(TestAction::shell("pwd > out"), &["out"]);
        action.command.working_directory = directory.to_owned();
        action
    };
    for directory in ["../..", "..", "a/../..", "/", "/tmp"] {
        has_nothing(&run(&within(directory)).await?, Code::InvalidArgument);
    }
    let ran = run(&within("not/in/the/inputs")).await?;
    ran.result().await?;
    assert!(ran.file("out").await?.ends_with(b"/not/in/the/inputs\n"));
    Ok(())
}

/// Output paths are refused and accepted like the reference's.
/// Deviation: A path that is declared twice comes back once, as `output_paths` is a set by its definition.
#[tokio::test]
async fn ref_04() -> Result<()> {
    for path in ["/absolute", "../escaping", "a/../../escaping"] {
        has_nothing(&run_script("true", &[path]).await?, Code::InvalidArgument);
    }
    let script = "mkdir -p d/e && echo f > d/e/f && echo z > zz";
    let ran = run_script(script, &["a/../zz", "d/", "d/e", "d/e/f", "d/e/f"]).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file a/../zz", "file d/e/f", "directory d/", "directory d/e"]);
    let ran = run_script("echo f > f", &[""]).await?;
    assert_eq!(
        (ran.listing()?, ran.contents("").await?),
        (vec!["directory ".to_owned()], vec!["f".to_owned()])
    );
    let ran = run_script("mkfifo pipe", &["pipe"]).await?;
    ran.failed_with(Code::InvalidArgument, &["pipe"])?;
    Ok(())
}

/// Names that are none are `INVALID_ARGUMENT`; links may lead anywhere.
/// Deviation: A name that comes twice is the client's error (`INVALID_ARGUMENT`), not the worker's (`INTERNAL`).
#[tokio::test]
async fn ref_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let content = client.put("content").await?.to_wire();
    let empty = client.put("").await?.to_wire();
    let file = |name: &str| reapi::FileNode {
        name: name.to_owned(),
        digest: Some(content.clone()),
        ..Default::default()
    };
    let folder = |name: &str| reapi::DirectoryNode { name: name.to_owned(), digest: Some(empty.clone()) };
    let link = |name: &str, target: &str| reapi::SymlinkNode {
        name: name.to_owned(),
        target: target.to_owned(),
        ..Default::default()
    };
    let refused = i32::from(Code::InvalidArgument);
    for name in ["", ".", "..", "a/b", "a\0b"] {
        for root in [
            reapi::Directory { files: vec![file(name)], ..Default::default() },
            reapi::Directory { directories: vec![folder(name)], ..Default::default() },
            reapi::Directory { symlinks: vec![link(name, "t")], ..Default::default() },
        ] {
            assert_eq!(run_on(&client, &root).await?.code, refused, "{root:?}");
        }
    }
    for root in [
        reapi::Directory { files: vec![file("a"), file("a")], ..Default::default() },
        reapi::Directory { files: vec![file("a")], directories: vec![folder("a")], ..Default::default() },
        reapi::Directory { directories: vec![folder("a"), folder("a")], ..Default::default() },
        reapi::Directory { files: vec![file("a")], symlinks: vec![link("a", "t")], ..Default::default() },
    ] {
        assert_eq!(run_on(&client, &root).await?.code, refused, "{root:?}");
    }
    for root in [
        reapi::Directory { directories: vec![folder("child")], ..Default::default() },
        reapi::Directory { symlinks: vec![link("absolute", "/etc")], ..Default::default() },
        reapi::Directory { symlinks: vec![link("climbing", "../../../..")], ..Default::default() },
    ] {
        assert_eq!(run_on(&client, &root).await?.code, 0, "{root:?}");
    }
    Ok(())
}

/// What is missing, has another size or is malformed has the reference's codes and subjects.
#[tokio::test]
async fn ref_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let gone = absent(client.function());
    let there = client.put(unique(20)).await?;
    let resized = reapi::Digest { size_bytes: 21, ..there.to_wire() };
    let file = |digest| reapi::FileNode { name: "f".to_owned(), digest: Some(digest), ..Default::default() };
    let folder = |digest| reapi::DirectoryNode { name: "d".to_owned(), digest: Some(digest) };
    let precondition = i32::from(Code::FailedPrecondition);
    let resized_subject = format!("blobs/{}/21", there.hash_hex());
    for (root, expected) in [
        (reapi::Directory { files: vec![file(gone.to_wire())], ..Default::default() }, subject(&gone)),
        (
            reapi::Directory { directories: vec![folder(gone.to_wire())], ..Default::default() },
            subject(&gone),
        ),
        (
            reapi::Directory { files: vec![file(resized.clone())], ..Default::default() },
            resized_subject.clone(),
        ),
        (reapi::Directory { directories: vec![folder(resized)], ..Default::default() }, resized_subject),
    ] {
        let status = run_on(&client, &root).await?;
        assert_eq!((status.code, missing(&status)?), (precondition, vec![expected]));
    }
    let hash = there.hash_hex();
    for (hash, size_bytes) in [(&hash[1..], 20), (&hash.to_uppercase(), 20), (&hash, -1), ("", 0)] {
        let odd = reapi::Digest { hash: hash.to_owned(), size_bytes };
        let root = reapi::Directory { files: vec![file(odd)], ..Default::default() };
        let status = run_on(&client, &root).await?;
        assert_eq!(status.code, i32::from(Code::InvalidArgument), "{hash} {size_bytes}: {status:?}");
    }
    let request = |digest| reapi::ExecuteRequest { action_digest: Some(digest), ..Default::default() };
    let status =
        refused(client.execution().execute(request(gone.to_wire())).await, Code::FailedPrecondition, &[]);
    assert_eq!(missing(&rpc::Status::decode(status.details())?)?, [subject(&gone)]);
    let garbage = client.put(b"\xff\xff".as_slice()).await?.to_wire();
    refused(client.execution().execute(request(garbage)).await, Code::InvalidArgument, &["Action"]);
    Ok(())
}

/// A negative timeout is `INVALID_ARGUMENT`; a platform without a worker is refused.
/// Deviation: No timeout is too long unless longshore is told so, and no worker is waited for that cannot come:
/// `FAILED_PRECONDITION`, not `UNAVAILABLE`.
#[tokio::test]
async fn ref_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let blobs = TestAction::shell("true").build(client.function());
    client.upload(&blobs.blobs).await?;
    let good = blobs.blobs.iter().find(|(digest, _)| *digest == blobs.digest).context("the Action")?;
    let good = reapi::Action::decode(good.1.clone())?;
    let span = |seconds| Some(protobuf::Duration { seconds, nanos: 0 });
    let status = status_of(&client, &reapi::Action { timeout: span(-1), ..good.clone() }).await?;
    assert_eq!(status.code, i32::from(Code::InvalidArgument));
    for seconds in [86_400, 315_576_000_000] {
        let status = status_of(&client, &reapi::Action { timeout: span(seconds), ..good.clone() }).await?;
        assert_eq!(status.code, 0, "{seconds}: {status:?}");
    }
    let property = reapi::platform::Property { name: "OSFamily".to_owned(), value: "plan9".to_owned() };
    let platform = Some(reapi::Platform { properties: vec![property] });
    let status = status_of(&client, &reapi::Action { platform, ..good }).await?;
    assert_eq!(status.code, i32::from(Code::FailedPrecondition), "{status:?}");
    Ok(())
}

/// A command sees the variables of its Command alone, an empty stdin and the usual umask.
#[tokio::test]
async fn ref_08() -> Result<()> {
    let ran = run(&TestAction::new(["/usr/bin/env"]).environment("A", "1").environment("B", "2")).await?;
    assert_eq!(ran.client.stdout(ran.result().await?).await?, "A=1\nB=2\n");
    let ran = run_script("readlink /proc/self/fd/0; umask; wc -c", &[]).await?;
    assert_eq!(ran.client.stdout(ran.result().await?).await?, "/dev/null\n0022\n0\n");
    Ok(())
}

/// Mode 010 is executable, and a file of mode 000 comes back.
#[tokio::test]
async fn ref_09() -> Result<()> {
    let ran = run_script("echo x > x; chmod 010 x; echo n > n; chmod 000 n", &["n", "x"]).await?;
    let result = ran.result().await?;
    assert_eq!(result.output_files.iter().map(|file| file.is_executable).collect::<Vec<_>>(), [false, true]);
    assert_eq!(ran.file("n").await?, "n\n");
    Ok(())
}
