//! Input files and how they are laid out.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::tree_cache::TreeError;
use longshore_proto::{protobuf, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::cold::ColdWorker;
use longshore_tests::fake_cas::{FakeCas, Fault, Method};
use longshore_tests::longshore::{Launch, Longshore};
use longshore_tests::tree::InputTree;
use longshore_tests::wait::{empty, eventually};
use longshore_worker::remote::RemoteOptions;
use longshore_worker::status::Failure;
use tonic::{Code, Status};

use crate::run::{Gate, Ran, missing, run, run_by, run_on};
use crate::support::{absent, put_message, shared_client, subject, unique};

/// Larger than what travels in a batch.
const LARGE_BYTES: usize = 5 << 20;

/// Runs a script on inputs; its stdout, if it exits with 0.
async fn printed(inputs: InputTree, script: &str) -> Result<String> {
    let ran = run(&TestAction::shell(script).inputs(inputs)).await?;
    ran.client.stdout(ran.result().await?).await
}

fn mode(mode: u32) -> reapi::NodeProperties {
    let unix_mode = Some(protobuf::UInt32Value { value: mode });
    reapi::NodeProperties { unix_mode, ..Default::default() }
}

fn time(seconds: i64, nanos: i32) -> reapi::NodeProperties {
    let mtime = Some(protobuf::Timestamp { seconds, nanos });
    reapi::NodeProperties { mtime, ..Default::default() }
}

fn file(name: &str, digest: &Digest, is_executable: bool) -> reapi::FileNode {
    reapi::FileNode {
        name: name.to_owned(),
        digest: Some(digest.to_wire()),
        is_executable,
        ..Default::default()
    }
}

/// Every file is there, with its bytes, at its path, before the command starts.
#[tokio::test]
async fn inp_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let deep = vec!["d"; 60].join("/");
    let contents = [
        ("top", unique(1)),
        ("with space/\u{fc} -x*?\\", unique(1000)),
        (deep.as_str(), unique(4096)),
        ("large", unique(LARGE_BYTES)),
    ];
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let add = |tree: InputTree, (path, content): &(&str, Vec<u8>)| tree.file(path, content.clone());
        let inputs = contents.iter().fold(InputTree::new(), add);
        let action = TestAction::shell("find . -type f -exec sha256sum {} +").inputs(inputs);
        let ran = run_by(&client, &action).await?;
        let stdout = client.stdout(ran.result().await?).await?;
        let found: BTreeSet<_> =
            stdout.lines().map(|line| line.trim_start_matches('\\').to_owned()).collect();
        let line = |(path, content): &(&str, Vec<u8>)| {
            let hash = DigestFunction::Sha256.digest(content).hash_hex();
            // The tool writes a backslash twice.
            format!("{hash}  ./{}", path.replace('\\', "\\\\"))
        };
        assert_eq!(found, contents.iter().map(line).collect(), "{function}");
    }
    Ok(())
}

/// An executable file can be executed by everybody, and any other one by nobody.
#[tokio::test]
async fn inp_02() -> Result<()> {
    let script = format!("#!/bin/sh\necho ran {}\n", uuid::Uuid::new_v4());
    let inputs = InputTree::new().executable("bin/tool", script.clone()).file("plain", unique(10));
    let stdout = printed(inputs, "stat -c %a bin/tool plain && bin/tool && ! test -x plain").await?;
    ensure!(stdout.starts_with("555\n444\nran "), "{stdout}");
    Ok(())
}

/// `unix_mode` sets the permission bits, but for set-user-ID and set-group-ID; what is executable stays so.
#[tokio::test]
async fn inp_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let content = client.put(unique(10)).await?;
    let with = |name: &str, is_executable: bool, bits: u32| reapi::FileNode {
        node_properties: Some(mode(bits)),
        ..file(name, &content, is_executable)
    };
    let files = vec![with("a", false, 0o640), with("b", true, 0o640), with("c", false, 0o1777)];
    let folder = reapi::Directory {
        files: vec![file("f", &content, false)],
        node_properties: Some(mode(0o750)),
        ..Default::default()
    };
    let folder = put_message(&client, &folder).await?;
    let folder = reapi::DirectoryNode { name: "d".to_owned(), digest: Some(folder.to_wire()) };
    let root = reapi::Directory { files, directories: vec![folder], ..Default::default() };
    let root = put_message(&client, &root).await?;
    let ran = run_on(&client, root, TestAction::shell("stat -c '%n %a' a b c d")).await?;
    ensure!(client.stdout(ran.result().await?).await? == "a 640\nb 751\nc 1777\nd 750\n");

    for bits in [0o4755, 0o2755, 0o6000] {
        let root = reapi::Directory { files: vec![with("set", false, bits)], ..Default::default() };
        let root = put_message(&client, &root).await?;
        let ran = run_on(&client, root, TestAction::shell("true")).await?;
        ran.failed_with(Code::InvalidArgument, &["files[\"set\"].node_properties.unix_mode"])?;
    }
    Ok(())
}

/// `mtime` is set to the nanosecond; every input without one has the same time, 2000-01-01.
#[tokio::test]
async fn inp_04() -> Result<()> {
    let inputs = InputTree::new()
        .file_with("now", unique(10), time(1_700_000_000, 123_456_789))
        .file_with("before", unique(10), time(-1, 999_999_999))
        .file("plain", unique(10))
        .executable("tool", unique(10))
        .file("empty", "");
    let stdout = printed(inputs, "TZ=UTC stat -c %.9Y now before plain tool empty").await?;
    let default = "946684800.000000000";
    let expected = ["1700000000.123456789", "-0.000000001", default, default, default].join("\n");
    // A time before 1970 is written in one of two ways.
    let found = stdout.trim_end().replace("-1.999999999", "-0.000000001");
    ensure!(found == expected, "{stdout}");
    Ok(())
}

/// A node property that nobody knows is ignored, with the others beside it.
#[tokio::test]
async fn inp_05() -> Result<()> {
    let unknown = reapi::NodeProperty { name: "x.unknown".to_owned(), value: "1".to_owned() };
    let properties = reapi::NodeProperties { properties: vec![unknown], ..mode(0o600) };
    let inputs = InputTree::new().file_with("f", "content", properties);
    // Whoever the command runs as owns it.
    ensure!(printed(inputs, "stat -c %a f && cat f").await? == "600\ncontent");
    Ok(())
}

/// Two files of one digest have each their own mode, in one tree and in several.
#[tokio::test]
async fn inp_06() -> Result<()> {
    let content = unique(100);
    let both = InputTree::new().executable("tool", content.clone()).file("plain", content.clone());
    let script = "stat -c %a tool plain; test $(stat -c %i tool) != $(stat -c %i plain)";
    for _ in 0..2 {
        ensure!(printed(both.clone(), script).await? == "555\n444\n");
        ensure!(printed(InputTree::new().file("f", content.clone()), "stat -c %a f").await? == "444\n");
        ensure!(printed(InputTree::new().executable("f", content.clone()), "stat -c %a f").await? == "555\n");
    }
    Ok(())
}

/// A command that writes to its inputs changes them for no other action.
///
/// Open: an action that runs as the store's owner (longshore without root, or root in a namespace without other users)
/// can give itself the right to write; that needs a user namespace. Otherwise root runs actions as somebody else.
#[tokio::test]
async fn inp_07() -> Result<()> {
    // The same one to the end, also where no other test holds it.
    let (_longshore, client) = shared_client().await?;
    let content = unique(100);
    let inputs = InputTree::new().file("d/plain", content.clone()).executable("d/tool", content.clone());
    let user: u32 = printed(InputTree::new(), "id -u").await?.trim_end().parse()?;
    let is_owner = user == nix::unistd::geteuid().as_raw();
    if is_owner && user == 0 {
        // No mode stops it: this is what is open.
        return Ok(());
    }
    // What a file's owner may do whatever its mode.
    let seize = if is_owner { "" } else { "chmod 777 d/plain d/tool; touch d/plain;" };
    let script = format!(
        "exec 2> /dev/null; {seize} echo more >> d/plain; echo more >> d/tool; true > d/plain; truncate -s 1 d/tool; \
         ln d/plain link; echo more >> link; true"
    );
    run(&TestAction::shell(&script).inputs(inputs.clone())).await?.result().await?;
    let stdout = printed(inputs, "cat d/plain d/tool | sha256sum; stat -c '%a %Y' d/plain d/tool").await?;
    let hash = DigestFunction::Sha256.digest(&content.repeat(2)).hash_hex();
    ensure!(stdout == format!("{hash}  -\n444 946684800\n555 946684800\n"), "{stdout}");
    // The client compares the digest of what it reads.
    client.read(&DigestFunction::Sha256.digest(&content)).await?;
    Ok(())
}

/// The command may create, rename, replace and delete anything in its root.
#[tokio::test]
async fn inp_08() -> Result<()> {
    let inputs = InputTree::new()
        .file("d/a", "a")
        .file("d/b", "b")
        .executable("d/tool", "t")
        .file("d/e/f", "f")
        .symlink("d/link", "a")
        .file("top", "top");
    let script = "set -e; echo new > d/new; mkdir d/e/made; mv d/a d/e/moved; rm d/tool d/link; \
         echo replaced > t && mv t d/b; mv d/e d/other; rm -rf top; echo again > top; \
         cat d/new d/b top d/other/moved; find . -type f | sort";
    let stdout = printed(inputs.clone(), script).await?;
    let files = "./d/b\n./d/new\n./d/other/f\n./d/other/moved\n./top\n";
    ensure!(stdout == format!("new\nreplaced\nagain\na{files}"), "{stdout}");
    // The next one finds all as it was.
    ensure!(printed(inputs, "cat d/a d/b d/tool d/e/f top d/link").await? == "abtftopa");
    Ok(())
}

/// An empty file needs no blob, executable or not.
#[tokio::test]
async fn inp_09() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let empty = function.digest(b"");
        let files = vec![file("plain", &empty, false), file("tool", &empty, true)];
        let root = put_message(&client, &reapi::Directory { files, ..Default::default() }).await?;
        let ran = run_on(&client, root, TestAction::shell("stat -c '%s %a' plain tool")).await?;
        ensure!(client.stdout(ran.result().await?).await? == "0 444\n0 555\n", "{function}");
    }
    Ok(())
}

/// A worker's store in front of a CAS that has a tree; the tree's root.
async fn in_front_of(cas: &FakeCas) -> Result<(ColdWorker, Digest)> {
    let tree = InputTree::new().file("d/f", unique(100)).file("large", unique(LARGE_BYTES));
    let tree = tree.build(DigestFunction::Sha256);
    cas.put_all(tree.blobs());
    Ok((ColdWorker::hasty(&RemoteOptions::new(cas.uri())).await?, tree.root))
}

/// What a client is told when a tree cannot be had.
async fn failure(worker: &ColdWorker, root: Digest) -> Result<(Failure, TreeError)> {
    let error = worker.get(root).await.err().context("there is a tree")?;
    Ok((Failure::from(error.clone()), error))
}

/// Bytes that are not what their digest says are never used nor kept, and no client is blamed.
#[tokio::test]
async fn inp_10() -> Result<()> {
    let cas = FakeCas::start().await?;
    let (worker, root) = in_front_of(&cas).await?;
    cas.always(Method::GetTree, Fault::Fail(Status::unimplemented("")));
    cas.always(Method::BatchReadBlobs, Fault::Corrupt);
    cas.always(Method::Read, Fault::Corrupt);
    let (failure, error) = failure(&worker, root).await?;
    ensure!(matches!(failure.code(), Code::Internal | Code::DataLoss), "{failure:?}");
    ensure!(matches!(error, TreeError::Fetch { .. }), "{error:?}");
    // What is right now is taken: nothing wrong was kept in its place.
    for method in [Method::BatchReadBlobs, Method::Read, Method::GetTree] {
        cas.heal(method);
    }
    let tree = worker.get(root).await?;
    let large = std::fs::read(tree.path().join("large"))?;
    let named = tree.tree().files.iter().map(|file| file.key.digest).collect::<Vec<_>>();
    ensure!(named == [DigestFunction::Sha256.digest(&large)], "{named:?}");
    // Nor does a server keep what a client sends wrongly.
    let (_longshore, client) = shared_client().await?;
    let digest = absent(DigestFunction::Sha256);
    client.upload(&[(digest, unique(20).into())]).await.expect_err("these are other bytes");
    ensure!(client.missing([&digest]).await? == [digest]);
    Ok(())
}

/// Every missing blob is named, each by a `MISSING` violation: messages, and files of the messages that are there.
#[tokio::test]
async fn inp_11() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let (first, second, third) = (absent(function), absent(function), absent(function));
        let here = client.put(unique(10)).await?;
        let files = vec![file("a", &first, false), file("b", &second, true), file("c", &here, false)];
        let folder = reapi::Directory { files: vec![file("f", &first, false)], ..Default::default() };
        let folder = put_message(&client, &folder).await?;
        let node = |name: &str, digest: &Digest| reapi::DirectoryNode {
            name: name.to_owned(),
            digest: Some(digest.to_wire()),
        };
        let directories = vec![node("here", &folder), node("lost", &third)];
        let root = reapi::Directory { files, directories, ..Default::default() };
        let root = put_message(&client, &root).await?;
        let ran = run_on(&client, root, TestAction::shell("true")).await?;
        ran.failed_with(Code::FailedPrecondition, &[])?;
        let named: BTreeSet<_> = missing(&ran.status())?.into_iter().collect();
        assert_eq!(named, [first, second, third].iter().map(subject).collect(), "{function}");
        ensure!(missing(&ran.status())?.len() == 3, "one each");
    }
    Ok(())
}

/// A CAS that cannot be reached, or is too slow, is `UNAVAILABLE`: another try may help.
#[tokio::test]
async fn inp_12() -> Result<()> {
    for status in [Status::unavailable("gone"), Status::deadline_exceeded("slow")] {
        let cas = FakeCas::start().await?;
        let (worker, root) = in_front_of(&cas).await?;
        for method in [Method::BatchReadBlobs, Method::Read, Method::GetTree, Method::GetCapabilities] {
            cas.always(method, Fault::Fail(status.clone()));
        }
        let (failure, _) = failure(&worker, root).await?;
        ensure!(failure.code() == Code::Unavailable, "{failure:?}");
    }
    Ok(())
}

/// Inputs that do not fit are `RESOURCE_EXHAUSTED`, and nothing is left of them.
#[tokio::test]
async fn inp_13() -> Result<()> {
    let flags = vec!["--max-size".to_owned(), "16MiB".to_owned()];
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    // It is stored once as a blob, and once more as something that can be executed.
    let inputs = InputTree::new().executable("tool", unique(10 << 20));
    let ran = run_by(&client, &TestAction::shell("true").inputs(inputs)).await?;
    ran.failed_with(Code::ResourceExhausted, &["input root"])?;
    for folder in ["work", "scratch", "trash"] {
        empty(&longshore.root().join(folder)).await?;
    }
    run_by(&client, &TestAction::shell("true")).await?.result().await?;
    Ok(())
}

/// Runs a script that lists what is around its own root while another one has a root, too.
async fn neighbours(client: &Client) -> Result<(Ran, Ran)> {
    let gate = Gate::new()?;
    let waits = format!("echo secret > mine; pwd; {}", gate.script());
    let waits = TestAction::shell(&waits);
    let first = run_by(client, &waits);
    let second = async {
        gate.reached().await?;
        let ran = run_by(client, &TestAction::shell("pwd; ls; ls .. 2> /dev/null; true")).await;
        gate.open()?;
        ran
    };
    futures::future::try_join(first, second).await
}

/// Actions do not see each other's roots, which are removed when they end, whatever is in them.
#[tokio::test]
async fn inp_14() -> Result<()> {
    let flags = vec!["--jobs".to_owned(), "2".to_owned()];
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    let (first, second) = neighbours(&client).await?;
    let first = client.stdout(first.result().await?).await?;
    let second = client.stdout(second.result().await?).await?;
    let (root, listed) = second.split_once('\n').context("no root")?;
    ensure!(root != first.trim_end(), "one root for two actions");
    ensure!(!listed.contains("mine"), "{listed}");
    let name = Path::new(first.trim_end()).parent().and_then(Path::file_name).context("a name")?;
    ensure!(!listed.contains(name.to_str().context("UTF-8")?), "{name:?} is seen: {listed}");

    let script = "mkdir -p locked/in && : > locked/in/f && chmod 000 locked/in && chmod 500 locked; \
         i=0; while [ $i -lt 200 ]; do mkdir dddddddddddddddd && cd dddddddddddddddd || exit 1; i=$((i+1)); done; : > f";
    let inputs = InputTree::new().file("readonly/f", "x");
    run_by(&client, &TestAction::shell(script).inputs(inputs)).await?.result().await?;
    empty(&longshore.root().join("work")).await?;
    eventually("the trash is empty", || {
        Ok(std::fs::read_dir(longshore.root().join("trash"))?.next().is_none())
    })
    .await
}
