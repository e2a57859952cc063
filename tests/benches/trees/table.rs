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
        let ours = self.rows.first().map_or(0.0, |(_, samples)| milliseconds(median(samples)));
        for (name, samples) in &self.rows {
            let median = milliseconds(median(samples));
            let min = samples.iter().min().copied().map_or(0.0, milliseconds);
            let max = samples.iter().max().copied().map_or(0.0, milliseconds);
            print!("{name:44} {median:10.2} {min:10.2} {max:10.2}");
            if let Some((_, ratio_max)) = self.goals.iter().find(|(other, _)| other == name) {
                let ratio = ours / median;
                let verdict = if ratio <= *ratio_max { "met" } else { "MISSED" };
                print!("   {ratio:.2} (goal {ratio_max:.2}: {verdict})");
            }
            println!();
        }
    }
}

fn median(samples: &[Duration]) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + sorted[middle]) / 2 } else { sorted[middle] }
}
