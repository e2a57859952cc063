//! What a replay found. Other programs read it as JSON, whose fields `docs/replay.md` describes; [`super::text`] is for people.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Serialize;

use super::again::ReplayArgs;
use super::digests;
use super::drive::Plan;
use super::measure::{Percentiles, Phase};
use super::prepare::Prepared;
use super::recording::{RecordedAction, Recording};
use super::tally::{Stop, Tally};
use super::verdict::Verdict;
use crate::remote::RemoteStats;

/// What was asked for, when, and what the client had to do for it.
pub(crate) struct Run<'r> {
    pub(crate) args: &'r ReplayArgs,
    pub(crate) began: SystemTime,
    pub(crate) remote: RemoteStats,
    /// By index into the recording: folders that were not looked into, and why.
    pub(crate) unread: &'r [(usize, String)],
}

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Of longshore.
    pub(crate) version: &'static str,
    pub(crate) recording: String,
    pub(crate) server: String,
    /// Seconds since 1970.
    pub(crate) began_s: u64,
    /// Actions of the recording.
    pub(crate) actions: usize,
    pub(crate) repeat: u32,
    pub(crate) jobs: usize,
    pub(crate) rate: Option<f64>,
    pub(crate) speed: Option<f64>,
    /// After that many seconds no execution was begun any more.
    pub(crate) for_s: Option<u64>,
    /// Executions that were left out, from the first on.
    pub(crate) skipped: u64,
    /// Executions that there were to be beside those.
    pub(crate) planned: u64,
    /// Why there were fewer.
    pub(crate) stopped: Option<Stop>,
    /// The first execution that did not end, where there is one.
    pub(crate) next: Option<u64>,
    /// What is wrong with the recording.
    pub(crate) problems: Vec<String>,
    /// Actions that were not executed.
    pub(crate) left_out: Vec<Note>,
    /// Whether it is the server that lacks what these need.
    #[serde(skip)]
    has_no_blobs: bool,
    pub(crate) uploaded_blobs: u64,
    pub(crate) uploaded_bytes: u64,
    pub(crate) executions: u64,
    pub(crate) failed: u64,
    /// Calls that were made again.
    pub(crate) retries: u64,
    /// Executions that went on, by `WaitExecution`, after their stream had broken off.
    pub(crate) rejoined: u64,
    /// Executions that were begun anew, since the server had forgotten them.
    pub(crate) begun_anew: u64,
    pub(crate) seconds: f64,
    pub(crate) actions_per_second: f64,
    pub(crate) late_ms_max: f64,
    /// Milliseconds, by phase.
    pub(crate) times_ms: BTreeMap<&'static str, Percentiles>,
    pub(crate) statuses: BTreeMap<String, u64>,
    pub(crate) failures: Vec<FailureLine>,
    /// Actions whose every execution gave what was recorded, or, where nothing was recorded, the same.
    pub(crate) equal: usize,
    /// Actions that are not in the recording with a result.
    pub(crate) unrecorded: usize,
    pub(crate) different: Vec<Difference>,
    pub(crate) nondeterministic: Vec<Difference>,
    /// Of these two, those that are judged by the digests of folders which were not looked into.
    pub(crate) unread: Vec<Note>,
    /// Actions whose results are equal, and of which executions failed.
    pub(crate) partly_failed: usize,
    /// Actions that have no result, since they failed or were not executed.
    pub(crate) without_result: usize,
}

/// An action, and why something was not done with it.
#[derive(Debug, Serialize)]
pub(crate) struct Note {
    pub(crate) action: String,
    pub(crate) name: String,
    pub(crate) reason: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct FailureLine {
    pub(crate) reason: String,
    pub(crate) executions: u64,
    /// The first action that it happened to.
    pub(crate) action: String,
    pub(crate) name: String,
}

/// An action, and the paths at which it differs.
#[derive(Debug, Serialize)]
pub(crate) struct Difference {
    pub(crate) action: String,
    pub(crate) name: String,
    pub(crate) paths: Vec<String>,
}

impl Difference {
    fn new(action: &RecordedAction, paths: impl IntoIterator<Item = String>) -> Self {
        let (digest, name) = identify(action);
        Self { action: digest, name, paths: paths.into_iter().collect() }
    }
}

impl Note {
    fn new(action: &RecordedAction, reason: String) -> Self {
        let (action, name) = identify(action);
        Self { action, name, reason }
    }
}

fn identify(action: &RecordedAction) -> (String, String) {
    (digests::format(&action.digest), action.name.clone())
}

impl Report {
    pub(crate) fn of(
        run: &Run<'_>,
        recording: &Recording,
        prepared: &Prepared,
        plan: Plan,
        tally: Tally,
    ) -> Self {
        let uploaded = prepared.uploaded();
        let reasons = |reasons: &[(usize, String)]| {
            let reason =
                |(index, reason): &(usize, String)| Note::new(&recording.actions[*index], reason.clone());
            reasons.iter().map(reason).collect()
        };
        let failures = tally.failures.iter().map(|(reason, (executions, index))| {
            let (action, name) = identify(&recording.actions[*index]);
            FailureLine { reason: reason.clone(), executions: *executions, action, name }
        });
        let seconds = tally.elapsed.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a replay of 2^52 executions is never seen through")]
        let actions_per_second = if seconds > 0.0 { tally.executions as f64 / seconds } else { 0.0 };
        let phases = Phase::ALL.into_iter();
        let times = phases.filter_map(|phase| Some((phase.name(), tally.times.percentiles(phase)?)));
        let mut report = Self {
            version: env!("CARGO_PKG_VERSION"),
            recording: run.args.recording.display().to_string(),
            server: run.args.server.server.uri.clone(),
            began_s: run.began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
            actions: recording.actions.len(),
            repeat: plan.repeat,
            jobs: plan.jobs,
            rate: run.args.rate,
            speed: run.args.speed,
            for_s: plan.time_max.map(|time_max| time_max.as_secs()),
            skipped: plan.skip,
            planned: plan.executions(prepared.ready.len()),
            stopped: tally.stop,
            next: tally.stop.map(|_| tally.next),
            problems: recording.problems.clone(),
            left_out: reasons(&prepared.left_out),
            has_no_blobs: recording.blobs.is_elsewhere(),
            uploaded_blobs: uploaded.blobs,
            uploaded_bytes: uploaded.bytes,
            executions: tally.executions,
            failed: tally.failed,
            retries: run.remote.retries,
            rejoined: run.remote.rejoined_executions,
            begun_anew: run.remote.begun_anew_executions,
            seconds,
            actions_per_second,
            late_ms_max: tally.late_max.as_secs_f64() * 1000.0,
            times_ms: times.collect(),
            failures: failures.collect(),
            statuses: tally.statuses,
            equal: 0,
            unrecorded: recording.actions.iter().filter(|action| action.outcome.is_none()).count(),
            different: Vec::new(),
            nondeterministic: Vec::new(),
            unread: reasons(run.unread),
            partly_failed: 0,
            without_result: 0,
        };
        for (action, seen) in recording.actions.iter().zip(&tally.seen) {
            let findings = seen.findings(action.outcome.as_ref());
            if seen.is_empty() {
                report.without_result += 1;
                continue;
            }
            if findings.unstable.is_empty() && findings.changed.is_empty() {
                let count = if seen.has_failed { &mut report.partly_failed } else { &mut report.equal };
                *count += 1;
            }
            if !findings.unstable.is_empty() {
                report.nondeterministic.push(Difference::new(action, findings.unstable));
            }
            if !findings.changed.is_empty() {
                report.different.push(Difference::new(action, findings.changed));
            }
        }
        report
    }

    /// The worst that was found.
    pub(crate) fn verdict(&self) -> Verdict {
        if self.stopped == Some(Stop::Interrupted) {
            Verdict::Interrupted
        } else if self.failed > 0 || (self.has_no_blobs && !self.left_out.is_empty()) {
            Verdict::Errors
        } else if !self.different.is_empty() {
            Verdict::Differences
        } else if !self.problems.is_empty() || !self.left_out.is_empty() {
            Verdict::BadInput
        } else if !self.nondeterministic.is_empty() {
            Verdict::Nondeterministic
        } else {
            Verdict::Equal
        }
    }
}
