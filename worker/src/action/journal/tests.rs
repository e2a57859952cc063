use std::time::Duration;

use futures::future::BoxFuture;
use longshore_cas_store::digest::DigestFunction;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::run::{Usage, Verdict};

/// A clock that shows the listed seconds one after the other, then the last one for ever.
struct ScriptedClock(Mutex<Vec<u64>>);

impl ScriptedClock {
    fn new(seconds: &[u64]) -> Arc<Self> {
        Arc::new(Self(Mutex::new(seconds.iter().rev().copied().collect())))
    }
}

impl Clock for ScriptedClock {
    fn now(&self) -> SystemTime {
        let mut seconds = self.0.lock();
        let next = if seconds.len() > 1 { seconds.pop() } else { seconds.last().copied() };
        at(next.unwrap())
    }

    fn sleep(&self, _duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn assignment(queued: u64) -> (Assignment, watch::Receiver<Progress>) {
    let (progress, watcher) = watch::channel(Progress::default());
    let assignment = Assignment {
        operation: "operation".to_owned(),
        action_digest: DigestFunction::Sha256.digest(b""),
        action: None,
        inline: super::super::Inline::default(),
        queued: at(queued),
        requester: super::super::Requester::default(),
        progress,
        cancelled: CancellationToken::new(),
        is_orphan: Arc::default(),
    };
    (assignment, watcher)
}

fn outcome(started: u64, completed: u64) -> RunOutcome {
    RunOutcome {
        verdict: Verdict::Exited(0),
        started: at(started),
        completed: at(completed),
        duration: Duration::from_millis(1500),
        usage: Usage::default(),
    }
}

fn seconds(metadata: &reapi::ExecutedActionMetadata) -> [Option<i64>; 9] {
    time::of_phases(metadata).map(|(_, time)| time.map(|time| time.seconds))
}

fn whole_life(queued: u64, clock: &[u64], outcome: &RunOutcome) -> [i64; 9] {
    let (assignment, _watcher) = assignment(queued);
    let mut journal = Journal::open(&assignment, "w", ScriptedClock::new(clock));
    journal.fetching();
    journal.fetched();
    journal.running();
    journal.ran(outcome, Some(0), protobuf::Any::default());
    journal.uploading();
    journal.uploaded();
    let (metadata, _) = journal.close();
    assert_eq!(metadata.virtual_execution_duration, Some(time::duration(outcome.duration)));
    seconds(&metadata).map(|seconds| seconds.expect("every phase was reached"))
}

// MET-02: all nine in order.
#[test]
fn a_whole_life_has_every_time() {
    let times = whole_life(10, &[20, 21, 22, 25, 26, 27], &outcome(23, 24));
    assert_eq!(times, [10, 20, 21, 22, 23, 24, 25, 26, 27]);
}

// MET-03: clocks differ between machines and are set back.
#[test]
fn times_never_run_backwards() {
    let times = whole_life(100, &[20, 21, 15, 16, 17, 18], &outcome(19, 12));
    assert_eq!(times, [20, 20, 21, 21, 21, 21, 21, 21, 21]);
}

// MET-04: no time for what did not happen; MET-08: none of the future in a progress report.
#[test]
fn phases_that_were_not_reached_have_no_time() {
    let (assignment, watcher) = assignment(10);
    let mut journal = Journal::open(&assignment, "w", ScriptedClock::new(&[20, 21, 22]));
    journal.fetching();
    let progress = watcher.borrow().clone();
    assert_eq!(progress.phase, Phase::FetchingInputs);
    assert_eq!(
        seconds(&progress.metadata),
        [Some(10), Some(20), Some(21), None, None, None, None, None, None]
    );
    let (metadata, _) = journal.close();
    assert_eq!(seconds(&metadata), [Some(10), Some(20), Some(21), None, None, None, None, None, Some(22)]);
}

// An action that leaves a million sockets behind must not make a message of them.
#[test]
fn notes_are_bounded() {
    let (assignment, _watcher) = assignment(10);
    let mut journal = Journal::open(&assignment, "w", ScriptedClock::new(&[20]));
    for number in 0..NOTES_MAX + 7 {
        journal.note(number.to_string());
    }
    let (_, message) = journal.close();
    assert_eq!(message.lines().count(), NOTES_MAX + 1);
    assert!(message.ends_with("(7 more)"), "{message}");
}
