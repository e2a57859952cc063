//! The middle and the slow end of what was measured.

use std::fmt;
use std::time::Duration;

/// Two durations of many; printed in milliseconds.
pub(crate) struct Quantiles {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

impl Quantiles {
    pub(crate) fn of(durations: impl Iterator<Item = Duration>) -> Self {
        let mut sorted: Vec<_> = durations.collect();
        sorted.sort();
        Self { p50: sorted[sorted.len() / 2], p99: sorted[sorted.len() * 99 / 100] }
    }
}

impl fmt::Display for Quantiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        write!(f, "{:>7.2} ms {:>7.2}", ms(self.p50), ms(self.p99))
    }
}
