//! `longshore record` and `longshore replay`, the real binary against real servers.

mod bad_blobs;
mod comparing;
mod faults;
mod limits;
mod mistakes;
mod recording;

use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::Digest;
use longshore_proto::reapi;
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::grpc_log::GrpcLog;
use longshore_tests::longshore::{Longshore, run_to_end};
use longshore_tests::tree::InputTree;
use tempfile::TempDir;

/// Exit codes, as `docs/replay.md` has them.
const EQUAL: i32 = 0;
const BAD_INPUT: i32 = 2;
const DIFFERENCES: i32 = 3;
const ERRORS: i32 = 4;
const NONDETERMINISTIC: i32 = 5;
const INTERRUPTED: i32 = 130;

/// A place for logs, bundles and reports.
struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new() -> Result<Self> {
        Ok(Self { folder: tempfile::tempdir()? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path(name);
        std::fs::write(&path, content)?;
        Ok(path)
    }

    /// Records what `log` names from `server` into the bundle `name`.
    async fn record(&self, log: &Path, name: &str, server: &Longshore) -> Result<(i32, String)> {
        self.record_from(log, name, server.uri()).await
    }

    /// Records from the server of that address.
    async fn record_from(&self, log: &Path, name: &str, uri: &str) -> Result<(i32, String)> {
        let bundle = self.path(name);
        let arguments = ["record".as_ref(), log.as_os_str(), bundle.as_os_str(), "--server".as_ref()];
        ended(run_to_end(arguments.into_iter().chain([uri.as_ref()])).await?)
    }

    /// Replays something on a server.
    async fn replay(&self, recording: &Path, uri: &str, flags: &[&str]) -> Result<Replayed> {
        let json = self.path("report.json");
        let arguments = ["replay".as_ref(), recording.as_os_str(), "--json".as_ref(), json.as_os_str()];
        let flags = ["--server", uri].into_iter().chain(flags.iter().copied()).map(AsRef::as_ref);
        let (code, output) = ended(run_to_end(arguments.into_iter().chain(flags)).await?)?;
        let report = match std::fs::read(&json) {
            Ok(report) => Some(serde_json::from_slice(&report)?),
            Err(_) => None,
        };
        Ok(Replayed { code, output, report })
    }
}

fn ended((status, output): (ExitStatus, String)) -> Result<(i32, String)> {
    Ok((status.code().context("killed")?, output))
}

/// How a replay ended.
struct Replayed {
    code: i32,
    output: String,
    report: Option<serde_json::Value>,
}

impl Replayed {
    /// Checks the exit code, and returns the report.
    fn expect(&self, code: i32) -> Result<&serde_json::Value> {
        ensure!(self.code == code, "code {} instead of {code}: {}", self.code, self.output);
        self.report.as_ref().with_context(|| format!("no report: {}", self.output))
    }
}

/// An action of the tests with the response that a server gave.
type Ran = (Digest, reapi::ExecuteResponse);

/// Actions of every kind that always do the same, executed on a server.
async fn run_stable(client: &Client) -> Result<Vec<Ran>> {
    let shared = InputTree::new().file("lib/shared.txt", "shared").executable("lib/tool", "#!/bin/sh\ncat\n");
    let large = "x".repeat(5 << 20);
    let actions = [
        TestAction::shell("cat lib/shared.txt own.txt > out.txt; echo printed")
            .inputs(shared.clone().file("own.txt", "first"))
            .outputs(["out.txt"]),
        TestAction::shell("mkdir -p dir/sub; lib/tool < big > dir/sub/copy; ln -s sub/copy dir/link")
            .inputs(shared.file("big", large))
            .outputs(["dir"]),
        TestAction::shell("echo why >&2; exit 7"),
    ];
    run_all(client, &actions).await
}

async fn run_all(client: &Client, actions: &[TestAction]) -> Result<Vec<Ran>> {
    let mut ran = Vec::new();
    for action in actions {
        let response = client.run(action).await?;
        ran.push((action.build(client.function()).digest, response));
    }
    Ok(ran)
}

/// The log of such actions.
fn log_of(ran: &[Ran]) -> GrpcLog {
    let mut log = GrpcLog::default();
    for (action, response) in ran {
        log.execute(action, response);
    }
    log
}
