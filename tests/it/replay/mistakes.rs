//! What people get wrong, and what happens to those who use the tools in scripts: each mistake is said and has its exit
//! code, and costs nothing that does not depend on it.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::DigestFunction;
use longshore_proto::reapi;
use longshore_tests::action::TestAction;
use longshore_tests::fake_cas::{FakeCas, Fault, Method, Told};
use longshore_tests::longshore::{Longshore, binary};
use longshore_tests::tree::InputTree;
use tokio::net::TcpListener;
use tonic::{Code, Status};

use super::{BAD_INPUT, Desk, EQUAL, ERRORS, log_of, run_stable};

// A digest that is something else, or too large for anything, costs no action that is one.
#[tokio::test]
async fn what_is_no_action_in_a_list_costs_nothing_else() -> Result<()> {
    let desk = Desk::new()?;
    let longshore = Longshore::start().await?;
    let action = TestAction::shell("cat in").inputs(InputTree::new().file("in", "input"));
    let built = action.build(DigestFunction::Sha256);
    longshore.client().await?.upload(&built.blobs).await?;
    let huge = format!("{}/{}", built.digest.hash_hex(), 1_u64 << 62);
    let all = built.blobs.iter().map(|(digest, _)| digest.to_string());
    let lines: Vec<_> = all.chain([huge.clone()]).collect();
    let list = desk.write("list", lines.join("\r\n"))?;

    let replayed = desk.replay(&list, longshore.uri(), &[]).await?;
    let report = replayed.expect(ERRORS)?;
    assert_eq!((&report["executions"], &report["equal"]), (&1.into(), &1.into()), "{}", replayed.output);
    let left_out = report["left_out"].as_array().context("a list")?;
    assert_eq!(left_out.len(), lines.len() - 1);
    let of_huge = left_out.iter().find(|line| line["action"].as_str().is_some_and(|it| it.ends_with(&huge)));
    assert_eq!(of_huge.context("the huge one")?["reason"], "the action is too large to be fetched");

    let (code, output) = desk.record(&list, "bundle", &longshore).await?;
    assert_eq!(code, ERRORS, "{output}");
    assert!(output.contains(&format!("recorded 1 of {} actions", lines.len())), "{output}");
    Ok(())
}

// Whoever reads the last line of a script's output may have gone by then.
#[tokio::test]
async fn a_reader_that_has_gone_is_no_error() -> Result<()> {
    let desk = Desk::new()?;
    let longshore = Longshore::start().await?;
    let ran = run_stable(&longshore.client().await?).await?;
    let log = desk.write("log", log_of(&ran).bytes())?;
    let bundle = desk.path("bundle");
    let (log, bundle) = (log.to_str().context("a name")?, bundle.to_str().context("a name")?);
    let server = ["--server", longshore.uri()];
    for arguments in [
        [&["record", log, bundle], &server[..]].concat(),
        [&["replay", bundle], &server[..]].concat(),
        ["worker", "--print-config"].into(),
    ] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let ended = Command::new(binary()?)
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()?;
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!((ended.status.code(), &*said), (Some(EQUAL), ""), "{arguments:?}");
    }
    Ok(())
}

// A server that takes the question and never answers is not waited for without end.
#[tokio::test]
async fn a_server_that_says_nothing_is_named() -> Result<()> {
    let desk = Desk::new()?;
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let uri = format!("grpc://{}", silent.local_addr()?);
    let keeping = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((connection, _)) = silent.accept().await {
            kept.push(connection);
        }
    });
    let list = desk.write("list", DigestFunction::Sha256.digest(b"action").to_string())?;
    let replayed = desk.replay(&list, &uri, &["--outage", "1s"]).await;
    keeping.abort();
    let replayed = replayed?;
    assert_eq!(replayed.code, ERRORS, "{}", replayed.output);
    assert!(replayed.output.contains(&format!("{uri} does not answer")), "{}", replayed.output);
    Ok(())
}

// The histogram has what the server said, not what we make of it.
#[tokio::test]
async fn statuses_are_those_that_the_server_gave() -> Result<()> {
    let desk = Desk::new()?;
    let built = TestAction::shell("true").build(DigestFunction::Sha256);
    let list = desk.write("list", built.digest.to_string())?;
    for (code, name) in [(Code::Internal, "INTERNAL"), (Code::ResourceExhausted, "RESOURCE_EXHAUSTED")] {
        let server = FakeCas::executing([Told::Done(Box::default())]).await?;
        server.put_all(&built.blobs);
        server.always(Method::Execute, Fault::Fail(Status::new(code, "no more\nof \x1b[31mthat")));
        let replayed = desk.replay(&list, server.uri(), &[]).await?;
        let report = replayed.expect(ERRORS)?;
        assert_eq!(report["statuses"][name], 1, "{}", replayed.output);
        let said = format!("{name}: no more\\nof \\u{{1b}}[31mthat");
        assert!(replayed.output.contains(&said), "{}", replayed.output);
    }
    Ok(())
}

// What the command line cannot mean is refused before anything else.
#[tokio::test]
async fn a_server_that_cannot_be_one_is_a_mistake_of_the_command_line() -> Result<()> {
    let desk = Desk::new()?;
    let list = desk.write("list", DigestFunction::Sha256.digest(b"action").to_string())?;
    let cases: [(&[&str], &str); 5] = [
        (&["example"], "it has no scheme"),
        (&["grpc://127.0.0.1:99999"], "127.0.0.1:99999"),
        (&["grpc://:8980"], "it has no host"),
        (&["grpc://localhost:1", "--ca", "/nowhere"], "say grpcs://"),
        (&["grpc://localhost:1", "--rate", "-1"], "expected a number above 0"),
    ];
    are_mistakes(&desk, &list, &cases).await
}

/// Replays with each of those command lines, which is refused for that reason.
async fn are_mistakes(desk: &Desk, list: &Path, cases: &[(&[&str], &str)]) -> Result<()> {
    for (arguments, reason) in cases {
        let replayed = desk.replay(list, arguments[0], &arguments[1..]).await?;
        ensure!(replayed.code == BAD_INPUT, "{arguments:?}: {} {}", replayed.code, replayed.output);
        assert!(replayed.output.contains(reason), "{arguments:?}: {}", replayed.output);
    }
    Ok(())
}

// A list may come from any program, and a program may be given the wrong file.
#[tokio::test]
async fn a_log_on_stdin_is_no_list() -> Result<()> {
    let longshore = Longshore::start().await?;
    let ran = run_stable(&longshore.client().await?).await?;
    let mut replay = Command::new(binary()?)
        .args(["replay", "-", "--server", longshore.uri()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = replay.stdin.take().context("a pipe")?;
    stdin.write_all(log_of(&ran).bytes())?;
    drop(stdin);
    let ended = replay.wait_with_output()?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(BAD_INPUT), "{said}");
    assert!(said.contains("expected hash/size"), "{said}");
    Ok(())
}

// A word that is no level would have longshore say nothing at all.
#[test]
fn a_level_of_logging_that_is_none_is_refused() -> Result<()> {
    for (level, code) in [("loud", 1), ("debug", EQUAL), ("warn,longshore_worker=debug", EQUAL)] {
        let ended = Command::new(binary()?)
            .args(["worker", "--print-config"])
            .env("LONGSHORE_LOG", level)
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(code), "{level}: {said}");
        assert_eq!(said.contains("expected error, warn, info or debug"), code != EQUAL, "{level}: {said}");
    }
    Ok(())
}

// What a server says is for a terminal that it must not give orders to.
#[tokio::test]
async fn a_server_that_refuses_gives_no_orders_to_the_terminal() -> Result<()> {
    let desk = Desk::new()?;
    let server = FakeCas::start().await?;
    server.always(Method::GetCapabilities, Fault::Fail(Status::permission_denied("not\nyou\x1b[2J")));
    let list = desk.write("list", DigestFunction::Sha256.digest(b"action").to_string())?;
    let replayed = desk.replay(&list, server.uri(), &[]).await?;
    let (code, output) = desk.record_from(&list, "bundle", server.uri()).await?;
    for (code, output) in [(replayed.code, replayed.output), (code, output)] {
        assert_eq!(code, ERRORS, "{output}");
        assert!(output.contains("not\\nyou\\u{1b}[2J"), "{output}");
    }
    Ok(())
}

// A file that the command line names is ours, and no server refused it.
#[tokio::test]
async fn a_file_that_is_of_no_use_is_a_mistake_of_the_command_line() -> Result<()> {
    let desk = Desk::new()?;
    let list = desk.write("list", DigestFunction::Sha256.digest(b"action").to_string())?;
    let [empty, junk] = [desk.write("empty", "\n")?, desk.write("junk", "no certificate")?];
    let (empty, junk) = (empty.to_str().context("a name")?, junk.to_str().context("a name")?);
    let cases: [(&[&str], &str); 5] = [
        (&["grpc://localhost:1", "--token-file", "/nowhere"], "--token-file: /nowhere: No such file"),
        (&["grpc://localhost:1", "--token-file", empty], "empty: is empty"),
        (&["grpcs://localhost:1", "--ca", "/nowhere"], "--ca: /nowhere: No such file"),
        (
            &["grpcs://localhost:1", "--certificate", junk, "--key", "/nowhere"],
            "--key: /nowhere: No such file",
        ),
        (&["grpcs://localhost:1", "--ca", junk], "junk"),
    ];
    are_mistakes(&desk, &list, &cases).await
}

// What an earlier attempt left is used again as far as it is right, and the bundle is whole afterwards.
#[tokio::test]
async fn what_lies_in_the_bundles_folder_is_not_believed() -> Result<()> {
    let desk = Desk::new()?;
    let longshore = Longshore::start().await?;
    let ran = run_stable(&longshore.client().await?).await?;
    let log = desk.write("log", log_of(&ran).bytes())?;
    let (code, recorded) = desk.record(&log, "bundle", &longshore).await?;
    ensure!(code == EQUAL, "{recorded}");
    std::fs::remove_file(desk.path("bundle/manifest.jsonl"))?;
    let action = desk.path("bundle/blobs/sha256").join(ran[0].0.hash_hex());
    std::fs::remove_file(&action)?;
    std::fs::write(&action, "something else")?;
    let (code, again) = desk.record(&log, "bundle", &longshore).await?;
    assert_eq!((code, &again), (EQUAL, &recorded), "as many blobs as there are");
    let other = Longshore::start().await?;
    let replayed = desk.replay(&desk.path("bundle"), other.uri(), &[]).await?;
    assert_eq!(replayed.expect(EQUAL)?["equal"], 3);

    // A disk that is in the way is not the server's fault.
    std::fs::create_dir_all(desk.path("blocked/blobs"))?;
    desk.write("blocked/blobs/sha256", "")?;
    let (code, output) = desk.record(&log, "blocked", &longshore).await?;
    assert_eq!(code, 1, "{output}");
    assert!(output.contains("cannot write") && output.contains("blocked/blobs/sha256/"), "{output}");
    Ok(())
}

#[tokio::test]
async fn a_log_with_many_problems_does_not_fill_the_screen() -> Result<()> {
    let desk = Desk::new()?;
    let longshore = Longshore::start().await?;
    let mut ran = run_stable(&longshore.client().await?).await?;
    let result = ran[0].1.result.as_mut().context("a result")?;
    result.output_files[0].digest = None;
    result.stdout_digest = Some(reapi::Digest { hash: "none".to_owned(), size_bytes: 1 });
    let broken = ran[0].clone();
    ran.extend(std::iter::repeat_n(broken, 24));
    let log = desk.write("log", log_of(&ran).bytes())?;
    let (code, output) = desk.record(&log, "bundle", &longshore).await?;
    assert_eq!(code, BAD_INPUT, "{output}");
    assert_eq!(output.matches("the result of action").count(), 20, "{output}");
    assert!(output.contains("5 more problems"), "{output}");
    Ok(())
}
