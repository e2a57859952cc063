//! References whose holder has begun to give them back: what will be free when it has done so.
//!
//! A tree's references end when its last name is gone from the disk, long after it was chosen to go. Until then nobody
//! needs to look for other victims in the place of what it alone holds.

use super::slot::{Slot, State};
use super::{Ledger, SlotId};
use crate::blob::order::Moment;

impl Ledger {
    /// What nobody but those who are leaving holds.
    pub(crate) fn leaving_bytes(&self) -> u64 {
        self.leaving_bytes
    }

    /// Announces that one of the references will be given back by [`Ledger::release_left`].
    pub(crate) fn leave(&mut self, id: SlotId) {
        self.change(id, |slot| slot.leaving += 1);
    }

    /// Takes a reference back that was announced, and was last used at `moment`.
    pub(crate) fn release_left(&mut self, id: SlotId, moment: Moment) {
        let references = self.change(id, |slot| {
            slot.leaving -= 1;
            slot.references -= 1;
            slot.references
        });
        let slot = &mut self.slots[id.0 as usize];
        if references > 0 {
            self.unreferenced.note_use_at(slot, moment);
        } else if slot.state == State::Ready {
            self.unreferenced.push_late(&mut self.slots, id.0, moment);
        } else {
            self.end(id);
        }
    }

    /// Announces that reserved `bytes` will be given back by [`Ledger::unreserve_left`].
    pub(crate) fn leave_reserved(&mut self, bytes: u64) {
        self.leaving_bytes += bytes;
    }

    /// Gives back what was reserved, and announced to come.
    pub(crate) fn unreserve_left(&mut self, bytes: u64) {
        self.leaving_bytes -= bytes;
        self.unreserve(bytes);
    }

    /// Changes what a slot takes or who refers to it.
    pub(super) fn change<T>(&mut self, id: SlotId, change: impl FnOnce(&mut Slot) -> T) -> T {
        let slot = &mut self.slots[id.0 as usize];
        self.leaving_bytes -= slot.leaving_bytes();
        let value = change(slot);
        debug_assert!(slot.leaving <= slot.references, "{slot:?}");
        self.leaving_bytes += slot.leaving_bytes();
        value
    }
}
