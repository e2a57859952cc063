//! `longshore replay` as a process of its own, and its report.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use longshore_tests::longshore::binary;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// The name of the report.
const REPORT: &str = "report.json";

/// A replay that goes on; dropped, it is killed.
pub(crate) struct Replay {
    child: Child,
    /// Where it writes its report, and what it has to store.
    folder: TempDir,
}

/// How a replay ended.
#[derive(Debug)]
pub(crate) struct Replayed {
    pub(crate) code: i32,
    pub(crate) report: Value,
}

impl Replay {
    pub(crate) fn start(bundle: &Path, uri: &str, flags: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let report = folder.path().join(REPORT);
        let mut command = Command::new(binary()?);
        command.arg("replay").arg(bundle).args(["--server", uri, "--json"]).arg(report).args(flags);
        // What one that is killed leaves goes with the folder.
        command.env("TMPDIR", folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self { child: command.spawn().context("start longshore replay")?, folder })
    }

    /// Whether it still goes on.
    pub(crate) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Asks it to stop and to report what it has.
    pub(crate) fn interrupt(&self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT).context("interrupt the replay")
    }

    /// Waits for its end.
    pub(crate) async fn ended(mut self) -> Result<Replayed> {
        let (status, report) = tokio::task::spawn_blocking(move || {
            let status = self.child.wait()?;
            anyhow::Ok((status, std::fs::read_to_string(self.folder.path().join(REPORT))))
        })
        .await??;
        let code = status.code().context("the replay was killed")?;
        let report = report.with_context(|| format!("no report; code {code}"))?;
        let report = serde_json::from_str(&report).context("the report is none")?;
        Ok(Replayed { code, report })
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Replayed {
    /// A number of the report.
    pub(crate) fn number(&self, field: &str) -> Result<u64> {
        self.report[field].as_u64().with_context(|| format!("no {field} in {}", self.report))
    }

    /// Nothing differs from the recording, or from another execution.
    pub(crate) fn has_no_wrong_result(&self) -> Result<()> {
        for field in ["different", "nondeterministic", "left_out", "problems"] {
            let found = self.report[field].as_array().with_context(|| format!("no {field}"))?;
            ensure!(found.is_empty(), "{} {field}, such as {}", found.len(), found[0]);
        }
        Ok(())
    }

    /// As before, and everything was executed.
    pub(crate) fn is_all_well(&self) -> Result<()> {
        self.has_no_wrong_result()?;
        ensure!(self.number("failed")? == 0, "failed: {}", self.report["failures"]);
        ensure!(self.code == 0 || self.code == 130, "code {}: {}", self.code, self.report);
        ensure!(self.report["stopped"] != "failures", "{}", self.report);
        Ok(())
    }
}
