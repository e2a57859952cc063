//! SIGKILL at random times under load, in start-up too, and a restart on the same root: nothing that was published is
//! corrupt, no result is wrong, and nothing of an earlier life is left.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use longshore_tests::longshore::{Launch, Longshore, new_home};
use tempfile::TempDir;

use super::bundle::Bundle;
use super::figures::{Bounds, Figures};
use super::holdings::Holdings;
use super::replaying::Replay;
use super::store;

/// Inputs of each action.
const INPUTS: usize = 40;
const ACTIONS: usize = 64;
/// The longest life.
const LIFE_MS_MAX: u64 = 1500;
/// One in so many lives ends before anything is served.
const STILLBORN_EVERY: u32 = 5;
/// The longest start that is broken off.
const BIRTH_MS_MAX: u64 = 60;

pub(crate) async fn run(bounds: Bounds, figures: &mut Figures) -> Result<()> {
    let bundle = Bundle::record(ACTIONS, INPUTS).await?;
    let home = Arc::new(new_home()?);
    let mut longshore = launch(&home).await?;
    let uri = longshore.uri().to_owned();
    // Everything is uploaded before the first kill: from then on there are executions.
    Replay::start(&bundle.path(), &uri, &["--jobs", "64"])?.ended().await?.is_all_well()?;
    let before = Holdings::settled(&longshore).await?;
    let mut replay =
        Replay::start(&bundle.path(), &uri, &["--jobs", "64", "--repeat", "1000000", "--outage", "2m"])?;
    let mut rounds = 0;
    for round in bounds.rounds() {
        rounds = round + 1;
        tokio::time::sleep(Duration::from_millis(random(LIFE_MS_MAX))).await;
        ensure!(replay.is_running()?, "the replay ended in round {round}");
        longshore.kill().await?;
        let hashed =
            store::rehash(&home.path().join("root")).with_context(|| format!("after kill {round}"))?;
        figures.add("kills", 1);
        figures.add("blobs_hashed_again", hashed as u64);
        if round % STILLBORN_EVERY == 0 {
            let birth = Duration::from_millis(random(BIRTH_MS_MAX));
            // Dropping it kills it.
            drop(tokio::time::timeout(birth, launch(&home)).await);
            store::wait_until_left(&home.path().join("root")).await?;
            figures.add("kills_in_start_up", 1);
        }
        longshore = launch(&home).await.with_context(|| format!("after kill {round}"))?;
    }
    replay.interrupt()?;
    let replayed = replay.ended().await?;
    figures.replayed(&replayed)?;
    replayed.is_all_well()?;
    let executions = replayed.number("executions")?;
    ensure!(executions > u64::from(rounds), "only {executions} executions");

    let last = Replay::start(&bundle.path(), &uri, &["--jobs", "64"])?.ended().await?;
    figures.replayed(&last)?;
    last.is_all_well()?;
    ensure!(last.number("equal")? == ACTIONS as u64);
    let after = Holdings::settled(&longshore).await?;
    figures.held(before, after);
    after.are_those_of_another_life(&before)?;
    let root = longshore.root();
    ensure!(longshore.stop().await?.success());
    figures.add("blobs_hashed_again", store::rehash(&root)? as u64);
    println!("{rounds} kills, {executions} executions, none failed");
    Ok(())
}

async fn launch(home: &Arc<TempDir>) -> Result<Longshore> {
    let flags = ["--jobs", "16"].map(str::to_owned).into();
    Longshore::launch(Launch { home: Some(home.clone()), unix: true, flags, ..Launch::default() }).await
}

/// A number below `end`.
fn random(end: u64) -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0 % end
}
