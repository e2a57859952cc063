//! How long to wait before the next attempt.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// Values that noise can take.
const NOISE_STEPS: u32 = 1024;
/// Doublings after which the bound has been reached in any case.
const DOUBLINGS_MAX: u32 = 16;

/// Pauses that double with each failure in a row, up to a bound; each is between half and all of what it doubles to,
/// so that many who failed at once do not march in step.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Begins at `first`, and never waits longer than `max`.
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, failures: 0 }
    }

    /// Something failed: how long to wait before the next attempt.
    pub fn failed(&mut self) -> Duration {
        let bound = self.first.saturating_mul(1 << self.failures.min(DOUBLINGS_MAX)).min(self.max);
        let noise = RandomState::new().hash_one(self.failures) % u64::from(NOISE_STEPS);
        self.failures = self.failures.saturating_add(1);
        let noise = u32::try_from(noise).expect("below the steps");
        bound / 2 + bound / 2 * noise / NOISE_STEPS
    }

    /// Something succeeded: the next failure is the first one again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A server that comes back is not met by everybody at once, and one that stays away is not asked without end.
    #[test]
    fn pauses_double_up_to_their_bound_and_begin_anew() {
        let (first, max) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(first, max);
        for failures in 0..100_u32 {
            let bound = first.saturating_mul(1 << failures.min(20)).min(max);
            let pause = backoff.failed();
            assert!((bound / 2..=bound).contains(&pause), "{failures}: {pause:?} of {bound:?}");
        }
        backoff.succeeded();
        assert!(backoff.failed() <= first);
    }

    #[test]
    fn pauses_are_not_all_the_same() {
        let pauses: std::collections::HashSet<_> =
            (0..100).map(|_| Backoff::new(Duration::from_secs(1), Duration::from_secs(1)).failed()).collect();
        assert!(pauses.len() > 1, "{pauses:?}");
    }
}
