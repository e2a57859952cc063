//! Times and durations of the standard library as protobuf's messages.

use std::time::{Duration, SystemTime};

use crate::{protobuf, reapi};

/// The longest span that a `google.protobuf.Duration` may say, in seconds: about 10,000 years.
const DURATION_SECONDS_MAX: u64 = 315_576_000_000;

/// The message of a time of day; times beyond what the message holds are cut to its range.
pub fn timestamp(time: SystemTime) -> protobuf::Timestamp {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => protobuf::Timestamp { seconds: whole_seconds(after), nanos: nanos(after) },
        Err(error) => {
            let before = error.duration();
            // Nanoseconds count forward in time, before 1970 too.
            let (borrow, nanos) = match nanos(before) {
                0 => (0, 0),
                nanos => (1, 1_000_000_000 - nanos),
            };
            protobuf::Timestamp { seconds: -whole_seconds(before) - borrow, nanos }
        }
    }
}

/// The time of day that a message says; nothing if its fields are out of range.
pub fn from_timestamp(wire: &protobuf::Timestamp) -> Option<SystemTime> {
    let nanos = u64::try_from(wire.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    let seconds = Duration::from_secs(wire.seconds.unsigned_abs());
    let whole = match wire.seconds {
        0.. => SystemTime::UNIX_EPOCH.checked_add(seconds),
        _ => SystemTime::UNIX_EPOCH.checked_sub(seconds),
    };
    whole?.checked_add(Duration::from_nanos(nanos))
}

/// The message of a span of time.
pub fn duration(duration: Duration) -> protobuf::Duration {
    protobuf::Duration { seconds: whole_seconds(duration), nanos: nanos(duration) }
}

/// The span of time that a message says; nothing if it is negative or its fields are out of range.
pub fn from_duration(wire: &protobuf::Duration) -> Option<Duration> {
    let nanos = u32::try_from(wire.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    let seconds = u64::try_from(wire.seconds).ok().filter(|seconds| *seconds <= DURATION_SECONDS_MAX)?;
    Some(Duration::new(seconds, nanos))
}

fn whole_seconds(duration: Duration) -> i64 {
    // One less than the largest, so that a borrowed second still fits.
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX - 1)
}

fn nanos(duration: Duration) -> i32 {
    i32::try_from(duration.subsec_nanos()).expect("below a billion")
}

/// The times of an action's phases, by the names of their fields, in the order of its life.
pub fn of_phases(
    metadata: &reapi::ExecutedActionMetadata,
) -> [(&'static str, Option<&protobuf::Timestamp>); 9] {
    [
        ("queued_timestamp", metadata.queued_timestamp.as_ref()),
        ("worker_start_timestamp", metadata.worker_start_timestamp.as_ref()),
        ("input_fetch_start_timestamp", metadata.input_fetch_start_timestamp.as_ref()),
        ("input_fetch_completed_timestamp", metadata.input_fetch_completed_timestamp.as_ref()),
        ("execution_start_timestamp", metadata.execution_start_timestamp.as_ref()),
        ("execution_completed_timestamp", metadata.execution_completed_timestamp.as_ref()),
        ("output_upload_start_timestamp", metadata.output_upload_start_timestamp.as_ref()),
        ("output_upload_completed_timestamp", metadata.output_upload_completed_timestamp.as_ref()),
        ("worker_completed_timestamp", metadata.worker_completed_timestamp.as_ref()),
    ]
}

/// The same, to be changed.
pub fn of_phases_mut(metadata: &mut reapi::ExecutedActionMetadata) -> [&mut Option<protobuf::Timestamp>; 9] {
    [
        &mut metadata.queued_timestamp,
        &mut metadata.worker_start_timestamp,
        &mut metadata.input_fetch_start_timestamp,
        &mut metadata.input_fetch_completed_timestamp,
        &mut metadata.execution_start_timestamp,
        &mut metadata.execution_completed_timestamp,
        &mut metadata.output_upload_start_timestamp,
        &mut metadata.output_upload_completed_timestamp,
        &mut metadata.worker_completed_timestamp,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_count_forward_on_both_sides_of_1970() {
        let cases = [
            (SystemTime::UNIX_EPOCH, 0, 0),
            (SystemTime::UNIX_EPOCH + Duration::new(5, 7), 5, 7),
            (SystemTime::UNIX_EPOCH - Duration::new(5, 0), -5, 0),
            (SystemTime::UNIX_EPOCH - Duration::new(5, 1), -6, 999_999_999),
        ];
        for (time, seconds, nanos) in cases {
            let wire = protobuf::Timestamp { seconds, nanos };
            assert_eq!(timestamp(time), wire, "{time:?}");
            assert_eq!(from_timestamp(&wire), Some(time));
        }
        for (seconds, nanos) in [(0, -1), (0, 1_000_000_000), (i64::MAX, 1_000_000_000)] {
            assert_eq!(
                from_timestamp(&protobuf::Timestamp { seconds, nanos }),
                None,
                "{seconds} s {nanos} ns"
            );
        }
    }

    #[test]
    fn spans_that_are_no_duration_are_refused() {
        for (seconds, nanos) in [(-1, 0), (0, -1), (1, -1), (0, 1_000_000_000), (-1, 5), (315_576_000_001, 0)]
        {
            assert_eq!(from_duration(&protobuf::Duration { seconds, nanos }), None, "{seconds} s {nanos} ns");
        }
        let span = Duration::new(90, 5);
        assert_eq!(from_duration(&duration(span)), Some(span));
    }
}
