//! The second phase: the inputs are in place.

use std::time::Duration;

use super::command::CheckedCommand;
use super::journal::Journal;
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
        if !is_directory_below(root.dir(), &command.working_directory) {
            let path = &command.working_directory;
            return Err(Failure::invalid(format!(
                "Command.working_directory: {path:?} is no directory inside the input root"
            )));
        }
        let spec = RunSpec {
            arguments: command.arguments,
            environment: command.environment,
            working_directory: root.path().join(command.working_directory.as_str()),
            stdout: root.create_log(STDOUT)?,
            stderr: root.create_log(STDERR)?,
            timeout,
        };
        journal.running();
        let outcome = match timeout {
            Some(Duration::ZERO) => expired_at_once(journal),
            _ => context.worker.runner.run(spec, context.cancelled.clone()).await?,
        };
        tracing::debug!(verdict = ?outcome.verdict, duration = ?outcome.duration, usage = ?outcome.usage, "command ended");
        let ended = Ended::of(outcome.verdict, timeout)?;
        journal.ran(&outcome, ended.exit_code);
        if let Some(note) = &ended.note {
            journal.note(note);
        }
        Ok(Ran { context, outputs: command.outputs, root, failure: ended.failure })
    }
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
