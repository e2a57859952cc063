//! Clients that break the rules: others are served as before, what the server holds stays bounded, and nothing is left.
//!
//! Each test attacks a longshore of its own. The bounds are those of `docs/architecture.md`; each attack would take many
//! times as much of a server that has none.

mod connections;
mod messages;
mod names;
mod reads;
mod trees;
mod uploads;
mod wire;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use longshore_tests::action::TestAction;
use longshore_tests::longshore::{Launch, Longshore};
use longshore_tests::process::Footprint;
use tonic::{Code, Status};

use crate::result_of;

/// What a longshore needs for itself and for a client that keeps to the rules, in a debug build.
const OWN_BYTES: u64 = 160 << 20;
/// What one connection may make it hold: its window, messages, answers, and the state of its streams.
const CONNECTION_BYTES: u64 = (128 + 32 + 64 + 64) << 20;
/// How often a figure is looked at that tells of nobody's end by itself.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How many equal looks in a row are taken for the last word.
const STILL_LOOKS: usize = 10;
/// How long what was held may take to be given back, on a machine that does much else.
const PATIENCE: Duration = Duration::from_mins(1);

/// A longshore under attack.
struct Target {
    longshore: Longshore,
    /// What it held when it had served one client.
    before: Footprint,
}

impl Target {
    async fn start() -> Result<Self> {
        Self::launch(Launch::default()).await
    }

    async fn launch(launch: Launch) -> Result<Self> {
        let longshore = Longshore::launch(launch).await?;
        let mut target = Self { longshore, before: Footprint::default() };
        target.serves_another().await?;
        target.before = target.settled().await?;
        Ok(target)
    }

    /// Has a client that keeps to the rules do what clients do, on a connection of its own.
    async fn serves_another(&self) -> Result<()> {
        let client = self.longshore.client().await?;
        let content = uuid::Uuid::new_v4().to_string();
        let digest = client.put(content.clone()).await?;
        ensure!(client.missing([&digest]).await?.is_empty(), "{digest:?} is missing");
        ensure!(client.read(&digest).await? == content, "{digest:?} is something else");
        let response = client.run(&TestAction::shell("true").salt(content)).await?;
        result_of(&response, 0)?;
        Ok(())
    }

    /// What it holds once that changes no more.
    async fn settled(&self) -> Result<Footprint> {
        let mut last = Footprint::of(self.longshore.pid())?;
        let mut equal = 0;
        while equal < STILL_LOOKS {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = Footprint::of(self.longshore.pid())?;
            let is_equal = now.descriptors == last.descriptors
                && now.resident_bytes.abs_diff(last.resident_bytes) < 1 << 20;
            equal = if is_equal { equal + 1 } else { 0 };
            last = now;
        }
        Ok(last)
    }

    /// Checks that the attack, which is under way, got it to hold no more than that.
    async fn holds_at_most(&self, bytes: u64) -> Result<()> {
        let held = self.settled().await?;
        ensure!(held.resident_bytes_max <= bytes, "{held:?}, and at most {bytes} were expected");
        Ok(())
    }

    /// Checks, after the attackers have gone, that it serves, and that they left nothing: no descriptor, no file, and
    /// nothing that keeps it from stopping.
    async fn leaves_nothing(self) -> Result<()> {
        self.serves_another().await?;
        let given_back = async {
            loop {
                let held = Footprint::of(self.longshore.pid())?;
                if held.descriptors <= self.before.descriptors && self.files_in_the_way()? == 0 {
                    return Ok::<_, anyhow::Error>(());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        if tokio::time::timeout(PATIENCE, given_back).await.is_err() {
            let held = Footprint::of(self.longshore.pid())?;
            let files = self.files_in_the_way()?;
            anyhow::bail!("{:?} before, {held:?} and {files} files afterwards", self.before);
        }
        let root = self.longshore.root();
        let home = self.longshore.home();
        let status = self.longshore.stop().await?;
        ensure!(status.success(), "{status}");
        ensure!(files_below(&root.join("scratch"))? == 0, "scratch is not empty");
        drop(home);
        Ok(())
    }

    /// Files that are neither blobs nor records nor cached trees.
    fn files_in_the_way(&self) -> Result<usize> {
        let root = self.longshore.root();
        let folders = ["scratch", "work", "trash"];
        folders.iter().map(|name| files_below(&root.join(name))).sum()
    }
}

/// How many files there are below a folder.
fn files_below(folder: &Path) -> Result<usize> {
    let mut count = 0;
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        // Removed meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error).with_context(|| folder.display().to_string()),
    };
    for entry in entries {
        let entry = entry?;
        count += match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_below(&entry.path())?,
            _ => 1,
        };
    }
    Ok(count)
}

/// Checks that a call was refused with that code, and for that reason.
fn refused<T>(outcome: Result<T, Status>, code: Code, reason: &str) -> Result<()> {
    let status = outcome.err().with_context(|| format!("it was taken, and should be {code:?}: {reason}"))?;
    ensure!(status.code() == code && status.message().contains(reason), "{status:?}, not {code:?}: {reason}");
    Ok(())
}
