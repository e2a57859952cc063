//! Errors: which code, where, and with which details.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use longshore_cas_store::digest::DigestFunction;
use longshore_proto::error_details::{Detail as _, RetryInfo};
use longshore_proto::reapi::capabilities_server::{Capabilities, CapabilitiesServer};
use longshore_proto::{Message as _, longrunning, protobuf, reapi, rpc};
use longshore_tests::action::{ActionBlobs, TestAction};
use longshore_tests::client::Client;
use longshore_tests::longshore::{Launch, Longshore, new_home};
use longshore_tests::process::{fifo, foreign_descendants};
use longshore_tests::tree::InputTree;
use longshore_worker::frontend::embedded::{AroundLayer, CatchPanics};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::codegen::{Service as _, http};
use tonic::{Code, Request, Response, Status};

use crate::run::{declaring, declaring_older, missing, response, run, run_by};
use crate::support::{absent, all_of, put_message, refused, shared_client, subject, unique};

/// An Action that is in the store.
async fn put_action(client: &Client, action: &reapi::Action) -> Result<reapi::ExecuteRequest> {
    let digest = put_message(client, action).await?;
    Ok(reapi::ExecuteRequest {
        action_digest: Some(digest.to_wire()),
        digest_function: client.wire_function(),
        skip_cache_lookup: true,
        ..Default::default()
    })
}

/// The one operation that a refused action ends with.
async fn last_operation(client: &Client, request: reapi::ExecuteRequest) -> Result<longrunning::Operation> {
    let operations = all_of(client.execution().execute(request).await).await?;
    let (last, before) = operations.split_last().context("no operation")?;
    ensure!(before.iter().all(|operation| !operation.done && operation.result.is_none()));
    Ok(last.clone())
}

async fn status_of(client: &Client, action: &reapi::Action) -> Result<rpc::Status> {
    let request = put_action(client, action).await?;
    let response = response(&last_operation(client, request).await?)?;
    response.status.context("no status")
}

/// Uploads an action without the blobs that `leave_out` picks.
async fn upload_without(
    client: &Client,
    blobs: &ActionBlobs,
    leave_out: impl Fn(&[u8]) -> bool,
) -> Result<Vec<String>> {
    let (left_out, uploaded): (Vec<_>, Vec<_>) =
        blobs.blobs.iter().cloned().partition(|(_, data)| leave_out(data));
    client.upload(&uploaded).await?;
    let mut subjects: Vec<_> = left_out.iter().map(|(digest, _)| subject(digest)).collect();
    subjects.sort();
    Ok(subjects)
}

fn retry_info(status: &rpc::Status) -> Option<RetryInfo> {
    status.details.iter().find_map(RetryInfo::from_any)
}

/// Errors before there is an operation are the call's; later ones are in the response, never in `Operation.error`.
#[tokio::test]
async fn err_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let request = |digest| reapi::ExecuteRequest { action_digest: digest, ..Default::default() };
    let before = [
        (None, Code::InvalidArgument),
        (Some(reapi::Digest { hash: "xyz".to_owned(), size_bytes: 3 }), Code::InvalidArgument),
        (Some(absent(client.function()).to_wire()), Code::FailedPrecondition),
        (Some(client.put(b"\xff\xff no message".as_slice()).await?.to_wire()), Code::InvalidArgument),
    ];
    for (digest, code) in before {
        refused(client.execution().execute(request(digest)).await, code, &[]);
    }
    let later = reapi::Action { command_digest: None, ..Default::default() };
    let operation = last_operation(&client, put_action(&client, &later).await?).await?;
    assert_eq!(response(&operation)?.status.context("a status")?.code, i32::from(Code::InvalidArgument));
    Ok(())
}

/// An operation with an error is done, has a response, and its stream ends with OK.
#[tokio::test]
async fn err_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let blobs = TestAction::shell("sleep 1000").timeout(Duration::from_millis(200)).build(client.function());
    client.upload(&blobs.blobs).await?;
    let mut stream = client.start(&blobs.digest, true).await?;
    let mut last = None;
    while let Some(operation) = stream.next().await {
        assert!(last.is_none(), "nothing comes after the end");
        let operation = operation.context("the stream ends with OK")?;
        last = operation.done.then_some(operation);
    }
    let response = response(&last.context("it ended before it was done")?)?;
    assert_eq!(response.status.context("a status")?.code, i32::from(Code::DeadlineExceeded));
    Ok(())
}

/// Each missing blob is one `MISSING` violation of `FAILED_PRECONDITION`, all of them at once.
#[tokio::test]
async fn err_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let picks: [(Pick, usize); 5] = [
        (|data| data.starts_with(b"one "), 1),
        (|data| data.starts_with(b"one ") || data.starts_with(b"two "), 2),
        (|data| [b"one ".as_slice(), b"two ", b"three "].iter().any(|text| data.starts_with(text)), 3),
        // A Directory hides what lies below it, and nothing beside it; nor does the Command hide anything.
        (|data| data.starts_with(b"one ") || has(data, "only_in_deep"), 2),
        (|data| data.starts_with(b"one ") || has(data, "only_in_deep") || has(data, "/bin/sh"), 3),
    ];
    for (pick, count) in picks {
        let blobs = with_files(client.function());
        let subjects = upload_without(&client, &blobs, pick).await?;
        assert_eq!(subjects.len(), count);
        let found = client.execute(&blobs.digest, true).await?;
        let status = found.status.context("a status")?;
        assert_eq!(status.code, i32::from(Code::FailedPrecondition));
        let mut found = missing(&status)?;
        found.sort();
        assert_eq!(found, subjects);
        // After the upload that it asks for, it runs.
        client.upload(&blobs.blobs).await?;
        assert_eq!(client.execute(&blobs.digest, true).await?.status.unwrap_or_default().code, 0);
    }
    // The Command, the root, both; a file of another size is another file.
    let (command, root) = (absent(client.function()), absent(client.function()));
    let there = InputTree::new().build(client.function());
    client.upload(&there.directories).await?;
    let known_command = put_message(&client, &TestAction::shell("true").command).await?;
    for (command_digest, input_root_digest, mut subjects) in [
        (command, there.root, vec![subject(&command)]),
        (known_command, root, vec![subject(&root)]),
        (command, root, vec![subject(&command), subject(&root)]),
    ] {
        let action = reapi::Action {
            command_digest: Some(command_digest.to_wire()),
            input_root_digest: Some(input_root_digest.to_wire()),
            ..Default::default()
        };
        let status = status_of(&client, &action).await?;
        assert_eq!(status.code, i32::from(Code::FailedPrecondition));
        let mut found = missing(&status)?;
        found.sort();
        subjects.sort();
        assert_eq!(found, subjects);
    }
    Ok(())
}

fn has(data: &[u8], text: &str) -> bool {
    data.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Which blobs are left out.
type Pick = fn(&[u8]) -> bool;

/// An action with input files that no other has; one of them has two names.
fn with_files(function: DigestFunction) -> ActionBlobs {
    let tag = format!("{:?}", unique(16));
    let mut action = TestAction::shell(&format!("true {tag}"));
    for (name, text) in
        [("a", "one "), ("sub/b", "two "), ("sub/deep/only_in_deep", "three "), ("sub/again", "two ")]
    {
        action.inputs = action.inputs.file(name, format!("{text}{tag}"));
    }
    action.build(function)
}

/// A subject is `blobs/{hash}/{size}`, with the function's name in front for BLAKE3 only.
#[tokio::test]
async fn err_04() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        for instance in ["", "some/instance"] {
            let gone = absent(function);
            let infix = if function == DigestFunction::Blake3 { "blake3/" } else { "" };
            let expected = [format!("blobs/{infix}{}/{}", gone.hash_hex(), gone.size_bytes())];
            // In the call's status.
            let request = reapi::ExecuteRequest {
                instance_name: instance.to_owned(),
                action_digest: Some(gone.to_wire()),
                digest_function: client.wire_function(),
                ..Default::default()
            };
            let status = refused(client.execution().execute(request).await, Code::FailedPrecondition, &[]);
            assert_eq!(missing(&rpc::Status::decode(status.details())?)?, expected, "{function}");
            // And in a response's.
            let root = InputTree::new().build(function);
            client.upload(&root.directories).await?;
            let action = reapi::Action {
                command_digest: Some(gone.to_wire()),
                input_root_digest: Some(root.root.to_wire()),
                ..Default::default()
            };
            let mut request = put_action(&client, &action).await?;
            instance.clone_into(&mut request.instance_name);
            let status = response(&last_operation(&client, request).await?)?.status.context("a status")?;
            assert_eq!(missing(&status)?, expected, "{function}");
        }
    }
    Ok(())
}

/// Violations are `MISSING` ones only: what else is wrong goes before, without details.
#[tokio::test]
async fn err_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let mut malformed = TestAction::shell("true").command;
    malformed.working_directory = "/absolute".to_owned();
    let malformed = put_message(&client, &malformed).await?;
    let action = reapi::Action {
        command_digest: Some(malformed.to_wire()),
        input_root_digest: Some(absent(client.function()).to_wire()),
        ..Default::default()
    };
    let status = status_of(&client, &action).await?;
    assert_eq!(status.code, i32::from(Code::InvalidArgument), "no upload can put it right: {status:?}");
    assert_eq!(status.details, []);
    // An output that cannot be reported is no violation either.
    let ran = run(&declaring_older(TestAction::shell("echo > d"), &[], &["d"])).await?;
    assert_eq!((ran.code(), ran.status().details.len()), (Code::FailedPrecondition, 0));
    Ok(())
}

/// Details travel in the response's status, and in `grpc-status-details-bin` for a call's.
#[tokio::test]
async fn err_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let gone = absent(client.function());
    let request = reapi::ExecuteRequest { action_digest: Some(gone.to_wire()), ..Default::default() };
    let status = refused(client.execution().execute(request).await, Code::FailedPrecondition, &[]);
    let details = rpc::Status::decode(status.details())?;
    assert_eq!((details.code, details.message.as_str()), (i32::from(status.code()), status.message()));
    assert_eq!(missing(&details)?, [subject(&gone)]);

    // As many as there may be: the headers of a call and the message of a response both have bounds.
    let files = (0..20_000).map(|index| reapi::FileNode {
        name: format!("{index:05}"),
        digest: Some(client.function().digest(format!("{gone} {index}").as_bytes()).to_wire()),
        ..Default::default()
    });
    let root =
        put_message(&client, &reapi::Directory { files: files.collect(), ..Default::default() }).await?;
    let command = put_message(&client, &TestAction::shell("true").command).await?;
    let action = reapi::Action {
        command_digest: Some(command.to_wire()),
        input_root_digest: Some(root.to_wire()),
        ..Default::default()
    };
    assert_eq!(missing(&status_of(&client, &action).await?)?.len(), 20_000);
    Ok(())
}

/// What is malformed is `INVALID_ARGUMENT`, which names message, field and value.
#[tokio::test]
async fn err_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let span = |seconds, nanos| Some(protobuf::Duration { seconds, nanos });
    let command = put_message(&client, &TestAction::shell("true").command).await?.to_wire();
    let root = InputTree::new().build(client.function());
    client.upload(&root.directories).await?;
    let good = reapi::Action {
        command_digest: Some(command.clone()),
        input_root_digest: Some(root.root.to_wire()),
        ..Default::default()
    };
    let odd = |hash: &str, size_bytes| Some(reapi::Digest { hash: hash.to_owned(), size_bytes });
    let upper = command.hash.to_uppercase();
    let actions = [
        (reapi::Action { command_digest: None, ..good.clone() }, vec!["Action", "command_digest"]),
        (reapi::Action { input_root_digest: None, ..good.clone() }, vec!["Action", "input_root_digest"]),
        (
            reapi::Action { command_digest: odd("short", 1), ..good.clone() },
            vec!["Action", "command_digest", "short"],
        ),
        (
            reapi::Action { input_root_digest: odd(&command.hash, -7), ..good.clone() },
            vec!["Action", "input_root_digest", "-7"],
        ),
        (
            reapi::Action { command_digest: odd(&upper, 5), ..good.clone() },
            vec!["Action", "command_digest", &upper],
        ),
        (reapi::Action { timeout: span(-1, 0), ..good.clone() }, vec!["Action", "timeout", "-1"]),
        (reapi::Action { timeout: span(0, -5), ..good.clone() }, vec!["Action", "timeout", "-5"]),
        (
            reapi::Action { timeout: span(1, 2_000_000_000), ..good.clone() },
            vec!["Action", "timeout", "2000000000"],
        ),
    ];
    for (action, words) in actions {
        let status = status_of(&client, &action).await?;
        assert_eq!(status.code, i32::from(Code::InvalidArgument), "{status:?}");
        for word in words {
            assert!(status.message.contains(word), "{word:?} is not in {:?}", status.message);
        }
        assert_eq!(status.details, [], "no retry can help");
    }
    let shell = || TestAction::shell("true");
    let mut directory = shell();
    directory.command.working_directory = "a/../../b".to_owned();
    let commands = [
        (directory, vec!["Command", "working_directory", "a/../../b"]),
        (TestAction::new(["a\0b"]), vec!["Command", "arguments", "a\\0b"]),
        (TestAction::new(Vec::<String>::new()), vec!["Command", "arguments", "empty"]),
        (shell().environment("A=B", "c"), vec!["Command", "environment_variables", "A=B"]),
        (shell().environment("", "c"), vec!["Command", "environment_variables"]),
        (declaring(shell(), &["../x"]), vec!["Command", "output_paths", "../x"]),
        (declaring_older(shell(), &["/x"], &[]), vec!["Command", "output_files", "/x"]),
        (declaring_older(shell(), &[], &["x", "x"]), vec!["Command", "output_directories", "x"]),
    ];
    for (action, words) in commands {
        run(&action).await?.failed_with(Code::InvalidArgument, &words)?;
    }
    // A blob that is no Command, and one that is no Directory.
    let junk = client.put(b"\xff\xff\xff".as_slice()).await?.to_wire();
    for action in [
        reapi::Action { command_digest: Some(junk.clone()), ..good.clone() },
        reapi::Action { input_root_digest: Some(junk.clone()), ..good },
    ] {
        let status = status_of(&client, &action).await?;
        assert_eq!(status.code, i32::from(Code::InvalidArgument), "{status:?}");
        assert!(status.message.contains(&junk.hash), "{status:?}");
    }
    Ok(())
}

/// A full store is `RESOURCE_EXHAUSTED`, with a `RetryInfo` as it may pass; what it can never hold, at once or as the sum
/// of one action's, comes without one.
#[tokio::test]
async fn err_08() -> Result<()> {
    let flags = ["--max-size", "8MiB"].map(str::to_owned).to_vec();
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    // More than all of it, alone or together: whoever tries again only runs the command again.
    let script = "head -c 9000000 /dev/urandom > f1";
    let alone = TestAction::shell(script).outputs(["f1"]);
    let script = "for i in 1 2 3 4 5; do head -c 3000000 /dev/urandom > f$i; done";
    let together = TestAction::shell(script).outputs(["f1", "f2", "f3", "f4", "f5"]);
    for action in [alone, together] {
        let ran = run_by(&client, &action).await?;
        ran.failed_with(Code::ResourceExhausted, &["output", "in all"])?;
        assert_eq!(retry_info(&ran.status()), None);
    }
    // No room beside what another action holds as long as it runs.
    let folder = new_home()?;
    let (started, go) = (folder.path().join("started"), folder.path().join("go"));
    fifo(&started)?;
    fifo(&go)?;
    let script = format!("echo up > {}; read line < {}", started.display(), go.display());
    let holder = TestAction::shell(&script).inputs(InputTree::new().file("in", vec![1; 5_000_000]));
    let action = TestAction::shell("head -c 5000000 /dev/urandom > f").outputs(["f"]);
    let beside = async {
        tokio::fs::read(&started).await?;
        let ran = run_by(&client, &action).await?;
        tokio::fs::write(&go, "\n").await?;
        anyhow::Ok(ran)
    };
    let (held, ran) = futures::join!(run_by(&client, &holder), beside);
    held?.result().await?;
    let ran = ran?;
    ran.failed_with(Code::ResourceExhausted, &["output"])?;
    assert!(retry_info(&ran.status()).is_some(), "{:?}", ran.status());
    run_by(&client, &action).await?.result().await?;
    Ok(())
}

/// A command that is lost with the process that kept it is `UNAVAILABLE`, and can be tried again.
#[tokio::test]
async fn err_09() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let folder = new_home()?;
    let pipe = folder.path().join("pid");
    fifo(&pipe)?;
    let action = TestAction::shell(&format!("echo $PPID > {}; exec sleep 1000", pipe.display()));
    let keeper = async {
        let pid = tokio::fs::read_to_string(&pipe).await?;
        kill(Pid::from_raw(pid.trim().parse()?), Signal::SIGKILL).context("kill the keeper")
    };
    let (ran, killed) = futures::join!(run_by(&client, &action), keeper);
    killed?;
    let ran = ran?;
    ran.failed_with(Code::Unavailable, &["lost"])?;
    assert!(retry_info(&ran.status()).is_some());
    // The helper kills what the keeper left behind as soon as it hears of its end, which may be after us.
    let settled = tokio::time::timeout(Duration::from_mins(1), async {
        while !foreign_descendants(longshore.pid())?.is_empty() {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    });
    settled.await??;
    run_by(&client, &TestAction::shell("true")).await?.result().await?;
    Ok(())
}

/// A fault of the worker's is `INTERNAL`, and the worker does not try again by itself.
#[tokio::test]
async fn err_10() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    // Actions' folders stand elsewhere than the worker believes.
    let work = longshore.root().join("work");
    std::fs::rename(&work, longshore.root().join("elsewhere"))?;
    let ran = run_by(&client, &TestAction::shell("true")).await?;
    ran.failed_with(Code::Internal, &[])?;
    assert!(!ran.status().message.is_empty() && ran.status().details.is_empty());
    std::fs::rename(longshore.root().join("elsewhere"), &work)?;
    run_by(&client, &TestAction::shell("true")).await?.result().await?;
    Ok(())
}

/// `DEADLINE_EXCEEDED` is for the action's timeout, with the outputs and the streams so far.
#[tokio::test]
async fn err_11() -> Result<()> {
    let script = "echo out; echo err >&2; mkdir d; echo f > d/f; echo a > a; exec sleep 1000";
    for action in [
        declaring(TestAction::shell(script), &["a", "d", "later"]),
        declaring_older(TestAction::shell(script), &["a", "later"], &["d"]),
    ] {
        let ran = run(&action.timeout(Duration::from_millis(700))).await?;
        ran.failed_with(Code::DeadlineExceeded, &["exceeded deadline", "700ms"])?;
        assert_eq!(ran.status().details, [], "the same again would take as long");
        assert_eq!(ran.listing()?, ["file a", "directory d"]);
        assert_eq!((ran.file("a").await?, ran.contents("d").await?), ("a\n".into(), vec!["f".to_owned()]));
        assert_eq!(ran.client.stdout(ran.any_result()?).await?, "out\n");
        assert_eq!(ran.client.stderr(ran.any_result()?).await?, "err\n");
    }
    // Ignoring every signal does not help, and neither does a child that left.
    for script in ["trap '' TERM INT HUP; while :; do :; done", "setsid sleep 1000 & exec sleep 1000"] {
        let ran = run(&TestAction::shell(script).timeout(Duration::from_millis(300))).await?;
        ran.failed_with(Code::DeadlineExceeded, &["exceeded deadline"])?;
    }
    run(&TestAction::shell("true").timeout(Duration::from_mins(1))).await?.result().await?;
    Ok(())
}

/// `CANCELLED` is what `CancelOperation` brings, and a shutdown brings `UNAVAILABLE`.
#[tokio::test]
async fn err_12() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let start = async |salt: &'static str| {
        let blobs = TestAction::shell("exec sleep 1000").salt(salt).build(client.function());
        client.upload(&blobs.blobs).await?;
        let mut stream = client.start(&blobs.digest, true).await?;
        let name = stream.next().await.context("no operation")??.name;
        anyhow::Ok((name, stream))
    };
    let (name, stream) = start("cancelled").await?;
    let request = longrunning::CancelOperationRequest { name };
    client.operations().cancel_operation(request).await?;
    let status = longshore_tests::client::finished(stream).await?.status.context("a status")?;
    assert_eq!(status.code, i32::from(Code::Cancelled));

    let (_, stream) = start("stopped").await?;
    longshore.signal(Signal::SIGTERM)?;
    // The second one is only seen after the first.
    let stopping = tokio::time::timeout(Duration::from_mins(1), async {
        while !longshore.output().contains("stopping") {
            tokio::task::yield_now().await;
        }
    });
    stopping.await?;
    longshore.signal(Signal::SIGTERM)?;
    let status = longshore_tests::client::finished(stream).await?.status.context("a status")?;
    assert_eq!(status.code, i32::from(Code::Unavailable), "{status:?}");
    assert!(retry_info(&status).is_some());
    Ok(())
}

/// An action whose status is not OK is not cached.
#[tokio::test]
async fn err_13() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for (script, code) in [("sleep 1000", Code::DeadlineExceeded), ("mkfifo pipe", Code::InvalidArgument)] {
        let action = TestAction::shell(script).outputs(["pipe"]).timeout(Duration::from_millis(500));
        let blobs = action.salt(unique(16)).build(client.function());
        client.upload(&blobs.blobs).await?;
        for _ in 0..2 {
            let response = client.execute(&blobs.digest, false).await?;
            assert_eq!(response.status.context("a status")?.code, i32::from(code));
            assert!(!response.cached_result);
        }
        let request = reapi::GetActionResultRequest {
            action_digest: Some(blobs.digest.to_wire()),
            ..Default::default()
        };
        refused(client.action_cache().get_action_result(request).await, Code::NotFound, &[]);
    }
    Ok(())
}

/// `RetryInfo` comes with what passes by itself: a client that is turned away is told when to come back.
#[tokio::test]
async fn err_14() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let blobs = TestAction::shell("exec sleep 1000").build(client.function());
    client.upload(&blobs.blobs).await?;
    let mut running = client.start(&blobs.digest, true).await?;
    running.next().await.context("no operation")??;
    longshore.signal(Signal::SIGTERM)?;
    // While the running action may end, others are turned away.
    let status = loop {
        match client.start(&blobs.digest, true).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    let delay = retry_info(&rpc::Status::decode(status.details())?).and_then(|info| info.retry_delay);
    assert!(delay.context("a delay")?.seconds > 0);
    Ok(())
}

/// An unknown service or method is `UNIMPLEMENTED`, and what is left out is not announced.
#[tokio::test]
async fn err_15() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let paths = [
        "/build.bazel.remote.asset.v1.Fetch/FetchBlob",
        "/build.bazel.remote.logstream.v1.LogStreamService/CreateLogStream",
        "/build.bazel.remote.execution.v2.Execution/NoSuchMethod",
        "/no.such.Service/Method",
    ];
    for path in paths {
        let mut channel = client.channel();
        std::future::poll_fn(|context| channel.poll_ready(context)).await?;
        let request = http::Request::post(format!("http://longshore{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(tonic::body::Body::empty())?;
        let response = channel.call(request).await?;
        let status = response.headers().get("grpc-status").context("no grpc-status")?;
        assert_eq!(status, &i32::from(Code::Unimplemented).to_string(), "{path}");
    }
    let capabilities =
        client.capabilities().get_capabilities(reapi::GetCapabilitiesRequest::default()).await?;
    let cache = capabilities.into_inner().cache_capabilities.context("no cache")?;
    assert!(!cache.split_blob_support && !cache.splice_blob_support);
    let split = client.cas().split_blob(reapi::SplitBlobRequest::default()).await;
    refused(split, Code::Unimplemented, &[]);
    let splice = client.cas().splice_blob(reapi::SpliceBlobRequest::default()).await;
    refused(splice, Code::Unimplemented, &[]);
    Ok(())
}

/// Credentials are not looked at.
/// Absent: A standalone longshore serves its own machine only, unless it is told that everybody may run commands.
#[tokio::test]
async fn err_16() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let mut request = Request::new(reapi::GetCapabilitiesRequest::default());
    request.metadata_mut().insert("authorization", "Bearer nonsense".parse()?);
    client.capabilities().get_capabilities(request).await?;
    let (status, output) = longshore_tests::longshore::run_to_end(["--listen", "0.0.0.0:0"]).await?;
    assert!(!status.success() && output.contains("--allow-remote-clients"), "{output}");
    Ok(())
}

/// Answers for one instance, and panics for every other.
struct Broken;

#[tonic::async_trait]
impl Capabilities for Broken {
    async fn get_capabilities(
        &self,
        call: Request<reapi::GetCapabilitiesRequest>,
    ) -> Result<Response<reapi::ServerCapabilities>, Status> {
        let instance = call.into_inner().instance_name;
        assert_eq!(instance, "good", "a panic that is meant");
        Ok(Response::new(reapi::ServerCapabilities::default()))
    }
}

/// A panic in a handler is `INTERNAL` for that call only.
#[tokio::test]
async fn err_17() -> Result<()> {
    // No request makes longshore panic, so that a service that does stands behind what guards longshore's own.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let uri = format!("http://{}", listener.local_addr()?);
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder()
        .layer(AroundLayer(CatchPanics))
        .add_service(CapabilitiesServer::new(Broken))
        .serve_with_incoming(incoming);
    let server = tokio::spawn(server);
    let client = Client::connect(&uri).await?;
    let ask = async |instance: &str| {
        let request = reapi::GetCapabilitiesRequest { instance_name: instance.to_owned() };
        client.capabilities().get_capabilities(request).await
    };
    for _ in 0..3 {
        // Side by side, on one connection.
        let (good, bad, also_good) = futures::join!(ask("good"), ask("bad"), ask("good"));
        refused(bad, Code::Internal, &["panicked"]);
        good?;
        also_good?;
    }
    server.abort();
    Ok(())
}
