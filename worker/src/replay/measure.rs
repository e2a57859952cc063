//! How long things took: percentiles of each phase, in little memory however long a replay goes on.

use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use longshore_proto::{protobuf, reapi};
use serde::Serialize;

/// The longest time that is told from a longer one.
const MICROSECONDS_MAX: u64 = 7 * 24 * 3600 * 1_000_000;
/// Digits that are right.
const DIGITS: u8 = 3;

/// The phases of an execution. Those on the server are what it says of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Queue,
    Fetch,
    Execute,
    Upload,
    EndToEnd,
}

impl Phase {
    pub(crate) const ALL: [Self; 5] = [Self::Queue, Self::Fetch, Self::Execute, Self::Upload, Self::EndToEnd];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Fetch => "fetch",
            Self::Execute => "execute",
            Self::Upload => "upload",
            Self::EndToEnd => "end_to_end",
        }
    }
}

/// The times of many executions.
pub(crate) struct Times([Histogram<u64>; Phase::ALL.len()]);

impl Times {
    pub(crate) fn new() -> Self {
        let histogram =
            || Histogram::new_with_max(MICROSECONDS_MAX, DIGITS).expect("bounds that are in order");
        Self(Phase::ALL.map(|_| histogram()))
    }

    /// Takes in one execution.
    pub(crate) fn add(&mut self, end_to_end: Duration, metadata: Option<&reapi::ExecutedActionMetadata>) {
        self.record(Phase::EndToEnd, end_to_end);
        let Some(metadata) = metadata else { return };
        let spans = [
            (Phase::Queue, &metadata.queued_timestamp, &metadata.worker_start_timestamp),
            (Phase::Fetch, &metadata.input_fetch_start_timestamp, &metadata.input_fetch_completed_timestamp),
            (Phase::Execute, &metadata.execution_start_timestamp, &metadata.execution_completed_timestamp),
            (
                Phase::Upload,
                &metadata.output_upload_start_timestamp,
                &metadata.output_upload_completed_timestamp,
            ),
        ];
        for (phase, start, end) in spans {
            if let (Some(start), Some(end)) = (time(start.as_ref()), time(end.as_ref())) {
                // A clock that was set back makes a phase as short as can be.
                self.record(phase, end.duration_since(start).unwrap_or_default());
            }
        }
    }

    fn record(&mut self, phase: Phase, took: Duration) {
        self.0[phase as usize].saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// The percentiles of a phase; nothing where the server says nothing of it.
    pub(crate) fn percentiles(&self, phase: Phase) -> Option<Percentiles> {
        let histogram = &self.0[phase as usize];
        if histogram.is_empty() {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "a week of microseconds is exact in an f64")]
        let ms = |microseconds: u64| microseconds as f64 / 1000.0;
        let at = |percentile| ms(histogram.value_at_percentile(percentile));
        Some(Percentiles {
            count: histogram.len(),
            mean: histogram.mean() / 1000.0,
            p50: at(50.0),
            p90: at(90.0),
            p99: at(99.0),
            p999: at(99.9),
            max: ms(histogram.max()),
        })
    }
}

/// Percentiles, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) count: u64,
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

fn time(wire: Option<&protobuf::Timestamp>) -> Option<SystemTime> {
    let wire = wire?;
    let seconds = u64::try_from(wire.seconds).ok()?;
    let nanos = u32::try_from(wire.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: i64) -> protobuf::Timestamp {
        let nanos = i32::try_from(milliseconds % 1000 * 1_000_000).unwrap();
        protobuf::Timestamp { seconds: milliseconds / 1000, nanos }
    }

    #[test]
    fn phases_are_what_the_server_says() {
        let mut times = Times::new();
        let metadata = reapi::ExecutedActionMetadata {
            queued_timestamp: Some(at(1000)),
            worker_start_timestamp: Some(at(1250)),
            execution_start_timestamp: Some(at(2000)),
            execution_completed_timestamp: Some(at(1000)),
            output_upload_start_timestamp: Some(at(1000)),
            ..Default::default()
        };
        times.add(Duration::from_millis(500), Some(&metadata));
        times.add(Duration::from_millis(100), None);
        let is_near = |found: f64, expected: f64| (found - expected).abs() <= expected / 500.0;
        let queue = times.percentiles(Phase::Queue).unwrap();
        assert!(queue.count == 1 && is_near(queue.p50, 250.0), "{queue:?}");
        let end_to_end = times.percentiles(Phase::EndToEnd).unwrap();
        assert!(end_to_end.count == 2 && is_near(end_to_end.p50, 100.0) && is_near(end_to_end.max, 500.0));
        assert!(times.percentiles(Phase::Execute).unwrap().max < 0.1, "a clock that was set back");
        assert_eq!(times.percentiles(Phase::Upload), None);
        assert_eq!(times.percentiles(Phase::Fetch), None);
    }
}
