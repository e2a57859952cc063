//! Medians and ratios, as text.

use std::time::Duration;

use crate::milliseconds;

/// Samples by contender, the first of which is compared with the others.
pub(crate) struct Table {
    title: String,
    rows: Vec<(&'static str, Vec<Duration>)>,
    goals: Vec<(&'static str, f64)>,
}

impl Table {
    pub(crate) fn new(title: String) -> Self {
        Self { title, rows: Vec::new(), goals: Vec::new() }
    }

    pub(crate) fn add(&mut self, name: &'static str, took: Duration) {
        match self.rows.iter_mut().find(|(other, _)| *other == name) {
            Some((_, samples)) => samples.push(took),
            None => self.rows.push((name, vec![took])),
        }
    }

    /// Says what the first contender may take at most, as a ratio to `name`.
    pub(crate) fn goal(&mut self, name: &'static str, ratio_max: f64) {
        self.goals.push((name, ratio_max));
    }

    pub(crate) fn print(&self) {
        println!("\n{}", self.title);
        println!("{:44} {:>10} {:>10} {:>10}   ratio to it", "", "median ms", "min ms", "max ms");
        for (name, samples) in &self.rows {
            let min = samples.iter().min().copied().map_or(0.0, milliseconds);
            let max = samples.iter().max().copied().map_or(0.0, milliseconds);
            print!("{name:44} {:10.2} {min:10.2} {max:10.2}", milliseconds(median(samples)));
            let ratio = self.ratio(name);
            match self.goals.iter().find(|(other, _)| other == name) {
                Some(goal) => {
                    let verdict = if self.meets(goal) { "met" } else { "MISSED" };
                    println!("   {ratio:.2} (goal {:.2}: {verdict})", goal.1);
                }
                None => println!("   {ratio:.2}"),
            }
        }
    }

    /// The goals that are not reached.
    pub(crate) fn missed(&self) -> Vec<String> {
        let missed = self.goals.iter().filter(|goal| !self.meets(goal));
        missed.map(|(name, _)| format!("{} against {name}", self.title)).collect()
    }

    fn meets(&self, (name, ratio_max): &(&str, f64)) -> bool {
        self.ratio(name) <= *ratio_max
    }

    /// What the first contender takes, as a ratio of what `name` takes: of their medians.
    fn ratio(&self, name: &str) -> f64 {
        let median_of = |row: Option<&(&str, Vec<Duration>)>| {
            row.map_or(f64::NAN, |(_, samples)| milliseconds(median(samples)))
        };
        median_of(self.rows.first()) / median_of(self.rows.iter().find(|(other, _)| *other == name))
    }
}

fn median(samples: &[Duration]) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + sorted[middle]) / 2 } else { sorted[middle] }
}
