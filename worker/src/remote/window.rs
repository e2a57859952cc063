//! How many requests may be in flight: as many as the way to the server holds, found by how long answers take.
//!
//! While answers take little longer than the fastest lately, the way has room, and the window grows; when they take
//! several times as long, requests queue up somewhere, and more of them would only add to that. A failure halves it.
//! Pure: who asks says how long things took.

use std::time::Duration;

/// Where the window begins.
const START: usize = 8;
/// The fewest requests in flight: the way is never idle while an answer is being stored.
const MIN: usize = 4;
/// Answers that take so many times as long as the fastest let the window grow.
const ROOM_RATIO: u32 = 2;
/// Answers that take so many times as long as the fastest let it shrink.
const CROWDED_RATIO: u32 = 6;
/// Answers after which what was the fastest is forgotten by a tenth.
const FORGET_EVERY: u32 = 32;
/// What passes without being measured: on a fast way, times are noise.
const FLOOR: Duration = Duration::from_millis(4);

/// The window.
#[derive(Debug)]
pub(super) struct Window {
    size: usize,
    size_max: usize,
    in_flight: usize,
    fastest: Option<Duration>,
    answers: u32,
}

impl Window {
    pub(super) fn new(size_max: usize) -> Self {
        let size_max = size_max.max(1);
        Self { size: START.min(size_max), size_max, in_flight: 0, fastest: None, answers: 0 }
    }

    /// How many more requests may go.
    pub(super) fn room(&self) -> u64 {
        self.size.saturating_sub(self.in_flight) as u64
    }

    /// What one kind of request may take of it while others wait.
    pub(super) fn half(&self) -> usize {
        (self.size / 2).max(1)
    }

    /// A request goes.
    pub(super) fn sent(&mut self) {
        self.in_flight += 1;
    }

    /// A request has ended, however.
    pub(super) fn ended(&mut self) {
        self.in_flight -= 1;
    }

    /// An answer took that long.
    pub(super) fn answered(&mut self, took: Duration) {
        let took = took.max(FLOOR);
        let fastest = self.fastest.map_or(took, |fastest| fastest.min(took));
        self.answers += 1;
        // The way may have become longer for good.
        let is_stale = self.answers.is_multiple_of(FORGET_EVERY);
        self.fastest = Some(if is_stale { fastest + fastest / 10 } else { fastest });
        if took <= fastest * ROOM_RATIO {
            self.size = (self.size + 1).min(self.size_max);
        } else if took > fastest * CROWDED_RATIO {
            self.size = (self.size - 1).max(MIN.min(self.size_max));
        }
    }

    /// A request was in vain.
    pub(super) fn failed(&mut self) {
        self.size = (self.size / 2).max(MIN.min(self.size_max));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_long_way_gets_a_wide_window_and_a_crowded_one_a_narrow_one() {
        let mut window = Window::new(64);
        (0..100).for_each(|_| window.answered(50 * MS));
        assert_eq!(window.size, 64);
        (0..100).for_each(|_| window.answered(1000 * MS));
        assert_eq!(window.size, MIN);
    }

    // A way that became longer is not taken for a crowded one for ever.
    #[test]
    fn the_fastest_answer_is_forgotten() {
        let mut window = Window::new(64);
        window.answered(10 * MS);
        (0..2000).for_each(|_| window.answered(100 * MS));
        assert_eq!(window.size, 64);
    }

    #[test]
    fn a_failure_halves_it() {
        let mut window = Window::new(64);
        (0..100).for_each(|_| window.answered(50 * MS));
        window.failed();
        assert_eq!(window.size, 32);
    }

    proptest! {
        // Whatever happens, something may go, and never more than was allowed.
        #[test]
        fn it_stays_within_its_bounds(events in prop::collection::vec((0..3u8, 0..10_000u64), 0..500), max in 0..100usize) {
            let mut window = Window::new(max);
            for (event, millis) in events {
                match event {
                    0 if window.room() > 0 => { window.sent(); window.ended(); }
                    1 => window.failed(),
                    _ => window.answered(Duration::from_millis(millis)),
                }
                prop_assert!((1..=max.max(1)).contains(&window.size));
                prop_assert!(window.room() > 0);
            }
        }
    }
}
