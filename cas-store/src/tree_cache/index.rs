//! Which trees are ready, who uses them, and which of them has to go: pure state, no I/O, no lock.
//!
//! Invariants: a pinned entry is never a victim; the order of use is that of the last unpin; every choice of a victim
//! takes constant time; an entry that was lost is not found again, and goes with its last pin.

use std::collections::HashMap;

use hashlink::LinkedHashMap;

use crate::blob::Moment;
use crate::digest::Digest;

/// Entries by digest: those in use, and those that only wait to be used again.
#[derive(Debug)]
pub(super) struct Index<V> {
    pinned: HashMap<Digest, Pinned<V>>,
    /// Those that are in use and not to be found.
    lost: HashMap<Number, Pinned<V>>,
    /// Least recently used first.
    idle: LinkedHashMap<Digest, Idle<V>>,
    idle_bytes: u64,
    pinned_bytes: u64,
    next_number: Number,
}

/// Tells an entry from others of its digest.
pub(super) type Number = u64;

#[derive(Debug)]
struct Pinned<V> {
    entry: Entry<V>,
    pins: usize,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    number: Number,
    size_bytes: u64,
}

#[derive(Debug)]
struct Idle<V> {
    entry: Entry<V>,
    since: Moment,
}

/// What was taken out, and when it was last used.
pub(super) type Victim<V> = (V, Moment);

/// How much may stay that nobody uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdleLimits {
    /// Entries.
    pub(super) entries_max: usize,
    /// The sum of their sizes.
    pub(super) size_bytes_max: u64,
}

impl<V> Default for Index<V> {
    fn default() -> Self {
        Self {
            pinned: HashMap::new(),
            lost: HashMap::new(),
            idle: LinkedHashMap::new(),
            idle_bytes: 0,
            pinned_bytes: 0,
            next_number: 0,
        }
    }
}

impl<V> Index<V> {
    /// Adds an entry that must not be there yet, pinned once.
    pub(super) fn insert_pinned(&mut self, digest: Digest, size_bytes: u64, value: V) -> Number {
        debug_assert!(!self.contains(&digest), "{digest} has an entry");
        self.pinned_bytes += size_bytes;
        let number = self.next_number;
        self.next_number += 1;
        self.pinned.insert(digest, Pinned { entry: Entry { value, number, size_bytes }, pins: 1 });
        number
    }

    /// Pins an entry, if there is one.
    pub(super) fn pin(&mut self, digest: &Digest) -> Option<(&V, Number)> {
        if let Some(Idle { entry, .. }) = self.idle.remove(digest) {
            self.idle_bytes -= entry.size_bytes;
            self.pinned_bytes += entry.size_bytes;
            self.pinned.insert(*digest, Pinned { entry, pins: 0 });
        }
        let pinned = self.pinned.get_mut(digest)?;
        pinned.pins += 1;
        Some((&pinned.entry.value, pinned.entry.number))
    }

    /// Forgets a pinned entry: whoever asks for the digest does not find it, whoever has it pinned keeps it.
    pub(super) fn lose(&mut self, digest: &Digest, number: Number) {
        let found = self.pinned.get(digest).is_some_and(|pinned| pinned.entry.number == number);
        if let Some(pinned) = found.then(|| self.pinned.remove(digest)).flatten() {
            self.pinned_bytes -= pinned.entry.size_bytes;
            self.lost.insert(number, pinned);
        }
    }

    /// Takes one pin back, `now`. The last one makes the entry the most recently used of those that can go; one that was
    /// lost is taken out.
    pub(super) fn unpin(&mut self, digest: &Digest, number: Number, now: Moment) -> Option<Victim<V>> {
        if let Some(lost) = self.lost.get_mut(&number) {
            lost.pins -= 1;
            let is_over = lost.pins == 0;
            return is_over.then(|| self.lost.remove(&number)).flatten().map(|lost| (lost.entry.value, now));
        }
        let Some(pinned) = self.pinned.get_mut(digest) else {
            debug_assert!(false, "{digest} is unpinned more often than pinned");
            return None;
        };
        pinned.pins -= 1;
        if pinned.pins == 0
            && let Some(Pinned { entry, .. }) = self.pinned.remove(digest)
        {
            self.pinned_bytes -= entry.size_bytes;
            self.idle_bytes += entry.size_bytes;
            self.idle.insert(*digest, Idle { entry, since: now });
        }
        None
    }

    /// When that was used last which has not been used for longest.
    pub(super) fn idle_since(&self) -> Option<Moment> {
        self.idle.front().map(|(_, idle)| idle.since)
    }

    /// Takes out what was used longest ago, if that was not after `until`.
    pub(super) fn take_oldest(&mut self, until: Moment) -> Option<Victim<V>> {
        self.idle_since().filter(|since| *since <= until)?;
        let (_, Idle { entry, since }) = self.idle.pop_front()?;
        self.idle_bytes -= entry.size_bytes;
        Some((entry.value, since))
    }

    /// Takes out what has to go so that the rest is within `limits`, oldest first.
    pub(super) fn take_excess(&mut self, limits: IdleLimits) -> Vec<Victim<V>> {
        let mut victims = Vec::new();
        while self.idle.len() > limits.entries_max || self.idle_bytes > limits.size_bytes_max {
            victims.extend(self.take_oldest(Moment::END));
        }
        victims
    }

    /// Whether there is an entry.
    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.pinned.contains_key(digest) || self.idle.contains_key(digest)
    }

    /// Entries.
    pub(super) fn len(&self) -> usize {
        self.pinned.len() + self.idle.len()
    }

    /// Entries in use.
    pub(super) fn pinned_len(&self) -> usize {
        self.pinned.len()
    }

    /// The sum of the sizes of all entries.
    pub(super) fn size_bytes(&self) -> u64 {
        self.pinned_bytes + self.idle_bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::digest::DigestFunction;

    /// What the index promises, without a thought for speed: entries in order of use.
    #[derive(Default)]
    struct Model(Vec<ModelEntry>);

    #[derive(Clone, Copy)]
    struct ModelEntry {
        key: u8,
        number: Number,
        size_bytes: u64,
        pins: usize,
        is_lost: bool,
        since: Moment,
    }

    impl Model {
        fn position(&self, key: u8) -> Option<usize> {
            self.0.iter().position(|entry| entry.key == key && !entry.is_lost)
        }

        fn idle(&self) -> Vec<ModelEntry> {
            self.0.iter().filter(|entry| entry.pins == 0).copied().collect()
        }

        fn take_oldest(&mut self, until: Moment) -> Option<Victim<u8>> {
            let oldest = *self.idle().first()?;
            (oldest.since <= until).then(|| {
                self.0.retain(|entry| entry.number != oldest.number);
                (oldest.key, oldest.since)
            })
        }

        fn take_excess(&mut self, limits: IdleLimits) -> Vec<Victim<u8>> {
            let mut victims = Vec::new();
            loop {
                let idle = self.idle();
                let bytes: u64 = idle.iter().map(|entry| entry.size_bytes).sum();
                if idle.len() <= limits.entries_max && bytes <= limits.size_bytes_max {
                    return victims;
                }
                victims.extend(self.take_oldest(Moment::END));
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8, u64),
        Pin(u8),
        Unpin(usize),
        Lose(usize),
        /// If it has been idle for that many unpins.
        TakeOldest(usize),
        TakeExcess(usize, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = 0..8u8;
        let step = prop_oneof![
            (key.clone(), 0..10u64).prop_map(|(key, size)| Step::Insert(key, size)),
            key.prop_map(Step::Pin),
            (0..8usize).prop_map(Step::Unpin),
            (0..8usize).prop_map(Step::Lose),
            (0..4usize).prop_map(Step::TakeOldest),
            (0..6usize, 0..40u64).prop_map(|(entries, bytes)| Step::TakeExcess(entries, bytes)),
        ];
        prop::collection::vec(step, 0..200)
    }

    fn digest(key: u8) -> Digest {
        DigestFunction::Sha256.digest(&[key])
    }

    proptest! {
        // Pins, order of use, limits and sums agree with the model after any sequence of calls.
        #[test]
        fn agrees_with_the_model(steps in steps()) {
            let (mut index, mut model) = (Index::<u8>::default(), Model::default());
            let mut now = Moment::default();
            let mut past = vec![now];
            for step in steps {
                match step {
                    Step::Insert(key, size_bytes) if model.position(key).is_none() => {
                        let number = index.insert_pinned(digest(key), size_bytes, key);
                        prop_assert!(model.0.iter().all(|entry| entry.number != number));
                        let since = Moment::default();
                        model.0.push(ModelEntry { key, number, size_bytes, pins: 1, is_lost: false, since });
                    }
                    Step::Pin(key) => {
                        let pinned = index.pin(&digest(key)).map(|(value, number)| (*value, number));
                        let position = model.position(key);
                        prop_assert_eq!(pinned, position.map(|at| (key, model.0[at].number)));
                        if let Some(position) = position {
                            model.0[position].pins += 1;
                        }
                    }
                    Step::Unpin(at) if model.0.get(at).is_some_and(|entry| entry.pins > 0) => {
                        now = now.next();
                        past.push(now);
                        let ModelEntry { key, number, pins, is_lost, .. } = model.0[at];
                        let is_over = is_lost && pins == 1;
                        prop_assert_eq!(index.unpin(&digest(key), number, now), is_over.then_some((key, now)));
                        model.0[at].pins -= 1;
                        if pins == 1 {
                            let entry = model.0.remove(at);
                            model.0.extend((!is_lost).then_some(ModelEntry { since: now, ..entry }));
                        }
                    }
                    Step::Lose(at) if model.0.get(at).is_some_and(|entry| entry.pins > 0) => {
                        index.lose(&digest(model.0[at].key), model.0[at].number);
                        model.0[at].is_lost = true;
                    }
                    Step::TakeOldest(ago) => {
                        let until = past[past.len().saturating_sub(ago + 1)];
                        prop_assert_eq!(index.take_oldest(until), model.take_oldest(until));
                    }
                    Step::TakeExcess(entries_max, size_bytes_max) => {
                        let limits = IdleLimits { entries_max, size_bytes_max };
                        prop_assert_eq!(index.take_excess(limits), model.take_excess(limits));
                    }
                    Step::Insert(..) | Step::Unpin(_) | Step::Lose(_) => {}
                }
                prop_assert_eq!(index.idle_since(), model.idle().first().map(|entry| entry.since));
                let found: Vec<_> = model.0.iter().filter(|entry| !entry.is_lost).collect();
                prop_assert_eq!(index.len(), found.len());
                prop_assert_eq!(index.pinned_len(), found.len() - model.idle().len());
                prop_assert_eq!(index.size_bytes(), found.iter().map(|entry| entry.size_bytes).sum::<u64>());
            }
        }
    }
}
