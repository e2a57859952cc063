//! A store for a tenth of what is needed, under many actions at once: all is evicted and brought again, over and over, and
//! the disk never holds more than the store may.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use longshore_tests::longshore::{Launch, Longshore};

use super::bundle::Bundle;
use super::figures::{Bounds, Figures};
use super::holdings::{Holdings, Slack};
use super::replaying::Replay;
use super::store;

/// Inputs of each action.
const INPUTS: usize = 8;
/// One in so many actions is under way: inputs and outputs of all that are fill half of the store.
const AT_ONCE_EVERY: usize = 40;
/// The fewest actions at once.
const AT_ONCE_MIN: usize = 2;
/// How often the disk is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(crate) async fn run(bounds: Bounds, figures: &mut Figures) -> Result<()> {
    let bundle = Bundle::record(usize::try_from(bounds.count)?, INPUTS).await?;
    let at_once = (bundle.actions / AT_ONCE_EVERY).max(AT_ONCE_MIN).to_string();
    let limit_bytes = bundle.disk_bytes / 10;
    let flags = ["--jobs".to_owned(), "4".to_owned(), "--max-size".to_owned(), limit_bytes.to_string()];
    let longshore = Longshore::launch(Launch { flags: flags.into(), ..Launch::default() }).await?;
    let replay =
        async || Replay::start(&bundle.path(), longshore.uri(), &["--jobs", &at_once])?.ended().await;
    replay().await?.is_all_well()?;
    let before = Holdings::settled(&longshore).await?;

    let stop = Arc::new(AtomicBool::new(false));
    let watch = tokio::task::spawn_blocking({
        let (root, stop) = (longshore.root(), stop.clone());
        move || watch(&root, &stop)
    });
    let replayed = replay().await;
    stop.store(true, Ordering::Relaxed);
    let (looks, most_bytes) = watch.await??;
    let replayed = replayed?;
    figures.replayed(&replayed)?;
    replayed.is_all_well()?;
    ensure!(replayed.number("equal")? == bundle.actions as u64);
    let uploaded = replayed.number("uploaded_bytes")?;
    figures.add("uploaded_again_bytes", uploaded);
    figures.add("looks_at_the_disk", looks.into());
    figures.add("disk_bytes_most", most_bytes);
    figures.add("disk_limit_bytes_most", limit_bytes);
    println!("{at_once} at once, with a store of {limit_bytes} bytes; at most {most_bytes} on the disk");
    ensure!(uploaded > limit_bytes, "hardly anything was evicted");
    ensure!(most_bytes <= limit_bytes, "{most_bytes} bytes on the disk");
    let after = Holdings::settled(&longshore).await?;
    figures.held_flat(before, after, Slack::default())?;
    // The folder would go with the last one who has it.
    let (home, root) = (longshore.home(), longshore.root());
    ensure!(longshore.stop().await?.success());
    figures.add("blobs_hashed_again", store::rehash(&root)? as u64);
    drop(home);
    Ok(())
}

/// Looks at the disk again and again; the most that it held.
fn watch(root: &Path, stop: &AtomicBool) -> Result<(u32, u64)> {
    let (mut looks, mut most_bytes) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        most_bytes = most_bytes.max(store::disk_bytes(root).context("a look at the disk")?);
        looks += 1;
        std::thread::sleep(LOOK_EVERY);
    }
    Ok((looks, most_bytes))
}
