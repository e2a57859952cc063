//! Counted references: while they live, what they refer to is not evicted.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::ledger::{SlotId, SlotKey};
use super::space::{Reservation, Space};
use super::{BlobStore, Moment, StoreError};
use crate::digest::{Digest, FileKey};

/// References that are taken or given back in one stretch under the lock.
const KEYS_A_STRETCH: usize = 256;

/// A counted reference to one blob: while it lives, the blob is not evicted.
pub struct BlobPin {
    digest: Digest,
    /// Where the reference is counted; the empty blob has no slot.
    slot: Option<(Arc<Space>, SlotId)>,
}

impl BlobPin {
    /// Which blob.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(super) fn of_empty(digest: Digest) -> Self {
        Self { digest, slot: None }
    }

    /// Takes over a reference that was counted already.
    pub(super) fn of_slot(space: Arc<Space>, digest: Digest, id: SlotId) -> Self {
        Self { digest, slot: Some((space, id)) }
    }

    /// Forgets the blob: its file is not what the digest says. Blocks.
    pub(super) fn lose(&self) {
        if let Some((space, id)) = &self.slot {
            tracing::warn!(digest = ?self.digest, "a blob is damaged and is dropped");
            space.lose(&SlotKey::Blob(self.digest), *id);
        }
    }
}

impl Clone for BlobPin {
    fn clone(&self) -> Self {
        if let Some((space, id)) = &self.slot {
            space.lock().ledger.retain(*id);
        }
        Self { digest: self.digest, slot: self.slot.clone() }
    }
}

impl Drop for BlobPin {
    fn drop(&mut self) {
        if let Some((space, id)) = &self.slot {
            space.change(|state| state.ledger.release(*id));
        }
    }
}

impl fmt::Debug for BlobPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BlobPin").field(&self.digest).finish()
    }
}

/// Counted references to many blobs and variants, cheap a piece: what a tree holds.
pub struct BlobPins {
    space: Arc<Space>,
    slots: Vec<SlotId>,
    /// Set when they are leaving: the last use.
    used_at: OnceLock<Moment>,
}

impl BlobPins {
    fn new(space: Arc<Space>) -> Self {
        Self { space, slots: Vec::new(), used_at: OnceLock::new() }
    }

    /// Announces that they will be dropped soon, and were last used at `moment`: with that they return to the order of
    /// use. The store counts on what nobody else holds.
    pub fn leave(&self, moment: Moment) {
        if self.used_at.set(moment).is_ok() {
            for slots in self.slots.chunks(KEYS_A_STRETCH) {
                let mut state = self.space.lock();
                for &id in slots {
                    state.ledger.leave(id);
                }
            }
        }
    }
}

impl Drop for BlobPins {
    fn drop(&mut self) {
        let used_at = self.used_at.get().copied();
        for slots in self.slots.chunks(KEYS_A_STRETCH) {
            self.space.change(|state| match used_at {
                Some(moment) => slots.iter().for_each(|&id| state.ledger.release_left(id, moment)),
                None => slots.iter().for_each(|&id| state.ledger.release(id)),
            });
        }
    }
}

impl fmt::Debug for BlobPins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobPins").field("references", &self.slots.len()).finish_non_exhaustive()
    }
}

/// Bytes on the disk that are no blob (a tree's directories), counted while this lives.
#[derive(Debug)]
pub struct Charge {
    space: Arc<Space>,
    bytes: u64,
    is_leaving: AtomicBool,
}

impl Charge {
    pub(super) fn of(reservation: Reservation, space: &Arc<Space>) -> Self {
        let bytes = space.change(|state| reservation.spend(state));
        Self { space: space.clone(), bytes, is_leaving: AtomicBool::new(false) }
    }

    /// Announces that it will be dropped soon. The store counts on it.
    pub fn leave(&self) {
        if !self.is_leaving.swap(true, Ordering::Relaxed) {
            self.space.lock().ledger.leave_reserved(self.bytes);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let is_leaving = *self.is_leaving.get_mut();
        self.space.change(|state| {
            if is_leaving {
                state.ledger.unreserve_left(self.bytes);
            } else {
                state.ledger.unreserve(self.bytes);
            }
        });
    }
}

/// Why a tree's files cannot be pinned.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PinTreeError {
    /// Blobs that are not here, each once, in the order of the request.
    #[error("{} blobs are not in the store", .0.len())]
    Missing(Vec<Digest>),
    /// There is no space for the executable variants that are yet to be made.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BlobStore {
    /// Pins a blob and marks it used; nothing if it is not here. The empty blob is always here.
    pub fn pin(&self, digest: &Digest) -> Option<BlobPin> {
        if digest.is_empty() {
            return Some(BlobPin::of_empty(*digest));
        }
        let id = self.space.lock().ledger.pin(&SlotKey::Blob(*digest))?;
        Some(BlobPin::of_slot(self.space.clone(), *digest, id))
    }

    /// Pins every blob, or says which are not here.
    pub fn pin_all(&self, digests: &[Digest]) -> Result<BlobPins, Vec<Digest>> {
        let mut pins = BlobPins::new(self.space.clone());
        let missing = self.pin_into(&mut pins, digests.iter().copied());
        if missing.is_empty() { Ok(pins) } else { Err(missing) }
    }

    /// Pins what a tree is made of: the blobs of `directories` and `keys`, and the inodes of `keys`.
    ///
    /// Space for executable variants that do not exist yet is reserved, so that [`BlobStore::link`] finds it; the
    /// references cover them as soon as they are made.
    pub async fn pin_tree(&self, directories: &[Digest], keys: &[FileKey]) -> Result<BlobPins, PinTreeError> {
        let mut pins = self.pin_blobs(directories, keys).map_err(PinTreeError::Missing)?;
        self.plan_into(&mut pins, variants(keys)).await?;
        Ok(pins)
    }

    /// Like [`BlobStore::pin_tree`], if all of it is here, the variants too.
    pub(crate) fn pin_tree_now(&self, directories: &[Digest], keys: &[FileKey]) -> Option<BlobPins> {
        let mut pins = self.pin_blobs(directories, keys).ok()?;
        pin_planned(&self.space, &mut pins, &variants(keys)).is_empty().then_some(pins)
    }

    /// Pins the blobs of `directories` and `keys`, or says which are not here.
    fn pin_blobs(&self, directories: &[Digest], keys: &[FileKey]) -> Result<BlobPins, Vec<Digest>> {
        let mut pins = BlobPins::new(self.space.clone());
        let files = keys.iter().map(|key| key.digest);
        let missing = self.pin_into(&mut pins, directories.iter().copied().chain(files));
        if missing.is_empty() { Ok(pins) } else { Err(missing) }
    }

    /// Those of `digests` that are not here, each once; the others are marked used. One pass, no I/O.
    pub fn find_missing(&self, digests: &[Digest]) -> Vec<Digest> {
        let mut missing = Missing::default();
        for digests in digests.chunks(KEYS_A_STRETCH) {
            let mut state = self.space.lock();
            for digest in digests.iter().filter(|digest| !digest.is_empty()) {
                if !state.ledger.touch(&SlotKey::Blob(*digest)) {
                    missing.add(*digest);
                }
            }
        }
        missing.in_order
    }

    /// Adds references to blobs; those that are not here are returned.
    fn pin_into(&self, pins: &mut BlobPins, digests: impl Iterator<Item = Digest>) -> Vec<Digest> {
        let mut missing = Missing::default();
        let mut digests = digests.filter(|digest| !digest.is_empty()).peekable();
        while digests.peek().is_some() {
            let mut state = self.space.lock();
            for digest in digests.by_ref().take(KEYS_A_STRETCH) {
                match state.ledger.pin(&SlotKey::Blob(digest)) {
                    Some(id) => pins.slots.push(id),
                    None => missing.add(digest),
                }
            }
        }
        missing.in_order
    }

    /// Adds references to variants, planning those that do not exist.
    async fn plan_into(&self, pins: &mut BlobPins, variants: Vec<SlotKey>) -> Result<(), StoreError> {
        let mut absent = pin_planned(&self.space, pins, &variants);
        if absent.is_empty() {
            return Ok(());
        }
        // However often a tree has a file, one variant is made of it.
        absent.sort_unstable();
        absent.dedup();
        let disk_bytes = |key: &SlotKey| match key {
            SlotKey::Variant(digest) => self.space.layout.disk_bytes(digest.size_bytes()),
            _ => 0,
        };
        let total_bytes = absent.iter().map(disk_bytes).fold(0, u64::saturating_add);
        let mut reservation = self.space.reserve(total_bytes).await?;
        for key in absent {
            let part = reservation.split(disk_bytes(&key));
            pins.slots.push(self.plan(key, part).await);
        }
        Ok(())
    }

    /// Refers to a variant, which is planned unless somebody else was faster.
    async fn plan(&self, key: SlotKey, mut reservation: Reservation) -> SlotId {
        loop {
            let planned = self.space.change(|state| match state.ledger.pin_planned(&key) {
                Some(id) => Ok((id, Some(reservation))),
                // Gone from the ledger, and perhaps not from the disk yet.
                None if state.is_taken(&key) => Err(reservation),
                None => Ok((state.plan(key, reservation), None)),
            });
            match planned {
                Ok((id, _returned)) => return id,
                Err(unspent) => reservation = unspent,
            }
            let space = self.space.clone();
            self.space.environment.io.run(move || drop(space.take_key(key))).await;
        }
    }
}

/// The executable variants among `keys`.
fn variants(keys: &[FileKey]) -> Vec<SlotKey> {
    let executables = keys.iter().filter(|key| key.executable && !key.digest.is_empty());
    executables.map(|key| SlotKey::Variant(key.digest)).collect()
}

/// Adds references to inodes that exist or are planned; the others are returned.
fn pin_planned(space: &Space, pins: &mut BlobPins, keys: &[SlotKey]) -> Vec<SlotKey> {
    let mut absent = Vec::new();
    for keys in keys.chunks(KEYS_A_STRETCH) {
        let mut state = space.lock();
        for key in keys {
            match state.ledger.pin_planned(key) {
                Some(id) => pins.slots.push(id),
                None => absent.push(*key),
            }
        }
    }
    absent
}

/// Digests in the order in which they were missed, each once.
#[derive(Default)]
struct Missing {
    in_order: Vec<Digest>,
    seen: std::collections::HashSet<Digest>,
}

impl Missing {
    fn add(&mut self, digest: Digest) {
        if self.seen.insert(digest) {
            self.in_order.push(digest);
        }
    }
}
