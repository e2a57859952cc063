//! What a longshore holds, before and after.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use longshore_tests::longshore::Longshore;
use longshore_tests::process::{Footprint, descendants, foreign_descendants};

use super::store;

/// How long the background may take to remove what is left, on a machine that does much else.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How much more memory counts as noise of the allocator.
const NOISE_BYTES: u64 = 16 << 20;

/// Everything that is counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holdings {
    footprint: Footprint,
    processes: usize,
    mounts: usize,
}

impl Holdings {
    /// Waits until nothing of actions, uploads and removals is left, and counts the rest.
    pub(crate) async fn settled(longshore: &Longshore) -> Result<Self> {
        let root = longshore.root();
        let settle = async {
            loop {
                let left = (store::passing(&root)?, foreign_descendants(longshore.pid())?);
                if left.0.is_empty() && left.1.is_empty() && descendants(longshore.pid())?.len() == 1 {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let settled = tokio::time::timeout(PATIENCE, settle).await;
        settled.with_context(|| {
            let processes = foreign_descendants(longshore.pid());
            format!("left after {PATIENCE:?}: {:?}, {processes:?}", store::passing(&root))
        })??;
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", longshore.pid()))?;
        Ok(Self {
            footprint: Footprint::of(longshore.pid())?,
            processes: descendants(longshore.pid())?.len(),
            mounts: mounts.lines().count(),
        })
    }

    /// What was held before is what is held now, but for `kept` beginnings of uploads.
    pub(crate) fn are_flat_since(&self, before: &Self, kept: u64) -> Result<()> {
        println!("before  {before}\nafter   {self}");
        let (now, then) = (self.footprint, before.footprint);
        ensure!(now.resident_bytes <= then.resident_bytes + NOISE_BYTES, "memory has grown");
        ensure!(now.descriptors <= then.descriptors + kept, "descriptors have grown");
        ensure!(now.threads <= then.threads, "threads have grown");
        ensure!(self.processes <= before.processes, "processes have grown");
        ensure!(self.mounts == before.mounts, "mounts have changed");
        Ok(())
    }
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Footprint { resident_bytes, threads, descriptors, .. } = self.footprint;
        let (processes, mounts) = (self.processes, self.mounts);
        write!(
            f,
            "{} MiB, {threads} threads, {descriptors} descriptors, {processes} processes, {mounts} mounts, nothing passing",
            resident_bytes >> 20
        )
    }
}
