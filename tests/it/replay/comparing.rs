//! What differs is found, and named.

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::{Message as _, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::fake_cas::{FakeCas, Fault, Method, Told};
use longshore_tests::longshore::Longshore;
use tonic::Status;

use super::{DIFFERENCES, Desk, EQUAL, ERRORS, NONDETERMINISTIC, log_of, run_all, run_stable};

// The file is named that differs, in a folder too, and those that do not differ are not.
#[tokio::test]
async fn an_action_that_never_does_the_same_is_named_with_its_paths() -> Result<()> {
    let desk = Desk::new()?;
    let longshore = Longshore::start().await?;
    let random = "head -c 16 /dev/urandom | od -An -tx1";
    let script = format!("mkdir d; {random} > d/never; echo x > d/always; {random} > f; echo same > g");
    let action = TestAction::shell(&script).outputs(["d", "f", "g"]);
    let ran = run_all(&longshore.client().await?, &[action, TestAction::shell("echo steady")]).await?;
    let log = desk.write("log", log_of(&ran).bytes())?;
    let (code, output) = desk.record(&log, "bundle", &longshore).await?;
    ensure!(code == EQUAL, "{output}");

    let replayed = desk.replay(&desk.path("bundle"), longshore.uri(), &["--repeat", "3"]).await?;
    let report = replayed.expect(NONDETERMINISTIC)?;
    let found = report["nondeterministic"].as_array().context("a list")?;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["paths"], serde_json::json!(["d/never", "f"]));
    assert!(found[0]["action"].as_str().context("a digest")?.contains(&ran[0].0.hash_hex()));
    assert_eq!((&report["equal"], &report["different"]), (&1.into(), &serde_json::json!([])));
    assert!(replayed.output.contains("not deterministic"), "{}", replayed.output);
    Ok(())
}

// Whatever is not as recorded, though it is always the same, is a difference.
#[tokio::test]
async fn what_is_not_as_recorded_is_named() -> Result<()> {
    let desk = Desk::new()?;
    let longshore = Longshore::start().await?;
    let mut ran = run_stable(&longshore.client().await?).await?;
    let result = ran[0].1.result.as_mut().context("a result")?;
    result.output_files[0].digest = Some(DigestFunction::Sha256.digest(b"other").to_wire());
    ran[2].1.result.as_mut().context("a result")?.exit_code = 0;
    let log = desk.write("log", log_of(&ran).bytes())?;
    let replayed = desk.replay(&log, longshore.uri(), &["--repeat", "2"]).await?;
    let report = replayed.expect(DIFFERENCES)?;
    let paths: Vec<_> =
        report["different"].as_array().context("a list")?.iter().map(|line| &line["paths"]).collect();
    assert_eq!(paths, [&serde_json::json!(["out.txt"]), &serde_json::json!(["<exit code>"])]);
    assert_eq!(report["equal"], 1);
    Ok(())
}

const FUNCTION: DigestFunction = DigestFunction::Sha256;

/// Actions that are told apart by nothing else, on a server that has what they need.
fn actions_on(server: &FakeCas, count: u8) -> Vec<Digest> {
    let build = |number| {
        let built = TestAction::shell("true").salt(vec![number]).build(FUNCTION);
        server.put_all(&built.blobs);
        built.digest
    };
    (0..count).map(build).collect()
}

/// A result with that tree as its only output.
fn result_with(tree: &Digest) -> reapi::ActionResult {
    let directory = reapi::OutputDirectory {
        path: "d".to_owned(),
        tree_digest: Some(tree.to_wire()),
        ..Default::default()
    };
    reapi::ActionResult { output_directories: vec![directory], ..Default::default() }
}

fn response_with(tree: &Digest) -> reapi::ExecuteResponse {
    reapi::ExecuteResponse { result: Some(result_with(tree)), ..Default::default() }
}

// However many there are: another server may write every tree in another way.
#[tokio::test]
async fn folders_of_all_actions_are_looked_into() -> Result<()> {
    let desk = Desk::new()?;
    let file = |name: &str, data: &[u8]| reapi::Directory {
        files: vec![reapi::FileNode {
            name: name.to_owned(),
            digest: Some(FUNCTION.digest(data).to_wire()),
            ..Default::default()
        }],
        ..Default::default()
    };
    let children = [file("f", b"f"), file("g", b"g")];
    let node = |name: &str, child: &reapi::Directory| reapi::DirectoryNode {
        name: name.to_owned(),
        digest: Some(FUNCTION.digest(&child.encode_to_vec()).to_wire()),
    };
    let directories = vec![node("a", &children[0]), node("b", &children[1])];
    let root = Some(reapi::Directory { directories, ..Default::default() });
    let [one, other] = [[0, 1], [1, 0]].map(|order| {
        let children = order.map(|index: usize| children[index].clone()).to_vec();
        reapi::Tree { root: root.clone(), children }.encode_to_vec()
    });
    let server = FakeCas::executing([Told::Done(Box::new(result_with(&FUNCTION.digest(&one))))]).await?;
    let recorded = [one, other].map(|tree| server.put(tree))[1];
    let actions = actions_on(&server, 210);
    let ran: Vec<_> = actions.iter().map(|action| (*action, response_with(&recorded))).collect();
    let log = desk.write("log", log_of(&ran).bytes())?;
    let replayed = desk.replay(&log, server.uri(), &[]).await?;
    let report = replayed.expect(EQUAL)?;
    assert_eq!((&report["equal"], &report["unread"]), (&210.into(), &serde_json::json!([])));
    Ok(())
}

// An action is not called different without a word that its folders were not looked into, and nobody asks again and again.
#[tokio::test]
async fn folders_that_cannot_be_read_are_said() -> Result<()> {
    let desk = Desk::new()?;
    let tree = |number: u8, size| Digest::parse(FUNCTION, &FUNCTION.digest(&[number]).hash_hex(), size);
    // Small blobs come in batches, large ones by streams.
    for (size, why) in [(100, "is not on the server"), (2 << 20, "gone for good")] {
        let [recorded, now] = [tree(1, size)?, tree(2, size)?];
        let server = FakeCas::executing([Told::Done(Box::new(result_with(&now)))]).await?;
        server.always(Method::Read, Fault::Fail(Status::unavailable("gone for good")));
        let actions = actions_on(&server, 3);
        let ran: Vec<_> = actions.iter().map(|action| (*action, response_with(&recorded))).collect();
        let log = desk.write("log", log_of(&ran).bytes())?;
        let replayed = desk.replay(&log, server.uri(), &["--outage", "1s"]).await?;
        let report = replayed.expect(DIFFERENCES)?;
        let unread = report["unread"].as_array().context("a list")?;
        assert_eq!(unread.len(), 3, "{}", replayed.output);
        for line in unread {
            assert!(line["reason"].as_str().is_some_and(|reason| reason.contains(why)), "{line}");
        }
        assert!(replayed.output.contains("3: judged by the digests"), "{}", replayed.output);
        let asked = server.calls(Method::BatchReadBlobs).into_iter();
        let asked = asked.filter(|call| call.hashes.contains(&now.hash_hex())).count();
        assert_eq!(asked, usize::from(size == 100));
    }
    Ok(())
}

// Folders are compared by their digests where nothing else is known: that is no reason to lose the bundle.
#[tokio::test]
async fn a_bundle_is_made_without_the_folders_that_cannot_be_read() -> Result<()> {
    let desk = Desk::new()?;
    let tree = Digest::parse(FUNCTION, &FUNCTION.digest(b"tree").hash_hex(), 2 << 20)?;
    let server = FakeCas::executing([Told::Done(Box::new(result_with(&tree)))]).await?;
    let action = actions_on(&server, 1)[0];
    let log = desk.write("log", log_of(&[(action, response_with(&tree))]).bytes())?;
    // Large blobs come by streams; what comes in batches is fine.
    server.always(Method::Read, Fault::Fail(Status::data_loss("a bad disk")));
    server.always(Method::FindMissingBlobs, Fault::Fail(Status::permission_denied("not you")));
    let (code, output) = desk.record_from(&log, "bundle", server.uri()).await?;
    assert_eq!(code, ERRORS, "{output}");
    assert!(output.contains("not all output folders are in the bundle"), "{output}");
    assert!(output.contains("recorded 1 actions"), "{output}");
    server.heal(Method::FindMissingBlobs);
    let replayed = desk.replay(&desk.path("bundle"), server.uri(), &[]).await?;
    assert_eq!(replayed.expect(EQUAL)?["equal"], 1);
    Ok(())
}

#[tokio::test]
async fn an_action_of_which_executions_fail_is_not_equal() -> Result<()> {
    let desk = Desk::new()?;
    let server = FakeCas::executing([Told::Done(Box::default())]).await?;
    let list = desk.write("list", actions_on(&server, 1)[0].to_string())?;
    // The first call goes as told.
    server.once(Method::Execute, Fault::Truncate(0));
    server.once(Method::Execute, Fault::Fail(Status::invalid_argument("not again")));
    let replayed = desk.replay(&list, server.uri(), &["--repeat", "2", "--jobs", "1"]).await?;
    let report = replayed.expect(ERRORS)?;
    assert_eq!((&report["executions"], &report["failed"]), (&2.into(), &1.into()), "{}", replayed.output);
    assert_eq!((&report["equal"], &report["partly_failed"]), (&0.into(), &1.into()));
    assert!(replayed.output.contains("partly failed 1 actions"), "{}", replayed.output);
    Ok(())
}
