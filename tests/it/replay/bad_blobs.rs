//! One blob that the server will not take, or cannot give, costs the actions that need it and no others.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::reapi;
use longshore_tests::action::{ActionBlobs, TestAction};
use longshore_tests::fake_cas::{FakeCas, Fault, Method, Told};
use longshore_tests::longshore::{Launch, Longshore};
use longshore_tests::tree::InputTree;
use tonic::{Code, Status};

use super::{BAD_INPUT, Desk, EQUAL, ERRORS};

/// An action with an input of its own.
fn action(input: impl Into<bytes::Bytes>) -> TestAction {
    TestAction::shell("cat sub/in").inputs(InputTree::new().file("sub/in", input))
}

fn sha256(action: &TestAction) -> ActionBlobs {
    action.build(DigestFunction::Sha256)
}

fn blob_path(desk: &Desk, digest: &Digest) -> PathBuf {
    desk.path("bundle/blobs").join(digest.function().name()).join(digest.hash_hex())
}

/// A bundle of actions that have not run.
fn bundle(desk: &Desk, actions: &[ActionBlobs]) -> Result<()> {
    let header = serde_json::json!({ "format": "longshore-bundle", "version": 1, "actions": actions.len() });
    let mut manifest = vec![header.to_string()];
    for action in actions {
        let digest = action.digest;
        let line = serde_json::json!({ "action": format!("{}/{digest}", digest.function()) });
        manifest.push(line.to_string());
        for (digest, data) in &action.blobs {
            let path = blob_path(desk, digest);
            std::fs::create_dir_all(path.parent().context("a folder")?)?;
            std::fs::write(path, data)?;
        }
    }
    desk.write("bundle/manifest.jsonl", manifest.join("\n"))?;
    Ok(())
}

/// A server with those actions, all of which it executes, and a list of them.
async fn serve(desk: &Desk, actions: &[ActionBlobs]) -> Result<(FakeCas, PathBuf)> {
    let server = FakeCas::executing([Told::Done(Box::default())]).await?;
    for action in actions {
        server.put_all(&action.blobs);
    }
    let lines: Vec<_> = actions.iter().map(|action| action.digest.to_string()).collect();
    Ok((server, desk.write("list", lines.join("\n"))?))
}

/// The digests and the reasons of what a replay left out.
fn left_out(report: &serde_json::Value) -> Result<Vec<(&str, &str)>> {
    let lines = report["left_out"].as_array().context("a list")?;
    let mut found = Vec::with_capacity(lines.len());
    for line in lines {
        let words = line["action"].as_str().zip(line["reason"].as_str());
        found.push(words.context("an action and a reason")?);
    }
    Ok(found)
}

// A server with a limit takes everything else.
#[tokio::test]
async fn what_the_server_does_not_take_is_left_out() -> Result<()> {
    let desk = Desk::new()?;
    let large = vec![b'x'; 3 << 20];
    let actions = [action("first"), action(large.clone()), action("third")].map(|action| sha256(&action));
    bundle(&desk, &actions)?;
    let flags = ["--max-size", "2MiB"].map(str::to_owned).into();
    let small = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let replayed = desk.replay(&desk.path("bundle"), small.uri(), &[]).await?;
    let report = replayed.expect(BAD_INPUT)?;
    assert_eq!((&report["executions"], &report["equal"]), (&2.into(), &2.into()), "{}", replayed.output);
    let left_out = left_out(report)?;
    assert_eq!(left_out.len(), 1);
    assert!(left_out[0].0.contains(&actions[1].digest.to_string()), "{left_out:?}");
    let blob = DigestFunction::Sha256.digest(&large);
    assert!(left_out[0].1.starts_with(&format!("blob {blob} cannot be uploaded: ")), "{left_out:?}");
    Ok(())
}

#[tokio::test]
async fn an_action_by_a_function_that_the_server_does_not_know_is_left_out() -> Result<()> {
    let desk = Desk::new()?;
    let foreign = action("second").build(DigestFunction::Blake3);
    bundle(&desk, &[sha256(&action("first")), foreign.clone(), sha256(&action("third"))])?;
    let functions = vec![reapi::digest_function::Value::Sha256 as i32];
    let cache = reapi::CacheCapabilities { digest_functions: functions, ..Default::default() };
    // It executes nothing: that they got so far is what counts.
    let server = FakeCas::with(cache).await?;
    let replayed = desk.replay(&desk.path("bundle"), server.uri(), &[]).await?;
    let report = replayed.expect(ERRORS)?;
    assert_eq!(report["statuses"], serde_json::json!({ "UNIMPLEMENTED": 2 }), "{}", replayed.output);
    let left_out = left_out(report)?;
    assert_eq!(left_out.len(), 1);
    assert_eq!(left_out[0].0, format!("blake3/{}", foreign.digest));
    assert!(left_out[0].1.contains("does not offer the digest function blake3"), "{left_out:?}");
    Ok(())
}

// Who may not upload anything hears so, and not a list of all actions.
#[tokio::test]
async fn a_server_that_wants_nothing_of_us_is_named_once() -> Result<()> {
    let desk = Desk::new()?;
    bundle(&desk, &[sha256(&action("first")), sha256(&action("second"))])?;
    let server = FakeCas::executing([Told::Done(Box::default())]).await?;
    server.always(Method::BatchUpdateBlobs, Fault::Fail(Status::permission_denied("read-only")));
    let replayed = desk.replay(&desk.path("bundle"), server.uri(), &[]).await?;
    assert_eq!(replayed.code, ERRORS, "{}", replayed.output);
    assert!(replayed.report.is_none() && replayed.output.contains("read-only"), "{}", replayed.output);
    Ok(())
}

// Small blobs come in batches, large ones each alone: the fault is that of the large one.
#[tokio::test]
async fn an_action_that_the_server_cannot_give_is_left_out() -> Result<()> {
    let desk = Desk::new()?;
    let unreadable = sha256(&action("second").salt(vec![1; 2 << 20]));
    let actions = [sha256(&action("first")), unreadable.clone(), sha256(&action("third"))];
    let (server, list) = serve(&desk, &actions).await?;
    server.always(Method::Read, Fault::Fail(Status::data_loss("a bad disk")));
    let replayed = desk.replay(&list, server.uri(), &[]).await?;
    let report = replayed.expect(ERRORS)?;
    assert_eq!((&report["executions"], &report["equal"]), (&2.into(), &2.into()), "{}", replayed.output);
    let left_out = left_out(report)?;
    assert_eq!(left_out.len(), 1);
    assert!(left_out[0].0.contains(&unreadable.digest.to_string()), "{left_out:?}");
    assert!(left_out[0].1.starts_with("the action cannot be read: "), "{left_out:?}");
    assert!(left_out[0].1.contains("a bad disk"), "{left_out:?}");

    // One that answers nothing is another matter.
    server.always(Method::FindMissingBlobs, Fault::Fail(Status::permission_denied("not you")));
    let replayed = desk.replay(&list, server.uri(), &[]).await?;
    assert_eq!(replayed.code, ERRORS, "{}", replayed.output);
    assert!(replayed.output.contains("cannot read the actions"), "{}", replayed.output);
    Ok(())
}

// Nor is one that has next to nothing of what it says that it has.
#[tokio::test]
async fn a_server_that_can_give_hardly_anything_is_of_no_use() -> Result<()> {
    let desk = Desk::new()?;
    let actions: Vec<_> =
        (0..25).map(|number| sha256(&action("input").salt(vec![number; (1 << 20) + 1]))).collect();
    let (server, list) = serve(&desk, &actions).await?;
    server.always(Method::Read, Fault::Fail(Status::data_loss("a bad disk")));
    let replayed = desk.replay(&list, server.uri(), &[]).await?;
    assert_eq!(replayed.code, ERRORS, "{}", replayed.output);
    assert!(replayed.report.is_none(), "{}", replayed.output);
    assert!(replayed.output.contains("cannot read the actions"), "{}", replayed.output);
    Ok(())
}

#[tokio::test]
async fn an_input_that_the_server_cannot_give_is_not_recorded() -> Result<()> {
    let desk = Desk::new()?;
    let actions =
        [action("first"), action(vec![b'x'; 2 << 20]), action("third")].map(|action| sha256(&action));
    let (server, list) = serve(&desk, &actions).await?;
    server.always(Method::Read, Fault::Fail(Status::data_loss("a bad disk")));
    let (code, output) = desk.record_from(&list, "bundle", server.uri()).await?;
    assert_eq!(code, ERRORS, "{output}");
    assert!(output.contains(&format!("action {} is left out: blob ", actions[1].digest)), "{output}");
    assert!(output.contains("a bad disk") && output.contains("recorded 2 of 3 actions"), "{output}");
    server.heal(Method::Read);
    let replayed = desk.replay(&desk.path("bundle"), server.uri(), &[]).await?;
    assert_eq!(replayed.expect(EQUAL)?["executions"], 2);
    Ok(())
}

// It need not be the blob that a call for many fails for.
#[tokio::test]
async fn a_call_for_many_that_fails_costs_nothing() -> Result<()> {
    let desk = Desk::new()?;
    let actions = ["first", "second", "third"].map(|input| sha256(&action(input)));
    let (server, list) = serve(&desk, &actions).await?;
    server.once(Method::BatchReadBlobs, Fault::Fail(Status::new(Code::FailedPrecondition, "not today")));
    let replayed = desk.replay(&list, server.uri(), &[]).await?;
    assert_eq!(replayed.expect(EQUAL)?["executions"], 3, "{}", replayed.output);
    Ok(())
}

// The bundle is for what the server lacks, and the other way round.
#[tokio::test]
async fn messages_that_a_bundle_lacks_come_from_the_server() -> Result<()> {
    let desk = Desk::new()?;
    let longshore = Longshore::start().await?;
    let actions = [action("first"), action("second")];
    let built = [0, 1].map(|index| sha256(&actions[index]));
    bundle(&desk, &built)?;
    longshore.client().await?.upload(&built.each_ref().map(|action| action.blobs.clone()).concat()).await?;
    std::fs::remove_file(blob_path(&desk, &built[0].digest))?;
    let root = actions[1].inputs.build(DigestFunction::Sha256).root;
    std::fs::remove_file(blob_path(&desk, &root))?;
    let replayed = desk.replay(&desk.path("bundle"), longshore.uri(), &[]).await?;
    let report = replayed.expect(EQUAL)?;
    assert_eq!((&report["executions"], &report["equal"]), (&2.into(), &2.into()), "{}", replayed.output);

    // One that lacks them, too, cannot help, and what is wrong is said of the bundle.
    let empty = Longshore::start().await?;
    let replayed = desk.replay(&desk.path("bundle"), empty.uri(), &[]).await?;
    let report = replayed.expect(BAD_INPUT)?;
    let reasons: Vec<_> = left_out(report)?.into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(reasons[0], "the action cannot be read: the recording lacks it");
    assert_eq!(reasons[1], format!("blob {root} cannot be read: the recording lacks it"));
    Ok(())
}
