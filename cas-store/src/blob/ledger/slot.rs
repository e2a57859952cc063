//! What the ledger knows of one inode.

use crate::blob::order::{Place, Placed};
use crate::digest::Digest;
use crate::record::RecordKey;

/// What names one inode of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum SlotKey {
    /// A blob.
    Blob(Digest),
    /// The executable variant of a blob.
    Variant(Digest),
    /// A record.
    Record(RecordKey),
}

impl SlotKey {
    pub(super) fn is_blob(&self) -> bool {
        matches!(self, Self::Blob(_))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The number is unused.
    Vacant,
    /// Somebody wants the inode and its bytes are reserved, but there is none yet.
    Planned,
    /// The inode is there.
    Ready,
    /// The inode lost its name while somebody refers to it; the key finds it no more.
    Lost,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) key: SlotKey,
    pub(super) state: State,
    pub(super) references: u32,
    /// Those of the references that were announced to be given back.
    pub(super) leaving: u32,
    pub(super) bytes: u64,
    pub(super) place: Place,
}

impl Slot {
    /// What will be free when those who are leaving have left.
    pub(super) fn leaving_bytes(&self) -> u64 {
        if self.references > 0 && self.leaving == self.references { self.bytes } else { 0 }
    }
}

impl Placed for Slot {
    fn place(&self) -> &Place {
        &self.place
    }

    fn place_mut(&mut self) -> &mut Place {
        &mut self.place
    }
}
