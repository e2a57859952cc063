//! Recordings that are not what they should be, and servers that do not do what is asked: each is said, has its exit
//! code, and costs nothing but what depends on it.

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_tests::action::TestAction;
use longshore_tests::fake_cas::FakeCas;
use longshore_tests::longshore::{Launch, Longshore};
use longshore_tests::tree::InputTree;

use super::{BAD_INPUT, Desk, EQUAL, ERRORS, log_of, run_all, run_stable};

#[tokio::test]
async fn a_log_that_is_cut_off_is_replayed_up_to_there() -> Result<()> {
    let desk = Desk::new()?;
    let longshore = Longshore::start().await?;
    let ran = run_stable(&longshore.client().await?).await?;
    let log = log_of(&ran);
    let log = desk.write("log", &log.bytes()[..log.bytes().len() - 10])?;
    let replayed = desk.replay(&log, longshore.uri(), &[]).await?;
    let report = replayed.expect(BAD_INPUT)?;
    assert_eq!((&report["executions"], &report["equal"]), (&2.into(), &2.into()));
    assert!(replayed.output.contains("the log is cut off"), "{}", replayed.output);

    let (code, output) = desk.record(&log, "bundle", &longshore).await?;
    assert_eq!(code, BAD_INPUT, "{output}");
    assert!(output.contains("the log is cut off") && output.contains("recorded 2 actions"), "{output}");
    desk.replay(&desk.path("bundle"), longshore.uri(), &[]).await?.expect(EQUAL)?;
    Ok(())
}

#[tokio::test]
async fn a_log_of_another_program_is_none() -> Result<()> {
    let desk = Desk::new()?;
    let longshore = Longshore::start().await?;
    let cases: [(&str, &[u8], &str); 5] = [
        ("other", b"\x1f\x8b\x08\0\0\0\0\0 and whatever follows in such a file", "no gRPC log of Bazel's"),
        ("text", b"INFO: Build completed successfully, 2 total actions\n", "expected hash/size"),
        ("texts", b"INFO: one line\nand another\nand one more\n", "and 2 more like that"),
        ("empty", b"", "it is empty"),
        ("nothing", b"# no action\n", "it has no action"),
    ];
    for (name, content, reason) in cases {
        let path = desk.write(name, content)?;
        let replayed = desk.replay(&path, longshore.uri(), &[]).await?;
        assert_eq!(replayed.code, BAD_INPUT, "{}", replayed.output);
        assert!(replayed.output.contains(reason), "{}", replayed.output);
        let (code, output) = desk.record(&path, &format!("{name}.bundle"), &longshore).await?;
        assert!(code == BAD_INPUT && output.contains(reason), "{output}");
    }
    let replayed = desk.replay(&desk.path("absent"), longshore.uri(), &[]).await?;
    assert!(replayed.code == BAD_INPUT && replayed.output.contains("No such file"), "{}", replayed.output);
    let replayed = desk.replay(desk.folder.path(), longshore.uri(), &[]).await?;
    assert!(replayed.code == BAD_INPUT && replayed.output.contains("neither"), "{}", replayed.output);
    Ok(())
}

/// Actions with an input of their own each.
fn actions() -> Vec<TestAction> {
    let action = |content: &'static str| {
        let inputs = InputTree::new().file("shared", "shared").file("sub/own", content);
        TestAction::shell("cat shared sub/own > out").inputs(inputs).outputs(["out"])
    };
    ["first", "second", "third", "fourth"].map(action).into()
}

// A blob that is missing and one that is wrong cost the actions that need them, and are named.
#[tokio::test]
async fn a_bundle_with_wrong_blobs_is_replayed_without_them() -> Result<()> {
    let desk = Desk::new()?;
    let first = Longshore::start().await?;
    let ran = run_all(&first.client().await?, &actions()).await?;
    let log = desk.write("log", log_of(&ran).bytes())?;
    let (code, output) = desk.record(&log, "bundle", &first).await?;
    ensure!(code == EQUAL, "{output}");

    let blob = |digest: &Digest| desk.path("bundle/blobs/sha256").join(digest.hash_hex());
    let sha = |data: &[u8]| DigestFunction::Sha256.digest(data);
    let [missing, wrong] = [sha(b"first"), sha(b"second")];
    std::fs::remove_file(blob(&missing))?;
    // The file in a bundle is read-only, as in the store that it came by.
    std::fs::remove_file(blob(&wrong))?;
    std::fs::write(blob(&wrong), "secone")?;
    let root = |action: &TestAction| action.inputs.build(DigestFunction::Sha256).root;
    let torn = root(&actions()[2]);
    std::fs::remove_file(blob(&torn))?;
    std::fs::write(blob(&torn), "no directory")?;

    let second = Longshore::start().await?;
    let replayed = desk.replay(&desk.path("bundle"), second.uri(), &[]).await?;
    let report = replayed.expect(BAD_INPUT)?;
    assert_eq!((&report["executions"], &report["equal"]), (&1.into(), &1.into()));
    let left_out = report["left_out"].as_array().context("a list")?;
    assert_eq!(left_out.len(), 3);
    for (line, digest) in left_out.iter().zip([missing, wrong, torn]) {
        let reason = line["reason"].as_str().context("a reason")?;
        assert!(reason.contains(&digest.to_string()), "{reason}");
    }
    assert_eq!(left_out[0]["reason"], format!("blob {missing} cannot be uploaded: the recording lacks it"));
    // A server that has what is missing needs nothing.
    second.client().await?.put("first").await?;
    let replayed = desk.replay(&desk.path("bundle"), second.uri(), &[]).await?;
    assert_eq!(replayed.expect(BAD_INPUT)?["executions"], 2);
    Ok(())
}

#[tokio::test]
async fn a_bundle_is_recorded_without_what_the_server_lacks() -> Result<()> {
    let desk = Desk::new()?;
    let first = Longshore::start().await?;
    let ran = run_all(&first.client().await?, &actions()).await?;
    let log = desk.write("log", log_of(&ran).bytes())?;
    let second = Longshore::start().await?;
    let client = second.client().await?;
    for action in &actions()[1..] {
        client.upload(&action.build(DigestFunction::Sha256).blobs).await?;
    }
    let (code, output) = desk.record(&log, "bundle", &second).await?;
    assert_eq!(code, ERRORS, "{output}");
    assert!(output.contains(&format!("out (action {}) is left out", ran[0].0)), "{output}");
    assert!(output.contains("recorded 3 of 4 actions"), "{output}");
    let third = Longshore::start().await?;
    let replayed = desk.replay(&desk.path("bundle"), third.uri(), &[]).await?;
    assert_eq!(replayed.expect(EQUAL)?["equal"], 3);

    // From a server that has nothing, nothing is made.
    let (code, output) = desk.record(&log, "nothing", &Longshore::start().await?).await?;
    assert!(code == ERRORS && output.contains("nothing to make a bundle of"), "{output}");
    assert!(!desk.path("nothing/manifest.jsonl").exists());
    Ok(())
}

#[tokio::test]
async fn a_server_that_refuses_is_named() -> Result<()> {
    let desk = Desk::new()?;
    let longshore = Longshore::start().await?;
    let ran = run_all(&longshore.client().await?, &actions()).await?;
    let log = desk.write("log", log_of(&ran).bytes())?;
    let (code, output) = desk.record(&log, "bundle", &longshore).await?;
    ensure!(code == EQUAL, "{output}");

    // Nobody is there.
    let gone = format!("unix:{}", desk.path("nobody").display());
    let replayed = desk.replay(&desk.path("bundle"), &gone, &["--outage", "1s"]).await?;
    assert_eq!(replayed.code, ERRORS, "{}", replayed.output);
    assert!(replayed.output.contains("is unavailable"), "{}", replayed.output);
    // A cache that executes nothing.
    let cache = FakeCas::start().await?;
    let replayed = desk.replay(&desk.path("bundle"), cache.uri(), &["--outage", "1s"]).await?;
    let report = replayed.expect(ERRORS)?;
    assert_eq!((&report["failed"], &report["statuses"]["UNIMPLEMENTED"]), (&4.into(), &4.into()));
    // One that has nothing of what a list names: what a person can do about it is on their side.
    let list = desk.write("list", format!("{}\nnonsense\n", ran[0].0))?;
    let replayed = desk.replay(&list, cache.uri(), &[]).await?;
    let report = replayed.expect(ERRORS)?;
    assert_eq!((&report["executions"], &report["problems"].as_array().map(Vec::len)), (&0.into(), &Some(1)));
    assert_eq!(report["left_out"][0]["reason"], "the action is not on the server");
    Ok(())
}

// A server that evicts what was uploaded is given it again, as every client has to.
#[tokio::test]
async fn what_the_server_evicts_is_uploaded_again() -> Result<()> {
    let desk = Desk::new()?;
    let first = Longshore::start().await?;
    let action = |number: u8| {
        let inputs = InputTree::new().file("large", vec![number; 300 << 10]);
        TestAction::shell("wc -c < large > out").inputs(inputs).outputs(["out"])
    };
    let actions: Vec<_> = (0..12).map(action).collect();
    let ran = run_all(&first.client().await?, &actions).await?;
    let log = desk.write("log", log_of(&ran).bytes())?;
    let (code, output) = desk.record(&log, "bundle", &first).await?;
    ensure!(code == EQUAL, "{output}");

    let flags = ["--max-size", "2MiB", "--jobs", "2"].map(str::to_owned).into();
    let small = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let replayed = desk.replay(&desk.path("bundle"), small.uri(), &["--repeat", "3", "--jobs", "2"]).await?;
    let report = replayed.expect(EQUAL)?;
    assert_eq!((&report["executions"], &report["equal"]), (&36.into(), &12.into()));
    // More than the closure: 12 files, and the folders and commands.
    let uploaded = report["uploaded_bytes"].as_u64().context("a number")?;
    assert!(uploaded > 2 * 12 * (300 << 10), "{uploaded}");
    Ok(())
}
