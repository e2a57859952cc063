//! What a longshore holds, before and after.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use longshore_tests::longshore::Longshore;
use longshore_tests::process::{Footprint, descendants, foreign_descendants};

use super::store;

/// How long the background may take to remove any of what is left, on a machine that does much else.
const PATIENCE: Duration = Duration::from_mins(1);
/// What is named of what is left.
const NAMED_MAX: usize = 5;
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How much more memory counts as noise of the allocator.
const NOISE_BYTES: u64 = 16 << 20;
/// How many more threads may be waiting for more to do.
const NOISE_THREADS: u64 = 4;
/// How many operations that have ended longshore remembers, and about what each takes.
const OPERATIONS_KEPT: u64 = 10_000;
const OPERATION_BYTES: u64 = 6 << 10;

/// What may have been added meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slack {
    /// Operations that have ended, of which the latest are remembered.
    pub(crate) executions: u64,
    /// Beginnings of uploads, each of which is an open file.
    pub(crate) uploads: u64,
}

/// Everything that is counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holdings {
    footprint: Footprint,
    processes: usize,
    mounts: usize,
    /// Below the root, beside what is stored.
    files: usize,
}

impl Holdings {
    /// Waits until nothing of actions, uploads and removals is left, and counts the rest.
    pub(crate) async fn settled(longshore: &Longshore) -> Result<Self> {
        let root = longshore.root();
        let (mut fewest, mut since) = (usize::MAX, Instant::now());
        loop {
            let (files, foreign) = (store::passing(&root)?, foreign_descendants(longshore.pid())?);
            // One is the helper that starts actions.
            let own = descendants(longshore.pid())?.len().saturating_sub(foreign.len());
            let left = files.len() + foreign.len() + own.saturating_sub(1);
            if left == 0 && own == 1 {
                break;
            }
            if left < fewest {
                (fewest, since) = (left, Instant::now());
            }
            ensure!(
                since.elapsed() < PATIENCE,
                "for {PATIENCE:?} there were {left} things left, such as {:?} {foreign:?}",
                &files[..files.len().min(NAMED_MAX)]
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", longshore.pid()))?;
        Ok(Self {
            footprint: Footprint::of(longshore.pid())?,
            processes: descendants(longshore.pid())?.len(),
            mounts: mounts.lines().count(),
            files: store::beside(&root)?,
        })
    }

    /// What was held before is what is held now, but for `slack`.
    pub(crate) fn are_flat_since(&self, before: &Self, slack: Slack) -> Result<()> {
        let Slack { executions, uploads } = slack;
        let (now, then) = (self.footprint, before.footprint);
        let growth_bytes = now.resident_bytes.saturating_sub(then.resident_bytes);
        let history_bytes = executions.min(OPERATIONS_KEPT) * OPERATION_BYTES;
        ensure!(
            growth_bytes <= NOISE_BYTES + history_bytes,
            "memory has grown by {} MiB",
            growth_bytes >> 20
        );
        ensure!(now.descriptors <= then.descriptors + uploads, "descriptors have grown");
        ensure!(now.threads <= then.threads + NOISE_THREADS, "threads have grown");
        self.are_those_of_another_life(before)
    }

    /// What outlives a process is what it was in an earlier life.
    pub(crate) fn are_those_of_another_life(&self, before: &Self) -> Result<()> {
        ensure!(self.processes <= before.processes, "processes have grown");
        ensure!(self.mounts == before.mounts, "mounts have changed");
        ensure!(self.files <= before.files, "files have grown");
        Ok(())
    }

    /// As JSON.
    pub(crate) fn figures(&self) -> serde_json::Value {
        serde_json::json!({
            "memory_mib": self.footprint.resident_bytes >> 20,
            "threads": self.footprint.threads,
            "descriptors": self.footprint.descriptors,
            "processes": self.processes,
            "mounts": self.mounts,
            "files": self.files,
        })
    }
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Footprint { resident_bytes, threads, descriptors, .. } = self.footprint;
        let Self { processes, mounts, files, .. } = self;
        let mebibytes = resident_bytes >> 20;
        write!(f, "{mebibytes} MiB, {threads} threads, {descriptors} descriptors, {processes} processes, ")?;
        write!(f, "{mounts} mounts, {files} files beside the store's, nothing passing")
    }
}
