//! What comes of a replay while it goes on: counts, times, outcomes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use super::compare::Seen;
use super::drive::Ended;
use super::measure::Times;
use super::outcome::status_name;

/// Failures that are told apart.
const FAILURES_MAX: usize = 50;

/// Everything that was counted.
pub(crate) struct Tally {
    /// By index into the recording.
    pub(crate) seen: Vec<Seen>,
    pub(crate) times: Times,
    /// Executions by the name of their status.
    pub(crate) statuses: BTreeMap<String, u64>,
    /// Executions without a result, by what the server said: how many, and the first action among them.
    pub(crate) failures: BTreeMap<String, (u64, usize)>,
    pub(crate) executions: u64,
    pub(crate) failed: u64,
    pub(crate) late_max: Duration,
    pub(crate) elapsed: Duration,
    /// Why the rest was not executed; nothing where there is none.
    pub(crate) stop: Option<Stop>,
    /// The first execution that has not ended.
    pub(crate) next: u64,
    /// Those after it that have.
    ahead: BTreeSet<u64>,
    /// Failures since the last result.
    pub(crate) failures_in_a_row: u32,
    /// The first execution among them.
    failing_since: u64,
}

/// Why not everything was executed that was to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stop {
    /// The time was up.
    Time,
    /// A signal came.
    Interrupted,
    /// Too many executions in a row failed.
    Failures,
}

impl Tally {
    /// For so many actions, of whose executions the first ones are left out.
    pub(crate) fn new(actions: usize, skip: u64) -> Self {
        Self {
            seen: std::iter::repeat_with(Seen::default).take(actions).collect(),
            times: Times::new(),
            statuses: BTreeMap::new(),
            failures: BTreeMap::new(),
            executions: 0,
            failed: 0,
            late_max: Duration::ZERO,
            elapsed: Duration::ZERO,
            stop: None,
            next: skip,
            ahead: BTreeSet::new(),
            failures_in_a_row: 0,
            failing_since: u64::MAX,
        }
    }

    pub(crate) fn add(&mut self, ended: Ended) {
        self.executions += 1;
        self.ahead.insert(ended.number);
        while self.ahead.remove(&self.next) {
            self.next += 1;
        }
        self.late_max = self.late_max.max(ended.late);
        let code = match ended.outcome {
            Ok(outcome) => {
                (self.failures_in_a_row, self.failing_since) = (0, u64::MAX);
                self.times.add(ended.took, ended.metadata.as_ref());
                let status = outcome.status;
                self.seen[ended.index].add(outcome);
                status
            }
            Err(failure) => {
                self.failed += 1;
                self.failures_in_a_row += 1;
                self.failing_since = self.failing_since.min(ended.number);
                self.seen[ended.index].has_failed = true;
                let mut reason = status_name(failure.code);
                if !failure.reason.is_empty() {
                    reason = format!("{reason}: {}", failure.reason);
                }
                let is_known = self.failures.contains_key(&reason);
                let reason =
                    if is_known || self.failures.len() < FAILURES_MAX { reason } else { "others".to_owned() };
                self.failures.entry(reason).or_insert((0, ended.index)).0 += 1;
                failure.code
            }
        };
        *self.statuses.entry(status_name(code)).or_default() += 1;
    }

    /// Nothing more comes.
    pub(crate) fn stopped(&mut self, stop: Option<Stop>, elapsed: Duration) {
        (self.stop, self.elapsed) = (stop, elapsed);
        if stop == Some(Stop::Failures) {
            // What a server that fails everything was given is still to be done.
            self.next = self.next.min(self.failing_since);
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::super::drive::Failure;
    use super::super::outcome::Outcome;
    use super::*;

    fn ended(number: u64, is_fine: bool) -> Ended {
        let outcome = Outcome { status: Code::Ok, exit_code: 0, outputs: BTreeMap::new() };
        let failure = Failure { code: Code::Internal, reason: String::new() };
        Ended {
            number,
            index: 0,
            outcome: if is_fine { Ok(outcome) } else { Err(failure) },
            metadata: None,
            took: Duration::ZERO,
            late: Duration::ZERO,
        }
    }

    // What a server that fails everything was given is done later; what failed here and there has failed.
    #[test]
    fn after_too_many_failures_it_goes_on_at_the_first_of_them() {
        let after = |stop| {
            let mut tally = Tally::new(1, 10);
            for (number, is_fine) in
                [(10, false), (11, true), (14, true), (13, false), (12, false), (15, false)]
            {
                tally.add(ended(number, is_fine));
            }
            tally.stopped(stop, Duration::ZERO);
            (tally.failures_in_a_row, tally.next)
        };
        assert_eq!(after(Some(Stop::Failures)), (3, 12));
        assert_eq!(after(Some(Stop::Time)), (3, 16));
    }
}
