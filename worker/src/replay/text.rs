//! The report for people.

use std::fmt::{self, Write as _};

use super::measure::{Percentiles, Phase};
use super::on_one_line;
use super::report::{Difference, FailureLine, Note, Report};
use super::tally::Stop;

/// Lines of each kind that a person is shown; the JSON form has all.
const LINES_MAX: usize = 20;
/// Paths of one action that a person is shown.
const PATHS_MAX: usize = 8;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { actions, repeat, jobs, server, .. } = self;
        let times = if *repeat == 1 { "once".to_owned() } else { format!("{repeat} times") };
        writeln!(f, "{actions} actions, {times}, {jobs} at once, on {server}")?;
        writeln!(f, "  uploaded      {} blobs, {} bytes", self.uploaded_blobs, self.uploaded_bytes)?;
        self.executed(f)?;
        if self.late_ms_max > 0.0 {
            writeln!(f, "  late          {:.1} ms at most", self.late_ms_max)?;
        }
        if !self.statuses.is_empty() {
            let statuses = self.statuses.iter().map(|(name, count)| format!("{count} {name}"));
            writeln!(f, "  statuses      {}", statuses.collect::<Vec<_>>().join(", "))?;
        }
        writeln!(f, "  equal         {} actions", self.equal)?;
        if self.partly_failed > 0 {
            writeln!(f, "  partly failed {} actions are equal where they have results", self.partly_failed)?;
        }
        if self.unrecorded > 0 {
            writeln!(f, "  unrecorded    {} actions are compared with themselves alone", self.unrecorded)?;
        }
        self.times(f)?;
        lines(f, "problems of the recording", &self.problems, Clone::clone)?;
        let reason = |line: &Note| format!("{}: {}", named(&line.name, &line.action), line.reason);
        lines(f, "left out", &self.left_out, reason)?;
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
        lines(f, "judged by the digests of folders that were not looked into", &self.unread, reason)?;
        Ok(())
    }
}

impl Report {
    /// How much was executed, and why not more.
    fn executed(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { executions, planned, seconds, actions_per_second, .. } = self;
        let of = if executions == planned { String::new() } else { format!(" of {planned}") };
        writeln!(f, "  executed      {executions}{of} in {seconds:.1} s: {actions_per_second:.1} a second")?;
        if self.skipped > 0 {
            writeln!(f, "  skipped       the first {}", self.skipped)?;
        }
        if let (Some(stopped), Some(next)) = (self.stopped, self.next) {
            let why = match stopped {
                Stop::Time => "the time was up",
                Stop::Interrupted => "interrupted",
                Stop::Failures => "too many executions in a row failed",
            };
            writeln!(f, "  stopped       {why}; --skip {next} goes on from here")?;
        }
        if self.retries + self.rejoined + self.begun_anew > 0 {
            let Self { retries, rejoined, begun_anew, .. } = self;
            writeln!(
                f,
                "  repeated      {retries} calls; {rejoined} executions rejoined, {begun_anew} begun anew"
            )?;
        }
        Ok(())
    }

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
        writeln!(f, "  {}", on_one_line(&line(entry)))?;
    }
    if all.len() > LINES_MAX {
        writeln!(f, "  and {} more", all.len() - LINES_MAX)?;
    }
    Ok(())
}
