//! A disk that others fill, again and again: actions fail and say why, nothing is corrupt, and all is well as soon as there
//! is room.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use longshore_tests::longshore::{Launch, Longshore, new_home, new_home_in};
use longshore_tests::place::mount_image;
use nix::mount::MntFlags;
use tempfile::TempDir;

use super::bundle::Bundle;
use super::figures::{Bounds, Figures};
use super::holdings::{Holdings, Slack};
use super::replaying::{Replay, Replayed};
use super::store;

/// Inputs of each action.
const INPUTS: usize = 40;
const ACTIONS: usize = 64;
/// The disk: room for the bundle three times.
const DISK_BYTES: u64 = 96 << 20;
/// What the filler writes at once.
const CHUNK_BYTES: usize = 64 << 10;
/// What an execution may end with on a full disk.
const FULL: [&str; 2] = ["OK", "RESOURCE_EXHAUSTED"];

/// A small disk for longshore alone: what the clients need is elsewhere.
pub(crate) struct SmallDisk(TempDir);

impl SmallDisk {
    /// Mounts it. Call before there is a second thread.
    pub(crate) fn mount() -> Result<Self> {
        let folder = new_home()?;
        mount_image(folder.path(), DISK_BYTES).context("only root can mount a disk")?;
        // Actions may run as another user, who has to be able to walk through it.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        Ok(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Below it is the folder that goes now; if this fails, the mount still ends with the process.
        let _ = nix::mount::umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

pub(crate) async fn run(bounds: Bounds, figures: &mut Figures, disk: &SmallDisk) -> Result<()> {
    let bundle = Bundle::record(ACTIONS, INPUTS).await?;
    let flags = ["--max-size", "10GB", "--jobs", "16"].map(str::to_owned).into();
    let home = std::sync::Arc::new(new_home_in(disk.0.path())?);
    let longshore =
        Longshore::launch(Launch { home: Some(home.clone()), flags, ..Launch::default() }).await?;
    let replay = async |repeat: &str| {
        Replay::start(&bundle.path(), longshore.uri(), &["--jobs", "32", "--repeat", repeat])?.ended().await
    };
    replay("1").await?.is_all_well()?;
    let before = Holdings::settled(&longshore).await?;
    let mut failed = 0;
    for round in bounds.rounds() {
        let filler = home.path().join("filler");
        let running = Replay::start(&bundle.path(), longshore.uri(), &["--jobs", "32", "--repeat", "3"])?;
        let path = filler.clone();
        tokio::task::spawn_blocking(move || fill(&path)).await??;
        let running = running.ended().await?;
        figures.add("executions", running.number("executions")?);
        during_a_full_disk(&running).with_context(|| format!("round {round}"))?;
        // The disk is full from the first action on.
        let during = replay("1").await?;
        during_a_full_disk(&during).with_context(|| format!("round {round}"))?;
        failed += during.number("failed")?;
        failed += during.report["different"].as_array().map_or(0, Vec::len) as u64;
        std::fs::remove_file(&filler)?;
        let after = replay("1").await?;
        figures.add("full_disks", 1);
        figures.add("executions", during.number("executions")?);
        figures.replayed(&after)?;
        after.is_all_well().with_context(|| format!("with room again, round {round}"))?;
    }
    figures.add("failed_for_want_of_space", failed);
    ensure!(failed > 0, "the disk was never full");
    let after = Holdings::settled(&longshore).await?;
    figures.held_flat(before, after, Slack::default())?;
    let root = longshore.root();
    ensure!(longshore.stop().await?.success());
    figures.add("blobs_hashed_again", store::rehash(&root)? as u64);
    Ok(())
}

/// Commands may fail for want of space, too: their results are their own. What longshore answers is not.
fn during_a_full_disk(replayed: &Replayed) -> Result<()> {
    let statuses = replayed.report["statuses"].as_object().context("no statuses")?;
    for status in statuses.keys() {
        ensure!(FULL.contains(&status.as_str()), "{statuses:?} {}", replayed.report["failures"]);
    }
    Ok(())
}

/// Takes all the space that there is.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    let chunk = vec![0; CHUNK_BYTES];
    while file.write_all(&chunk).is_ok() {}
    Ok(())
}
