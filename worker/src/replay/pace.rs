//! When each execution is to start.

use std::time::Duration;

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
            Self::Recorded { speed } => Some((span * repetition + start).div_f64(speed)),
            Self::Rate { per_second } => Some(Duration::from_secs_f64(number as f64 / per_second)),
        }
    }
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

    #[test]
    fn factors_are_positive() {
        assert_eq!(parse_positive("0.5"), Ok(0.5));
        for text in ["", "0", "-1", "NaN", "inf", "1e7", "1e-7", "fast"] {
            assert!(parse_positive(text).is_err(), "{text}");
        }
    }
}
