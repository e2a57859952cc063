//! Waiting for what nothing tells of.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// How long the background may take, on a machine that does much else.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks until `holds` says so; fails when it does not for a minute.
pub async fn eventually(what: &str, holds: impl Fn() -> Result<bool>) -> Result<()> {
    let holds = async {
        while !holds()? {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, holds).await.with_context(|| format!("not in {PATIENCE:?}: {what}"))?
}

/// Waits until a folder is empty.
pub async fn empty(folder: &Path) -> Result<()> {
    eventually(&format!("{} is empty", folder.display()), || {
        Ok(std::fs::read_dir(folder).with_context(|| folder.display().to_string())?.next().is_none())
    })
    .await
}
