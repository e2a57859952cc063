//! Every form of recording, replayed.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::DigestFunction;
use longshore_tests::longshore::{Longshore, binary};

use super::{Desk, EQUAL, log_of, run_stable};

// What one server ran, another one that has nothing of it runs with the same results.
#[tokio::test]
async fn a_bundle_has_everything_that_its_actions_need() -> Result<()> {
    let desk = Desk::new()?;
    let first = Longshore::start().await?;
    let ran = run_stable(&first.client().await?).await?;
    let log = desk.write("log", log_of(&ran).bytes())?;
    let (code, output) = desk.record(&log, "bundle", &first).await?;
    ensure!(code == EQUAL, "{output}");
    ensure!(output.contains("recorded 3 actions"), "{output}");
    first.stop().await?;

    // Each blob once, under its hash, and nothing beside them.
    let blobs = desk.path("bundle/blobs/sha256");
    for entry in std::fs::read_dir(&blobs)? {
        let entry = entry?;
        let hash = DigestFunction::Sha256.digest(&std::fs::read(entry.path())?).hash_hex();
        assert_eq!(entry.file_name().to_str(), Some(&*hash));
    }
    let names = std::fs::read_dir(desk.path("bundle"))?.map(|entry| Ok(entry?.file_name()));
    let mut names: Vec<_> = names.collect::<Result<_>>()?;
    names.sort();
    assert_eq!(names, ["blobs", "manifest.jsonl"]);

    let second = Longshore::start().await?;
    let replayed = desk.replay(&desk.path("bundle"), second.uri(), &["--repeat", "3", "--jobs", "4"]).await?;
    let report = replayed.expect(EQUAL)?;
    assert_eq!(
        (&report["equal"], &report["executions"], &report["failed"]),
        (&3.into(), &9.into(), &0.into())
    );
    assert_eq!(report["statuses"]["OK"], 9);
    for phase in ["queue", "fetch", "execute", "upload", "end_to_end"] {
        assert_eq!(report["times_ms"][phase]["count"], 9, "{phase}");
    }
    assert!(replayed.output.contains("equal         3 actions"), "{}", replayed.output);

    // What is there is not sent again, whatever the pace.
    for pace in [["--speed", "10"], ["--rate", "100"]] {
        let replayed = desk.replay(&desk.path("bundle"), second.uri(), &pace).await?;
        let report = replayed.expect(EQUAL)?;
        assert_eq!((&report["executions"], &report["uploaded_blobs"]), (&3.into(), &0.into()));
    }
    Ok(())
}

// A log and a list of digests need a server that has the blobs.
#[tokio::test]
async fn a_log_is_replayed_where_its_blobs_are() -> Result<()> {
    let desk = Desk::new()?;
    let longshore = Longshore::start().await?;
    let ran = run_stable(&longshore.client().await?).await?;
    let log = desk.write("log", log_of(&ran).bytes())?;
    let report = desk.replay(&log, longshore.uri(), &[]).await?;
    assert_eq!(report.expect(EQUAL)?["equal"], 3);

    let list: Vec<_> = ran.iter().map(|(action, _)| action.to_string()).collect();
    let list = list.join("\n");
    let digests = desk.write("digests", &list)?;
    let replayed = desk.replay(&digests, longshore.uri(), &["--repeat", "2"]).await?;
    let report = replayed.expect(EQUAL)?;
    assert_eq!((&report["unrecorded"], &report["equal"]), (&3.into(), &3.into()));

    let mut replay = Command::new(binary()?)
        .args(["replay", "-", "--json", "-", "--server", longshore.uri()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    replay.stdin.take().context("stdin")?.write_all(list.as_bytes())?;
    let output = replay.wait_with_output()?;
    ensure!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["executions"], 3);
    Ok(())
}

#[tokio::test]
async fn an_action_directory_is_uploaded_and_replayed() -> Result<()> {
    let desk = Desk::new()?;
    let longshore = Longshore::start().await?;
    let action = desk.path("action");
    std::fs::create_dir_all(action.join("input/sub"))?;
    std::fs::write(action.join("input/sub/file"), "content")?;
    let command = "arguments: \"/bin/cat\" arguments: \"sub/file\" output_paths: \"none\"";
    std::fs::write(action.join("cmd.textproto"), command)?;
    std::fs::write(action.join("ac.textproto"), "timeout { seconds: 60 }")?;
    let replayed = desk.replay(&action, longshore.uri(), &["--repeat", "2"]).await?;
    let report = replayed.expect(EQUAL)?;
    assert_eq!((&report["executions"], &report["unrecorded"]), (&2.into(), &1.into()));
    assert!(replayed.output.contains("2 OK"), "{}", replayed.output);
    Ok(())
}
