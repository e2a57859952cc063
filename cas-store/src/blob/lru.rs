//! An order of use threaded through the elements of a slice: every operation is constant time and allocates
//! nothing.

/// No element.
const NONE: u32 = u32::MAX;

/// An element's place in the order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    older: u32,
    newer: u32,
}

impl Default for Links {
    fn default() -> Self {
        Self { older: NONE, newer: NONE }
    }
}

/// The ends of the order.
#[derive(Debug)]
pub(super) struct Lru {
    oldest: u32,
    newest: u32,
}

impl Default for Lru {
    fn default() -> Self {
        Self { oldest: NONE, newest: NONE }
    }
}

impl Lru {
    /// The element that was pushed longest ago.
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// The element that was pushed next after one that is in the order.
    pub(super) fn newer_than(elements: &mut [impl AsMut<Links>], number: u32) -> Option<u32> {
        let newer = links(elements, number).newer;
        (newer != NONE).then_some(newer)
    }

    /// Appends an element that is not in the order.
    pub(super) fn push_newest(&mut self, elements: &mut [impl AsMut<Links>], number: u32) {
        *links(elements, number) = Links { older: self.newest, newer: NONE };
        match self.newest {
            NONE => self.oldest = number,
            newest => links(elements, newest).newer = number,
        }
        self.newest = number;
    }

    /// Takes out an element that is in the order.
    pub(super) fn remove(&mut self, elements: &mut [impl AsMut<Links>], number: u32) {
        let Links { older, newer } = std::mem::take(links(elements, number));
        match older {
            NONE => self.oldest = newer,
            older => links(elements, older).newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => links(elements, newer).older = older,
        }
    }
}

fn links(elements: &mut [impl AsMut<Links>], number: u32) -> &mut Links {
    elements[number as usize].as_mut()
}
