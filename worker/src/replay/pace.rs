//! When each execution is to start.

use std::time::Duration;

/// What stands for every later start: nobody waits for either, whatever the times in a recording say.
const START_MAX: Duration = Duration::from_hours(100 * 365 * 24);

/// How executions follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// Each as soon as an earlier one has ended.
    Closed,
    /// As recorded, so many times as fast; each repetition begins when the recording would have begun its last action.
    Recorded { speed: f64 },
    /// So many a second.
    Rate { per_second: f64 },
}

impl Pace {
    /// When an execution starts, counted from the first; nothing where it is for the others to say.
    ///
    /// It is the `number`th of all, of an action that was recorded `start` after the first one of a recording whose last
    /// one started at `span`, in that `repetition`.
    pub(crate) fn start(
        self,
        number: u64,
        start: Duration,
        span: Duration,
        repetition: u32,
    ) -> Option<Duration> {
        #[expect(clippy::cast_precision_loss, reason = "a replay of 2^52 executions is never seen through")]
        match self {
            Self::Closed => None,
            Self::Recorded { speed } => {
                let start = span.saturating_mul(repetition).saturating_add(start);
                Some(bounded(start.as_secs_f64() / speed))
            }
            Self::Rate { per_second } => Some(bounded(number as f64 / per_second)),
        }
    }
}

/// So many seconds, and no more than can be added to the time of the day.
fn bounded(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(START_MAX).min(START_MAX)
}

/// Parses a factor or a rate.
pub(crate) fn parse_positive(text: &str) -> Result<f64, String> {
    let number = text.trim().parse().ok().filter(|number: &f64| (1e-6..=1e6).contains(number));
    number.ok_or_else(|| "expected a number above 0, and at most a million".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_those_of_the_recording_or_of_the_rate() {
        let [start, span] = [3, 10].map(Duration::from_secs);
        assert_eq!(Pace::Closed.start(7, start, span, 2), None);
        assert_eq!(Pace::Recorded { speed: 1.0 }.start(7, start, span, 0), Some(start));
        assert_eq!(Pace::Recorded { speed: 2.0 }.start(7, start, span, 1), Some(Duration::from_millis(6500)));
        assert_eq!(
            Pace::Rate { per_second: 2.0 }.start(7, start, span, 2),
            Some(Duration::from_millis(3500))
        );
    }

    // The times of a recording are what somebody wrote into it.
    #[test]
    fn no_start_is_too_late_to_be_told() {
        for speed in [1e-6, 1.0, 1e6] {
            let start = Pace::Recorded { speed }.start(0, Duration::MAX, Duration::MAX, u32::MAX);
            assert_eq!(start, Some(START_MAX), "{speed}");
        }
        assert_eq!(
            Pace::Rate { per_second: 1e-6 }.start(u64::MAX, Duration::ZERO, Duration::ZERO, 0),
            Some(START_MAX)
        );
        assert!(std::time::Instant::now().checked_add(START_MAX).is_some());
    }

    #[test]
    fn factors_are_positive() {
        assert_eq!(parse_positive("0.5"), Ok(0.5));
        for text in ["", "0", "-1", "NaN", "inf", "1e7", "1e-7", "fast"] {
            assert!(parse_positive(text).is_err(), "{text}");
        }
    }
}
