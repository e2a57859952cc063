//! The second phase: the inputs are in place.

use std::path::PathBuf;
use std::time::Duration;

use longshore_cas_store::name::{PATH_LEN_MAX, RelPath};
use longshore_proto::error_details::Detail as _;

use super::command::{CheckedCommand, WORKING_DIRECTORY};
use super::journal::Journal;
use super::logs;
use super::outcome::to_wire;
use super::ran::{Ended, Ran};
use super::runner::Context;
use crate::materialize::InputRoot;
use crate::output::is_directory_below;
use crate::run::{RunOutcome, RunSpec, Usage, Verdict};
use crate::status::Failure;

/// The name of the file that stdout goes to, beside the input root.
pub(super) const STDOUT: &str = "stdout";
/// The name of the file that stderr goes to, beside the input root.
pub(super) const STDERR: &str = "stderr";

pub(super) struct Prepared<'a> {
    pub(super) context: Context<'a>,
    pub(super) command: CheckedCommand,
    pub(super) timeout: Option<Duration>,
    pub(super) root: InputRoot,
}

impl<'a> Prepared<'a> {
    /// Runs the command to its end, whatever that is.
    pub(super) async fn run(self, journal: &mut Journal) -> Result<Ran<'a>, Failure> {
        let Self { context, command, timeout, root } = self;
        let working_directory = working_directory(&root, &command.working_directory)
            .map_err(|reason| Failure::invalid(reason).within(WORKING_DIRECTORY))?;
        let spec = RunSpec {
            arguments: command.arguments,
            environment: command.environment,
            working_directory,
            stdout: root.create_log(STDOUT)?,
            stderr: root.create_log(STDERR)?,
            timeout,
        };
        journal.running();
        let (mut outcome, outgrown) = match timeout {
            Some(Duration::ZERO) => (expired_at_once(journal), None),
            _ => run_bounded(&context, &root, spec).await?,
        };
        if let (Verdict::Exited(_) | Verdict::Signaled(_), Some(timeout)) = (outcome.verdict, timeout) {
            // It was in time: what goes beyond is the time that it took to see its end.
            outcome.duration = outcome.duration.min(timeout);
        }
        tracing::debug!(verdict = ?outcome.verdict, duration = ?outcome.duration, usage = ?outcome.usage, "command ended");
        let ended = match outgrown {
            Some(log_bytes_max) => Ok(Ended::outgrown(log_bytes_max)),
            None => Ended::of(outcome.verdict, timeout),
        };
        let exit_code = ended.as_ref().ok().map(|ended| ended.exit_code);
        journal.ran(&outcome, exit_code, to_wire(&outcome, outgrown.is_some()).to_any());
        let ended = ended?;
        if let Some(note) = &ended.note {
            journal.note(note);
        }
        Ok(Ran { context, outputs: command.outputs, root, failure: ended.failure })
    }
}

/// The absolute path of the folder that the command starts in, or why it cannot.
fn working_directory(root: &InputRoot, path: &RelPath) -> Result<PathBuf, String> {
    if !is_directory_below(root.dir(), path) {
        return Err(format!("{path:?} is no directory inside the input root"));
    }
    let absolute = root.path().join(path.as_str());
    let len = absolute.as_os_str().len();
    if len > PATH_LEN_MAX {
        return Err(format!(
            "is too long: {len} bytes with the path of the input root, at most {PATH_LEN_MAX}"
        ));
    }
    Ok(absolute)
}

/// Runs the command until it ends or has written too much; the bound that it broke in that case.
async fn run_bounded(
    context: &Context<'_>,
    root: &InputRoot,
    spec: RunSpec,
) -> Result<(RunOutcome, Option<u64>), Failure> {
    let worker = context.worker;
    let Some(log_bytes_max) = worker.options.log_bytes_max else {
        return Ok((worker.runner.run(spec, context.cancelled.clone()).await?, None));
    };
    let stop = context.cancelled.child_token();
    let run = worker.runner.run(spec, stop.clone());
    tokio::pin!(run);
    tokio::select! {
        outcome = &mut run => return Ok((outcome?, None)),
        () = logs::outgrown(worker, root.folder(), log_bytes_max) => stop.cancel(),
    }
    // The end that it came to meanwhile, or somebody else's wish, goes before.
    let outcome = run.await?;
    let is_ours = outcome.verdict == Verdict::Cancelled && !context.cancelled.is_cancelled();
    Ok((outcome, is_ours.then_some(log_bytes_max)))
}

fn expired_at_once(journal: &Journal) -> RunOutcome {
    let now = journal.now();
    RunOutcome {
        verdict: Verdict::TimedOut,
        started: now,
        completed: now,
        duration: Duration::ZERO,
        usage: Usage::default(),
    }
}
