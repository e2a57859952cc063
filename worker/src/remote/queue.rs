//! The one queue of what the worker wants from the remote CAS. Pure: it knows digests and who waits.
//!
//! A digest is in it once, however many want it. Urgent ones come before speculative ones, each kind in the order of
//! arrival; an urgent want lifts a speculative one that is queued. Large blobs start first, but may not take all room while
//! small ones wait, which others need to begin at all; nor may speculation. What nobody wants any more is not fetched.

use std::collections::{BTreeMap, HashMap, HashSet};

use longshore_cas_store::digest::Digest;

/// How much somebody needs a blob. Ordered: what is urgent goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Urgency {
    /// An action waits for it.
    Urgent,
    /// An action may want it soon.
    Speculative,
}

/// Who waits, as [`Queue::abandon`] knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct WaiterId(pub(super) u64);

/// What is wanted and what is under way.
#[derive(Debug)]
pub(super) struct Queue<W> {
    wants: HashMap<Digest, Want<W>>,
    small: Line,
    large: Line,
    places: u64,
    /// The sum of the costs of small blobs in line.
    small_bytes: u64,
}

/// Digests in the order of their turn.
type Line = BTreeMap<Place, Digest>;

/// A place in line: by urgency, then by arrival.
type Place = (Urgency, u64);

#[derive(Debug)]
struct Want<W> {
    state: State,
    is_small: bool,
    cost_bytes: u64,
    waiters: Vec<(WaiterId, W)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Queued(Place),
    UnderWay,
}

/// A blob that is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) digest: Digest,
    pub(super) urgency: Urgency,
    /// Whether it travels in a batch.
    pub(super) is_small: bool,
    /// What it takes of a batch.
    pub(super) cost_bytes: u64,
}

/// What to fetch next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Job {
    Batch(Vec<Digest>),
    Large(Digest),
}

/// What there is room for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// What the costs in a batch may add up to.
    pub(super) batch_bytes_max: u64,
    /// For a large blob before small ones that are as urgent.
    pub(super) large: bool,
    /// For what may be wanted soon.
    pub(super) speculative: bool,
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self { wants: HashMap::new(), small: Line::new(), large: Line::new(), places: 0, small_bytes: 0 }
    }
}

impl<W> Queue<W> {
    /// Adds somebody who wants a blob. Whether others wanted it before.
    pub(super) fn want(&mut self, item: Item, id: WaiterId, waiter: W) -> bool {
        let Item { digest, urgency, is_small, cost_bytes } = item;
        self.places += 1;
        let place = (urgency, self.places);
        let line = if is_small { &mut self.small } else { &mut self.large };
        let Some(want) = self.wants.get_mut(&digest) else {
            let state = State::Queued(place);
            self.wants.insert(digest, Want { state, is_small, cost_bytes, waiters: vec![(id, waiter)] });
            line.insert(place, digest);
            self.small_bytes += if is_small { cost_bytes } else { 0 };
            return false;
        };
        want.waiters.push((id, waiter));
        if let State::Queued(old) = want.state
            && urgency < old.0
        {
            want.state = State::Queued(place);
            line.remove(&old);
            line.insert(place, digest);
        }
        true
    }

    /// The next job, and how urgent it is: what is urgent first.
    pub(super) fn take(&mut self, room: Room) -> Option<(Job, Urgency)> {
        let may = |urgency: &Urgency| room.speculative || *urgency == Urgency::Urgent;
        let small = self.small.first_key_value().map(|(place, _)| place.0).filter(may);
        let large = self.large.first_key_value().map(|(place, digest)| (place.0, *digest));
        let large = large.filter(|(urgency, _)| may(urgency));
        let goes_first = |urgency: Urgency| {
            small.is_none_or(|small| if room.large { urgency <= small } else { urgency < small })
        };
        match (small, large) {
            // A large blob takes long: it starts first, and batches go beside it.
            (_, Some((urgency, digest))) if goes_first(urgency) => {
                self.start(&digest);
                Some((Job::Large(digest), urgency))
            }
            (Some(urgency), _) => Some((Job::Batch(self.batch(urgency, room.batch_bytes_max)), urgency)),
            (None, _) => None,
        }
    }

    /// What small blobs in line add up to in batches.
    pub(super) fn small_bytes(&self) -> u64 {
        self.small_bytes
    }

    /// Who has waited for a blob the longest.
    pub(super) fn first_waiter(&self, digest: &Digest) -> Option<&W> {
        self.wants.get(digest)?.waiters.first().map(|(_, waiter)| waiter)
    }

    /// Forgets a blob that nobody wants any more. Whether that is so.
    pub(super) fn give_up(&mut self, digest: &Digest) -> bool {
        let is_wanted = self.wants.get(digest).is_some_and(|want| !want.waiters.is_empty());
        if !is_wanted {
            self.landed(digest);
        }
        !is_wanted
    }

    /// A blob's fate is known: who waited for it.
    pub(super) fn landed(&mut self, digest: &Digest) -> Vec<W> {
        let Some(want) = self.wants.remove(digest) else { return Vec::new() };
        self.leave_line(want.state, want.is_small, want.cost_bytes);
        want.waiters.into_iter().map(|(_, waiter)| waiter).collect()
    }

    /// Somebody has left who wanted those.
    pub(super) fn abandon(&mut self, id: WaiterId, digests: &HashSet<Digest>) {
        for digest in digests {
            let Some(want) = self.wants.get_mut(digest) else { continue };
            want.waiters.retain(|(other, _)| *other != id);
            // What is under way keeps its place, so that nobody starts it twice.
            if want.waiters.is_empty() && matches!(want.state, State::Queued(_)) {
                self.landed(digest);
            }
        }
    }

    fn batch(&mut self, urgency: Urgency, batch_bytes_max: u64) -> Vec<Digest> {
        let mut batch = Vec::new();
        let mut left_bytes = batch_bytes_max;
        while let Some((place, digest)) = self.small.first_key_value() {
            let (place, digest) = (*place, *digest);
            let cost_bytes = self.wants[&digest].cost_bytes;
            // One request has one digest function.
            let is_other = batch.first().is_some_and(|first: &Digest| first.function() != digest.function());
            // One that is too large for any batch goes alone rather than never.
            let is_full = cost_bytes > left_bytes && !batch.is_empty();
            if place.0 != urgency || is_other || is_full {
                break;
            }
            left_bytes = left_bytes.saturating_sub(cost_bytes);
            self.start(&digest);
            batch.push(digest);
        }
        batch
    }

    fn start(&mut self, digest: &Digest) {
        let want = self.wants.get_mut(digest).expect("what is in line is wanted");
        let state = std::mem::replace(&mut want.state, State::UnderWay);
        let (is_small, cost_bytes) = (want.is_small, want.cost_bytes);
        self.leave_line(state, is_small, cost_bytes);
    }

    fn leave_line(&mut self, state: State, is_small: bool, cost_bytes: u64) {
        let State::Queued(place) = state else { return };
        if is_small {
            self.small.remove(&place);
            self.small_bytes -= cost_bytes;
        } else {
            self.large.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests;
