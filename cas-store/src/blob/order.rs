//! The order of use of the elements of a slice.
//!
//! What is used now is appended to a list threaded through the elements: constant time, and nothing is allocated. What
//! comes back into the order later than it was used goes into a set, sorted by that moment, so that the list need not be
//! searched for its place. The oldest element is the first of one of them.

use std::collections::BTreeSet;

/// A moment in the order of uses: a later one is greater, and nothing is said of the time between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// Later than every use.
    pub(crate) const END: Self = Self(u64::MAX);

    #[cfg(test)]
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// No element.
const NONE: u32 = u32::MAX;

/// An element's place in the order, and when it was last used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    older: u32,
    newer: u32,
    is_late: bool,
    used_at: Moment,
}

impl Default for Place {
    fn default() -> Self {
        Self { older: NONE, newer: NONE, is_late: false, used_at: Moment::default() }
    }
}

/// What has a place in an order.
pub(super) trait Placed {
    /// Its place.
    fn place(&self) -> &Place;
    /// The same, to be changed.
    fn place_mut(&mut self) -> &mut Place;
}

/// The order: the ends of the list, and what came back late.
#[derive(Debug)]
pub(super) struct Order {
    now: Moment,
    oldest: u32,
    newest: u32,
    late: BTreeSet<(Moment, u32)>,
}

impl Default for Order {
    fn default() -> Self {
        Self { now: Moment::default(), oldest: NONE, newest: NONE, late: BTreeSet::new() }
    }
}

impl Order {
    /// The moment of the last use.
    pub(super) fn now(&self) -> Moment {
        self.now
    }

    /// Whether nothing is in the order.
    pub(super) fn is_empty(&self) -> bool {
        self.oldest == NONE && self.late.is_empty()
    }

    /// Notes that an element that is not in the order is used now.
    pub(super) fn note_use(&mut self, element: &mut impl Placed) {
        self.now.0 += 1;
        element.place_mut().used_at = self.now;
    }

    /// Notes that an element that is not in the order was used at `moment`.
    pub(super) fn note_use_at(&mut self, element: &mut impl Placed, moment: Moment) {
        debug_assert!(moment <= self.now);
        let place = element.place_mut();
        place.used_at = place.used_at.max(moment);
    }

    /// Adds an element that is not in the order, as one that is used now.
    pub(super) fn push(&mut self, elements: &mut [impl Placed], number: u32) {
        self.note_use(&mut elements[number as usize]);
        let place = elements[number as usize].place_mut();
        (place.older, place.newer) = (self.newest, NONE);
        match self.newest {
            NONE => self.oldest = number,
            newest => elements[newest as usize].place_mut().newer = number,
        }
        self.newest = number;
    }

    /// Adds an element that is not in the order, as one that was last used at its own last use or at `moment`,
    /// whichever is later.
    pub(super) fn push_late(&mut self, elements: &mut [impl Placed], number: u32, moment: Moment) {
        self.note_use_at(&mut elements[number as usize], moment);
        let place = elements[number as usize].place_mut();
        place.is_late = true;
        self.late.insert((place.used_at, number));
    }

    /// Takes out an element that is in the order.
    pub(super) fn remove(&mut self, elements: &mut [impl Placed], number: u32) {
        let place = elements[number as usize].place_mut();
        let Place { older, newer, used_at, is_late } = *place;
        *place = Place { used_at, ..Place::default() };
        if is_late {
            self.late.remove(&(used_at, number));
            return;
        }
        match older {
            NONE => self.oldest = newer,
            older => elements[older as usize].place_mut().newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => elements[newer as usize].place_mut().older = older,
        }
    }

    /// What was used longest ago of all that `may_go`, if that was not after `until`.
    pub(super) fn oldest<E: Placed>(
        &self,
        elements: &[E],
        until: Moment,
        may_go: impl Fn(&E) -> bool,
    ) -> Option<u32> {
        let element = |number: u32| &elements[number as usize];
        let is_wanted = |&number: &u32| may_go(element(number));
        let next = |number: u32| Some(element(number).place().newer).filter(|&newer| newer != NONE);
        let first = Some(self.oldest).filter(|&oldest| oldest != NONE);
        let listed = std::iter::successors(first, |&number| next(number)).find(is_wanted);
        let late = self.late.iter().map(|(_, number)| *number).find(is_wanted);
        let oldest =
            listed.into_iter().chain(late).min_by_key(|&number| (element(number).place().used_at, number))?;
        (element(oldest).place().used_at <= until).then_some(oldest)
    }
}
