//! A memory of what the server has, so that it is not asked again and nothing is sent twice.
//!
//! What was uploaded or found present is believed to be there for a short while, as long as the connection lasts:
//! behind the next one there may be a server that begins with nothing. Servers evict, so a memory can be wrong: whoever
//! finds out says so ([`Known::forget`]), and it is counted. But a result that names what is lost breaks somebody's build,
//! and he has it run again at once, so the while has to be over by then: it is for what many actions have in common.
//!
//! *Locking*: the lock is held for changes in memory.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, SystemTime};

use longshore_cas_store::digest::Digest;
use parking_lot::Mutex;

/// The most blobs that are remembered.
pub(super) const BLOBS_MAX: usize = 1 << 18;

/// How well the memory serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownStats {
    /// Blobs that were not asked for because they were known.
    pub hits: u64,
    /// Blobs that were known and then turned out not to be there, or were forgotten with one of which nobody said which.
    pub stale: u64,
}

/// The memory.
pub(super) struct Known {
    age_max: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    since: HashMap<Digest, SystemTime>,
    /// In the order of time; what was learnt again is in it again.
    order: VecDeque<(SystemTime, Digest)>,
    /// When it was learnt, as beginnings and ends of connections are counted.
    turn: u64,
    stats: KnownStats,
}

impl Known {
    pub(super) fn new(age_max: Duration) -> Self {
        Self { age_max, state: Mutex::default() }
    }

    /// The server has those.
    pub(super) fn learn<'d>(
        &self,
        digests: impl IntoIterator<Item = &'d Digest>,
        now: SystemTime,
        turn: u64,
    ) {
        let mut state = self.state.lock();
        state.turn(turn);
        for digest in digests {
            state.since.insert(*digest, now);
            state.order.push_back((now, *digest));
        }
        state.purge(now, self.age_max);
    }

    /// Removes from `digests` what the server is known to have.
    pub(super) fn sift(&self, digests: &mut Vec<Digest>, now: SystemTime, turn: u64) {
        let mut state = self.state.lock();
        state.turn(turn);
        state.purge(now, self.age_max);
        let before = digests.len();
        digests.retain(|digest| !state.since.contains_key(digest));
        state.stats.hits += (before - digests.len()) as u64;
    }

    /// The server does not have those.
    pub(super) fn forget<'d>(&self, digests: impl IntoIterator<Item = &'d Digest>) {
        let mut state = self.state.lock();
        for digest in digests {
            if state.since.remove(digest).is_some() {
                state.stats.stale += 1;
            }
        }
    }

    /// The server turned out not to have something that it had: whatever else is believed of it is not to be relied on.
    pub(super) fn forget_all(&self) {
        let mut state = self.state.lock();
        state.stats.stale += state.since.len() as u64;
        state.clear();
    }

    /// How many blobs it remembers, old ones included.
    pub(super) fn len(&self) -> usize {
        self.state.lock().since.len()
    }

    pub(super) fn stats(&self) -> KnownStats {
        self.state.lock().stats
    }
}

impl State {
    fn turn(&mut self, turn: u64) {
        if std::mem::replace(&mut self.turn, turn) != turn {
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.since.clear();
        self.order.clear();
    }

    fn purge(&mut self, now: SystemTime, age_max: Duration) {
        while let Some((learnt, digest)) = self.order.front().copied() {
            // A clock that was set back makes everything old.
            let is_old = now.duration_since(learnt).map_or(true, |age| age >= age_max);
            if !is_old && self.order.len() <= BLOBS_MAX {
                break;
            }
            self.order.pop_front();
            if self.since.get(&digest) == Some(&learnt) {
                self.since.remove(&digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use longshore_cas_store::digest::DigestFunction;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn unknown(known: &Known, digests: &[Digest], seconds: u64) -> Vec<Digest> {
        let mut left = digests.to_vec();
        known.sift(&mut left, at(seconds), 1);
        left
    }

    #[test]
    fn a_memory_ages_and_can_be_renewed() {
        let known = Known::new(Duration::from_secs(10));
        let [a, b] = [&b"a"[..], b"b"].map(|data| DigestFunction::Sha256.digest(data));
        known.learn([&a, &b], at(0), 1);
        known.learn([&b], at(5), 1);
        assert_eq!(unknown(&known, &[a, b], 9), []);
        assert_eq!(unknown(&known, &[a, b], 10), [a]);
        assert_eq!(unknown(&known, &[a, b], 15), [a, b]);
        assert_eq!(known.stats(), KnownStats { hits: 3, stale: 0 });
    }

    #[test]
    fn a_stale_memory_is_counted_once() {
        let known = Known::new(Duration::from_secs(10));
        let digest = DigestFunction::Sha256.digest(b"a");
        known.learn([&digest], at(0), 1);
        known.forget([&digest]);
        known.forget([&digest]);
        assert_eq!(unknown(&known, &[digest], 1), [digest]);
        assert_eq!(known.stats(), KnownStats { hits: 0, stale: 1 });
    }

    // A server that was started again on an empty disk has nothing of what the one before had.
    #[test]
    fn a_new_connection_begins_with_nothing() {
        let known = Known::new(Duration::from_secs(10));
        let digest = DigestFunction::Sha256.digest(b"a");
        known.learn([&digest], at(0), 0);
        assert_eq!(unknown(&known, &[digest], 1), [digest]);
        known.learn([&digest], at(1), 1);
        assert_eq!(unknown(&known, &[digest], 2), []);
        known.forget_all();
        assert_eq!(unknown(&known, &[digest], 2), [digest]);
    }

    #[test]
    fn it_is_bounded() {
        let known = Known::new(Duration::from_secs(10));
        let first = DigestFunction::Sha256.digest(b"first");
        known.learn([&first], at(0), 1);
        let digests: Vec<_> =
            (0..BLOBS_MAX).map(|number| DigestFunction::Sha256.digest(&number.to_le_bytes())).collect();
        known.learn(&digests, at(1), 1);
        assert_eq!(unknown(&known, &[first], 1), [first]);
        assert_eq!(known.state.lock().since.len(), BLOBS_MAX);
    }
}
