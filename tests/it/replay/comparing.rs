//! What differs is found, and named.

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::DigestFunction;
use longshore_tests::action::TestAction;
use longshore_tests::longshore::Longshore;

use super::{DIFFERENCES, Desk, EQUAL, NONDETERMINISTIC, log_of, run_all, run_stable};

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
