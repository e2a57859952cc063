//! The ledger: what lies on the disk, who refers to it, what it takes, and what may go.
//!
//! Pure memory: it knows no file, no lock and no time. Its owner calls it under a lock and does what it says
//! outside of it.
//!
//! Invariants:
//! 1. `used_bytes` is the sum of all slots, of the victims that are not yet unlinked, and of what was reserved;
//! 2. a slot is in the order of use exactly while it is ready and nobody refers to it: the victim is its oldest;
//! 3. a slot that anybody refers to keeps its number, whatever happens to its key;
//! 4. `leaving_bytes` is the sum of the slots all of whose references are leaving, and of the reserved bytes that are.

mod leaving;
mod slot;

use super::order::{Moment, Order, Place};
pub(crate) use slot::SlotKey;
use slot::{Slot, State};

/// A slot's number: valid while somebody refers to the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotId(pub(super) u32);

/// What must be unlinked, and then reported by [`Ledger::unlinked`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Victim {
    pub(crate) key: SlotKey,
    pub(crate) bytes: u64,
}

/// The ledger.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    table: hashbrown::HashTable<u32>,
    hasher: hashbrown::DefaultHashBuilder,
    unreferenced: Order,
    limit_bytes: u64,
    used_bytes: u64,
    victims_bytes: u64,
    leaving_bytes: u64,
    blobs: u64,
}

impl Ledger {
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, ..Self::default() }
    }

    pub(crate) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    pub(crate) fn set_limit_bytes(&mut self, limit_bytes: u64) {
        self.limit_bytes = limit_bytes;
    }

    /// Everything that is or will be on the disk.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// The part of [`Ledger::used_bytes`] that is being unlinked.
    pub(crate) fn victims_bytes(&self) -> u64 {
        self.victims_bytes
    }

    /// Ready blobs.
    pub(crate) fn blobs(&self) -> u64 {
        self.blobs
    }

    /// Whether anything is there that nobody refers to.
    pub(crate) fn has_victim(&self) -> bool {
        !self.unreferenced.is_empty()
    }

    /// The moment of the last use.
    pub(crate) fn now(&self) -> Moment {
        self.unreferenced.now()
    }

    /// Whether `bytes` of the limit are left.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        bytes <= self.limit_bytes.saturating_sub(self.used_bytes)
    }

    /// Takes `bytes` of the limit; whether they are left.
    pub(crate) fn reserve(&mut self, bytes: u64) -> bool {
        let fits = self.has_room(bytes);
        if fits {
            self.used_bytes += bytes;
        }
        fits
    }

    /// Gives back what was reserved.
    pub(crate) fn unreserve(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.used_bytes, "{bytes} of {}", self.used_bytes);
        self.used_bytes -= bytes;
    }

    /// Counts what lies on the disk already, whatever the limit.
    pub(crate) fn count_recovered(&mut self, bytes: u64) {
        self.used_bytes += bytes;
    }

    /// Refers to a ready inode.
    pub(crate) fn pin(&mut self, key: &SlotKey) -> Option<SlotId> {
        let id = self.find_in(key, State::Ready)?;
        self.retain(id);
        Some(id)
    }

    /// Refers to an inode that is ready or planned.
    pub(crate) fn pin_planned(&mut self, key: &SlotKey) -> Option<SlotId> {
        let id = self.find(key)?;
        self.retain(id);
        Some(id)
    }

    /// Refers to an inode that is yet to be made, and is not known. Its reserved `bytes` become the slot's.
    pub(crate) fn plan(&mut self, key: SlotKey, bytes: u64) -> SlotId {
        self.insert_slot(key, State::Planned, bytes)
    }

    /// Refers to an inode that is there now, and was not known or only planned. Its reserved `bytes` become the
    /// slot's; those of the plan return.
    pub(crate) fn insert(&mut self, key: SlotKey, bytes: u64) -> SlotId {
        let id = match self.find_in(&key, State::Planned) {
            Some(id) => {
                self.retain(id);
                self.slots[id.0 as usize].state = State::Ready;
                self.resize(id, bytes);
                id
            }
            None => self.insert_slot(key, State::Ready, bytes),
        };
        self.blobs += u64::from(key.is_blob());
        id
    }

    /// Says that the inode of a slot that is referred to is there.
    pub(crate) fn made(&mut self, id: SlotId) {
        let slot = &mut self.slots[id.0 as usize];
        debug_assert!(slot.references > 0 && matches!(slot.state, State::Planned | State::Ready));
        slot.state = State::Ready;
    }

    /// Whether the inode of a slot that is referred to is there.
    pub(crate) fn is_ready(&self, id: SlotId) -> bool {
        self.slots[id.0 as usize].state == State::Ready
    }

    /// Adds reserved bytes to a slot that is referred to: its inode has a second one beside it.
    pub(crate) fn enlarge(&mut self, id: SlotId, bytes: u64) {
        self.change(id, |slot| slot.bytes += bytes);
    }

    /// Puts reserved `bytes` in the place of a slot's; what it had returns.
    pub(crate) fn resize(&mut self, id: SlotId, bytes: u64) {
        self.used_bytes -= self.change(id, |slot| std::mem::replace(&mut slot.bytes, bytes));
    }

    /// Marks a ready inode as used just now; whether it is there.
    pub(crate) fn touch(&mut self, key: &SlotKey) -> bool {
        let Some(id) = self.find_in(key, State::Ready) else { return false };
        if self.slots[id.0 as usize].references == 0 {
            self.unreferenced.remove(&mut self.slots, id.0);
            self.unreferenced.push(&mut self.slots, id.0);
        } else {
            self.unreferenced.note_use(&mut self.slots[id.0 as usize]);
        }
        true
    }

    /// Adds a reference.
    pub(crate) fn retain(&mut self, id: SlotId) {
        let slot = &self.slots[id.0 as usize];
        debug_assert!(slot.state != State::Vacant);
        if slot.references == 0 {
            self.unreferenced.remove(&mut self.slots, id.0);
        }
        self.change(id, |slot| slot.references += 1);
    }

    /// Takes a reference back, which was in use until now. The last one makes a ready slot a possible victim, and ends
    /// any other.
    pub(crate) fn release(&mut self, id: SlotId) {
        let references = self.change(id, |slot| {
            slot.references -= 1;
            slot.references
        });
        if references > 0 {
            self.unreferenced.note_use(&mut self.slots[id.0 as usize]);
        } else if self.slots[id.0 as usize].state == State::Ready {
            self.unreferenced.push(&mut self.slots, id.0);
        } else {
            self.end(id);
        }
    }

    /// Chooses what was used longest ago of all that nobody refers to and that `may_go`, if that was not after `until`.
    /// Its bytes count until [`Ledger::unlinked`].
    pub(crate) fn take_victim(&mut self, until: Moment, may_go: impl Fn(&SlotKey) -> bool) -> Option<Victim> {
        let number = self.unreferenced.oldest(&self.slots, until, |slot| may_go(&slot.key))?;
        Some(self.take(SlotId(number)))
    }

    /// Makes a victim of `key`, if nobody refers to it.
    pub(crate) fn take_key(&mut self, key: &SlotKey) -> Option<Victim> {
        let id = self.find_in(key, State::Ready)?;
        (self.slots[id.0 as usize].references == 0).then(|| self.take(id))
    }

    /// Counts a victim's bytes as free: its last name is gone.
    pub(crate) fn unlinked(&mut self, bytes: u64) {
        self.victims_bytes -= bytes;
        self.used_bytes -= bytes;
    }

    /// Gives up on a victim that cannot be unlinked: it takes its bytes until the next start.
    pub(crate) fn stuck(&mut self, bytes: u64) {
        self.victims_bytes -= bytes;
    }

    /// Forgets a slot that is referred to: its inode has lost its name, or its content.
    pub(crate) fn lose(&mut self, id: SlotId) {
        let slot = &mut self.slots[id.0 as usize];
        debug_assert!(slot.references > 0);
        if slot.state == State::Ready {
            slot.state = State::Lost;
            self.blobs -= u64::from(slot.key.is_blob());
            self.unname(id);
        }
    }

    fn take(&mut self, id: SlotId) -> Victim {
        self.unreferenced.remove(&mut self.slots, id.0);
        self.unname(id);
        let Slot { key, bytes, .. } = self.slots[id.0 as usize];
        self.blobs -= u64::from(key.is_blob());
        self.victims_bytes += bytes;
        self.vacate(id);
        Victim { key, bytes }
    }

    /// Ends a slot without an inode that nobody refers to any more.
    fn end(&mut self, id: SlotId) {
        let slot = &self.slots[id.0 as usize];
        debug_assert!(matches!(slot.state, State::Planned | State::Lost));
        self.used_bytes -= slot.bytes;
        if slot.state == State::Planned {
            self.unname(id);
        }
        self.vacate(id);
    }

    fn insert_slot(&mut self, key: SlotKey, state: State, bytes: u64) -> SlotId {
        debug_assert!(self.find(&key).is_none(), "{key:?} has a slot");
        let slot = Slot { key, state, references: 1, leaving: 0, bytes, place: Place::default() };
        let number = if let Some(number) = self.vacant.pop() {
            self.slots[number as usize] = slot;
            number
        } else {
            self.slots.push(slot);
            u32::try_from(self.slots.len() - 1).expect("four billion files do not fit an index in memory")
        };
        let Self { table, hasher, slots, .. } = self;
        table.insert_unique(hash(hasher, &key), number, |&other| hash(hasher, &slots[other as usize].key));
        SlotId(number)
    }

    fn find(&self, key: &SlotKey) -> Option<SlotId> {
        let hash = hash(&self.hasher, key);
        self.table.find(hash, |&number| self.slots[number as usize].key == *key).map(|&number| SlotId(number))
    }

    fn find_in(&self, key: &SlotKey, state: State) -> Option<SlotId> {
        self.find(key).filter(|id| self.slots[id.0 as usize].state == state)
    }

    fn unname(&mut self, id: SlotId) {
        let hash = hash(&self.hasher, &self.slots[id.0 as usize].key);
        if let Ok(entry) = self.table.find_entry(hash, |&number| number == id.0) {
            entry.remove();
        }
    }

    fn vacate(&mut self, id: SlotId) {
        let slot = &mut self.slots[id.0 as usize];
        slot.state = State::Vacant;
        slot.bytes = 0;
        self.vacant.push(id.0);
    }
}

fn hash(hasher: &hashbrown::DefaultHashBuilder, key: &SlotKey) -> u64 {
    std::hash::BuildHasher::hash_one(hasher, key)
}

#[cfg(test)]
mod tests;
