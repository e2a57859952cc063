//! What a replay found, for people and for other programs. `docs/replay.md` describes the fields of the JSON form.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::Serialize;

use super::digests;
use super::measure::{Percentiles, Phase};
use super::prepare::Prepared;
use super::recording::{RecordedAction, Recording};
use super::tally::Tally;
use super::verdict::Verdict;

/// Lines of each kind that a person is shown; the JSON form has all.
const LINES_MAX: usize = 20;
/// Paths of one action that a person is shown.
const PATHS_MAX: usize = 8;

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) server: String,
    /// Actions of the recording.
    pub(crate) actions: usize,
    pub(crate) repeat: u32,
    pub(crate) jobs: usize,
    /// What is wrong with the recording.
    pub(crate) problems: Vec<String>,
    /// Actions that were not executed.
    pub(crate) left_out: Vec<LeftOut>,
    pub(crate) uploaded_blobs: u64,
    pub(crate) uploaded_bytes: u64,
    pub(crate) executions: u64,
    pub(crate) failed: u64,
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
    /// Why the rest was not executed.
    pub(crate) given_up: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct LeftOut {
    action: String,
    name: String,
    reason: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct FailureLine {
    reason: String,
    executions: u64,
    /// The first action that it happened to.
    action: String,
    name: String,
}

/// An action, and the paths at which it differs.
#[derive(Debug, Serialize)]
pub(crate) struct Difference {
    action: String,
    name: String,
    paths: Vec<String>,
}

impl Difference {
    fn new(action: &RecordedAction, paths: impl IntoIterator<Item = String>) -> Self {
        let (digest, name) = identify(action);
        Self { action: digest, name, paths: paths.into_iter().collect() }
    }
}

fn identify(action: &RecordedAction) -> (String, String) {
    (digests::format(&action.digest), action.name.clone())
}

impl Report {
    pub(crate) fn of(
        server: &str,
        recording: &Recording,
        prepared: &Prepared,
        plan: super::drive::Plan,
        tally: Tally,
    ) -> Self {
        let uploaded = prepared.uploaded();
        let left_out = prepared.left_out.iter().map(|(index, reason)| {
            let (action, name) = identify(&recording.actions[*index]);
            LeftOut { action, name, reason: reason.clone() }
        });
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
            server: server.to_owned(),
            actions: recording.actions.len(),
            repeat: plan.repeat,
            jobs: plan.jobs,
            problems: recording.problems.clone(),
            left_out: left_out.collect(),
            uploaded_blobs: uploaded.blobs,
            uploaded_bytes: uploaded.bytes,
            executions: tally.executions,
            failed: tally.failed,
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
            given_up: tally.given_up,
        };
        for (action, seen) in recording.actions.iter().zip(&tally.seen) {
            let findings = seen.findings(action.outcome.as_ref());
            if seen.is_empty() {
                continue;
            }
            if findings.unstable.is_empty() && findings.changed.is_empty() {
                report.equal += 1;
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
        if self.failed > 0 || self.given_up.is_some() {
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

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { actions, repeat, jobs, server, .. } = self;
        writeln!(f, "{actions} actions, {repeat} times, {jobs} at once, on {server}")?;
        writeln!(f, "  uploaded      {} blobs, {} bytes", self.uploaded_blobs, self.uploaded_bytes)?;
        writeln!(
            f,
            "  executed      {} in {:.1} s: {:.1} a second",
            self.executions, self.seconds, self.actions_per_second
        )?;
        if self.late_ms_max > 0.0 {
            writeln!(f, "  late          {:.1} ms at most", self.late_ms_max)?;
        }
        let statuses: Vec<_> = self.statuses.iter().map(|(name, count)| format!("{count} {name}")).collect();
        writeln!(f, "  statuses      {}", statuses.join(", "))?;
        writeln!(f, "  equal         {} actions", self.equal)?;
        if self.unrecorded > 0 {
            writeln!(f, "  unrecorded    {} actions are compared with themselves alone", self.unrecorded)?;
        }
        self.times(f)?;
        lines(f, "problems of the recording", &self.problems, Clone::clone)?;
        lines(f, "left out", &self.left_out, |line| {
            format!("{}: {}", named(&line.name, &line.action), line.reason)
        })?;
        lines(f, "failed", &self.failures, |line| {
            let FailureLine { reason, executions, action, name } = line;
            format!("{executions} times, first {}: {reason}", named(name, action))
        })?;
        let difference = |line: &Difference| {
            let mut text = format!("{}:", named(&line.name, &line.action));
            for path in line.paths.iter().take(PATHS_MAX) {
                let _ = write!(text, " {path}");
            }
            if line.paths.len() > PATHS_MAX {
                let _ = write!(text, " and {} more", line.paths.len() - PATHS_MAX);
            }
            text
        };
        lines(f, "not as recorded", &self.different, difference)?;
        lines(f, "not deterministic", &self.nondeterministic, difference)?;
        if let Some(reason) = &self.given_up {
            writeln!(f, "  given up      {reason}")?;
        }
        Ok(())
    }
}

impl Report {
    fn times(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.times_ms.is_empty() {
            return Ok(());
        }
        writeln!(f, "  ms               mean       p50       p90       p99     p99.9       max")?;
        for phase in Phase::ALL {
            if let Some(times) = self.times_ms.get(phase.name()) {
                let Percentiles { mean, p50, p90, p99, p999, max, .. } = times;
                let name = phase.name().replace('_', " ");
                writeln!(
                    f,
                    "  {name:<10} {mean:>9.1} {p50:>9.1} {p90:>9.1} {p99:>9.1} {p999:>9.1} {max:>9.1}"
                )?;
            }
        }
        Ok(())
    }
}

fn named(name: &str, action: &str) -> String {
    if name.is_empty() { action.to_owned() } else { format!("{name} ({action})") }
}

fn lines<T>(f: &mut fmt::Formatter<'_>, title: &str, all: &[T], line: impl Fn(&T) -> String) -> fmt::Result {
    if all.is_empty() {
        return Ok(());
    }
    writeln!(f, "{}: {title}", all.len())?;
    for entry in all.iter().take(LINES_MAX) {
        writeln!(f, "  {}", line(entry))?;
    }
    if all.len() > LINES_MAX {
        writeln!(f, "  and {} more", all.len() - LINES_MAX)?;
    }
    Ok(())
}
