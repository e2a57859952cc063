//! What longshore and the processes that belong to it hold: the helper, and a keeper for each command that runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use longshore_tests::process::Footprint;

/// How often it is looked at under load.
const SAMPLE_EVERY: Duration = Duration::from_millis(20);

/// What was held at one moment, or at most.
#[derive(Clone, Copy, Default)]
pub(crate) struct Held {
    /// Of all processes, each counted in full, though they share pages.
    pub(crate) resident_bytes: u64,
    /// Of longshore.
    pub(crate) threads: u64,
    /// Open files of longshore.
    pub(crate) files: u64,
    /// The helper and the keepers.
    pub(crate) helpers: u64,
}

impl Held {
    /// By the longshore of that process id, now.
    pub(crate) fn by(pid: u32) -> Result<Self> {
        let own = Footprint::of(pid)?;
        let mut held = Self {
            resident_bytes: own.resident_bytes,
            threads: own.threads,
            files: own.descriptors,
            helpers: 0,
        };
        for helper in children(pid) {
            for process in children(helper).into_iter().chain([helper]) {
                // A keeper may have ended meanwhile.
                if let Ok(footprint) = Footprint::of(process) {
                    held.resident_bytes += footprint.resident_bytes;
                    held.helpers += 1;
                }
            }
        }
        Ok(held)
    }

    fn max(self, other: Self) -> Self {
        Self {
            resident_bytes: self.resident_bytes.max(other.resident_bytes),
            threads: self.threads.max(other.threads),
            files: self.files.max(other.files),
            helpers: self.helpers.max(other.helpers),
        }
    }
}

/// The children of the first thread of a process, which starts all that longshore starts.
fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

pub(crate) fn print_table(rows: [(&str, Held); 3]) {
    println!("\nlongshore        resident   threads   open files   helpers");
    for (name, Held { resident_bytes, threads, files, helpers }) in rows {
        println!("{name:<12} {:>8} KiB {threads:>9} {files:>12} {helpers:>9}", resident_bytes / 1024);
    }
}

/// Looks again and again, and remembers the largest of each figure.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<Held>>,
}

impl Watch {
    pub(crate) fn start(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut peak = Held::default();
            while !stopped.load(Ordering::Relaxed) {
                peak = peak.max(Held::by(pid).context("longshore")?);
                std::thread::sleep(SAMPLE_EVERY);
            }
            Ok(peak)
        });
        Self { stop, thread }
    }

    pub(crate) fn stop(self) -> Result<Held> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watch does not panic")
    }
}
