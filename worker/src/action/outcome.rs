//! How a command ended and what it used, as the message that longshore publishes.

use longshore_proto::command_outcome::{self, CommandOutcome};
use longshore_proto::time;

use crate::run::{RunOutcome, Verdict};

/// The message of an outcome; `outgrown` if the command was killed because it wrote too much.
pub(super) fn to_wire(outcome: &RunOutcome, outgrown: bool) -> CommandOutcome {
    use command_outcome::Verdict as Wire;
    let (verdict, exit_code, signal) = match outcome.verdict {
        _ if outgrown => (Wire::OutputLimit, 0, 0),
        Verdict::Exited(code) => (Wire::Exited, code, 0),
        Verdict::Signaled(signal) => (Wire::Signaled, 0, signal),
        Verdict::TimedOut => (Wire::TimedOut, 0, 0),
        Verdict::Cancelled => (Wire::Cancelled, 0, 0),
    };
    CommandOutcome {
        verdict: verdict.into(),
        exit_code,
        signal,
        user_time: Some(time::duration(outcome.usage.user_time)),
        system_time: Some(time::duration(outcome.usage.system_time)),
        resident_bytes_max: outcome.usage.resident_bytes_max,
    }
}
