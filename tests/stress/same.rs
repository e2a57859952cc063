//! One action, asked for 64 times at once: as one execution where it may be shared, and as 64 where it may not.

use anyhow::{Result, ensure};
use longshore_cas_store::digest::DigestFunction;
use longshore_tests::action::TestAction;
use longshore_tests::longshore::{Launch, Longshore};
use longshore_tests::tree::T3;

use super::bundle::Bundle;
use super::figures::{Bounds, Figures};
use super::holdings::{Holdings, Slack};
use super::replaying::Replay;
use super::store;

/// Inputs of the action.
const INPUTS: usize = 40;
const AT_ONCE: usize = 64;

pub(crate) async fn run(bounds: Bounds, figures: &mut Figures) -> Result<()> {
    let bundle = Bundle::record(1, INPUTS).await?;
    let flags = ["--jobs", "16"].map(str::to_owned).into();
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    stampede(&longshore, 0).await?;
    alone(&bundle, &longshore, figures).await?;
    let before = Holdings::settled(&longshore).await?;
    for round in bounds.rounds() {
        stampede(&longshore, round + 1).await?;
        figures.add("callers_of_one_execution", AT_ONCE as u64);
        alone(&bundle, &longshore, figures).await?;
    }
    let after = Holdings::settled(&longshore).await?;
    figures.held_flat(before, after, Slack::default())?;
    // The folder would go with the last one who has it.
    let (home, root) = (longshore.home(), longshore.root());
    ensure!(longshore.stop().await?.success());
    figures.add("blobs_hashed_again", store::rehash(&root)? as u64);
    drop(home);
    Ok(())
}

/// 64 clients with a connection each, none of which knows of the others: there is one execution.
async fn stampede(longshore: &Longshore, round: u32) -> Result<()> {
    let script = "cat /proc/sys/kernel/random/uuid; find . -type f | wc -l";
    let action = TestAction::shell(script).inputs(T3.tree(u64::from(round))).build(DigestFunction::Sha256);
    longshore.client().await?.upload(&action.blobs).await?;
    let callers = (0..AT_ONCE).map(|_| async {
        let client = longshore.client().await?;
        let response = client.execute(&action.digest, false).await?;
        let result = response.result.ok_or_else(|| anyhow::anyhow!("no result: {:?}", response.status))?;
        anyhow::Ok((result.exit_code, client.stdout(&result).await?))
    });
    let results = futures::future::try_join_all(callers).await?;
    ensure!(results[0].0 == 0 && results[0].1.ends_with(&format!("\n{}\n", T3.files)), "{:?}", results[0]);
    ensure!(results.iter().all(|result| *result == results[0]), "more than one execution: {results:?}");
    Ok(())
}

/// 64 executions of an action that must not be shared.
async fn alone(bundle: &Bundle, longshore: &Longshore, figures: &mut Figures) -> Result<()> {
    let flags = ["--jobs", "64", "--repeat", "64"];
    let replayed = Replay::start(&bundle.path(), longshore.uri(), &flags)?.ended().await?;
    figures.replayed(&replayed)?;
    replayed.is_all_well()?;
    ensure!(replayed.number("executions")? == AT_ONCE as u64);
    Ok(())
}
