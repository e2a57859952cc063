//! What a part of the suite saw, as a line of JSON, and what many such lines say together.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use super::holdings::{Holdings, Slack};
use super::replaying::Replayed;

/// Figures with this ending are not added up: the largest is kept.
const MOST: &str = "_most";

/// How long a part goes on: so many rounds, or until its time is up; one round in any case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) count: u32,
    pub(crate) until: Option<Instant>,
}

impl Bounds {
    /// The rounds, by number.
    pub(crate) fn rounds(self) -> impl Iterator<Item = u32> {
        let is_time = move || self.until.is_none_or(|until| Instant::now() < until);
        (0..self.count).take_while(move |round| *round == 0 || is_time())
    }
}

/// What one part saw so far.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    counts: Map<String, Value>,
    before: Option<Holdings>,
    after: Option<Holdings>,
}

impl Figures {
    /// Counts something.
    pub(crate) fn add(&mut self, name: &str, count: u64) {
        put(&mut self.counts, name, count);
    }

    /// Counts what a replay did.
    pub(crate) fn replayed(&mut self, replayed: &Replayed) -> Result<()> {
        for field in ["executions", "failed", "retries", "rejoined", "begun_anew"] {
            self.add(field, replayed.number(field)?);
        }
        for field in ["different", "nondeterministic"] {
            self.add("wrong_results", replayed.report[field].as_array().map_or(0, Vec::len) as u64);
        }
        Ok(())
    }

    /// Notes what a longshore held before and after, which must be the same but for `slack` and the executions that were
    /// counted.
    pub(crate) fn held_flat(&mut self, before: Holdings, after: Holdings, slack: Slack) -> Result<()> {
        self.held(before, after);
        let counted = self.counts.get("executions").and_then(Value::as_u64).unwrap_or_default();
        let executions = slack.executions.saturating_add(counted);
        after.are_flat_since(&before, Slack { executions, ..slack })
    }

    /// Notes what a longshore held before and after.
    pub(crate) fn held(&mut self, before: Holdings, after: Holdings) {
        println!("before  {before}\nafter   {after}");
        (self.before, self.after) = (Some(before), Some(after));
    }

    /// Appends the line of a part to a file.
    pub(crate) fn write(&self, path: &Path, part: &str, seconds: u64, error: Option<&str>) -> Result<()> {
        let held = |holdings: &Option<Holdings>| holdings.map(|holdings| holdings.figures());
        let line = json!({
            "part": part,
            "seconds": seconds,
            "error": error,
            "counts": self.counts,
            "before": held(&self.before),
            "after": held(&self.after),
        });
        let mut file = std::fs::File::options().append(true).create(true).open(path)?;
        writeln!(file, "{line}").with_context(|| path.display().to_string())
    }
}

fn put(counts: &mut Map<String, Value>, name: &str, count: u64) {
    let before = counts.get(name).and_then(Value::as_u64).unwrap_or_default();
    let now = if name.ends_with(MOST) { before.max(count) } else { before + count };
    counts.insert(name.to_owned(), now.into());
}

/// All runs of one part.
#[derive(Default)]
struct Runs {
    times: u64,
    seconds: u64,
    errors: Vec<String>,
    counts: Map<String, Value>,
    /// Of the first run before, of the last run after, and the most that any run has added.
    held: BTreeMap<String, (u64, u64, u64)>,
}

impl Runs {
    fn add(&mut self, line: &Value) {
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        self.times += 1;
        self.seconds += number(&line["seconds"]);
        self.errors.extend(line["error"].as_str().map(str::to_owned));
        for (name, count) in line["counts"].as_object().into_iter().flatten() {
            put(&mut self.counts, name, number(count));
        }
        for (name, after) in line["after"].as_object().into_iter().flatten() {
            let (before, after) = (number(&line["before"][name]), number(after));
            let held = self.held.entry(name.clone()).or_insert((before, after, 0));
            *held = (held.0, after, held.2.max(after.saturating_sub(before)));
        }
    }
}

/// What a file of lines says together: for people.
pub(crate) fn report(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut parts: BTreeMap<String, Runs> = BTreeMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).with_context(|| path.display().to_string())?;
        parts.entry(line["part"].as_str().context("a part")?.to_owned()).or_default().add(&line);
    }
    let mut report = String::new();
    let (mut seconds, mut errors, mut total) = (0, 0, Map::new());
    for (part, runs) in &parts {
        seconds += runs.seconds;
        errors += runs.errors.len();
        writeln!(report, "{part}: {} times, {} s, {} failed", runs.times, runs.seconds, runs.errors.len())?;
        for (name, count) in &runs.counts {
            writeln!(report, "  {:<24} {count:>12}", name.replace('_', " "))?;
            if !name.ends_with(MOST) {
                put(&mut total, name, count.as_u64().unwrap_or_default());
            }
        }
        for (name, (before, after, most)) in &runs.held {
            let name = name.replace('_', " ");
            writeln!(report, "  {name:<24} {before:>12} before, {after} after, {most} more at most")?;
        }
        for error in &runs.errors {
            writeln!(report, "  FAILED {error}")?;
        }
    }
    writeln!(report, "together: {seconds} s, {errors} failed")?;
    for (name, count) in &total {
        writeln!(report, "  {:<24} {count:>12}", name.replace('_', " "))?;
    }
    Ok(report)
}
