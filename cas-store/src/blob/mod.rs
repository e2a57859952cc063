//! The blob store: one file a blob, counted once an inode, verified before it is visible.
//!
//! The rooms: `ledger` knows what lies on the disk and what may go, in memory alone, and `order` what was used when;
//! `space` holds them under its lock and unlinks; `relief` is who else can give space back; `flight` says who writes
//! what; `layout` names the files, `temporary` are those without a name yet; `ingest`, `writer`, `partial` and
//! `adopt` let bytes in, `read` and `variant` let them out, `recent` what is small and just came; `pin` keeps them,
//! `holding` says what can be kept together; `recover` finds them again after a start.
//!
//! Invariants: a name in the store leads to bytes that were verified; a shared inode is never written, nor its mode
//! or time changed; what is referred to is not unlinked; what is on the disk is in the ledger before it is
//! written and until its last name is gone. The empty blob is always here and has no file.
//!
//! *Crash safety*: a file gets its name when it is complete, by one system call. Nothing is synced: a cache that a
//! crash of the machine tears is verified or thrown away ([`crate::root`]).

mod adopt;
mod flight;
mod hash;
mod holding;
mod ingest;
pub(crate) mod layout;
pub(crate) mod ledger;
mod order;
mod partial;
mod pin;
mod read;
mod recent;
mod recover;
mod relief;
pub(crate) mod space;
pub(crate) mod temporary;
mod variant;
mod writer;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

pub use adopt::Adopted;
pub use holding::Holding;
pub use ingest::Ingest;
pub use layout::{BLOB_MTIME, blob_mtime};
pub use order::Moment;
pub use partial::PartialBlob;
pub use pin::{BlobPin, BlobPins, Charge, PinTreeError};
pub use read::{BlobReader, READ_CHUNK_BYTES};
pub use relief::{IdleHolder, PressureRelief};
pub use writer::BlobWriter;

use crate::digest::Digest;
use crate::dir::{Dir, PathError};
use crate::io::Environment;
use crate::root::{StoreRoot, Trust};
use layout::Layout;
use space::Space;

/// How the store may behave.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// What blobs, variants, records and trees may take on the disk together, in bytes.
    pub size_bytes_max: u64,
}

/// Why the store could not do something.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The content is not what its digest says: the sender's error.
    #[error("content does not match digest {expected}: {found}")]
    Mismatch {
        /// What was announced.
        expected: Digest,
        /// What came: another digest, or "more than N bytes".
        found: String,
    },
    /// The blob is larger than all that the store may take.
    #[error("blob {digest} is too large: at most {size_bytes_max} bytes are stored")]
    TooLarge {
        /// What was announced.
        digest: Digest,
        /// The size of the largest blob.
        size_bytes_max: u64,
    },
    /// The disk, or the store's share of it, is full of things in use.
    #[error("no space for {needed_bytes} bytes: {reason}")]
    NoSpace {
        /// What was needed.
        needed_bytes: u64,
        /// What is full.
        reason: String,
    },
    /// What is to be stored, with what has to be there at the same time, is more than all that the store may take: it
    /// will not fit later either.
    #[error("no space for {needed_bytes} bytes: the store takes {limit_bytes} in all")]
    NeverFits {
        /// What was needed in all.
        needed_bytes: u64,
        /// What the store may take.
        limit_bytes: u64,
    },
    /// The blob is not here, or not any more.
    #[error("blob {0} is not in the store")]
    NotFound(Digest),
    /// A file operation failed.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// Every blob on this disk.
#[derive(Debug)]
pub struct BlobStore {
    pub(crate) space: Arc<Space>,
}

/// What lay in the folder when the store was opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recovered {
    /// Blobs found.
    pub blobs: u64,
    /// What they and the rest take on the disk.
    pub size_bytes: u64,
}

/// Figures for the status line and for tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Blobs, the empty one not among them.
    pub blobs: u64,
    /// What everything takes on the disk, in bytes, each inode once.
    pub size_bytes: u64,
    /// Files written by ingests since the start.
    pub writes: u64,
    /// Victims unlinked since the start.
    pub evictions: u64,
}

impl BlobStore {
    /// Opens the store in `root`, recovering what the last owner left. Blocks, longest where it must verify.
    pub fn open(
        root: &StoreRoot,
        options: StoreOptions,
        environment: Environment,
    ) -> Result<(Arc<Self>, Recovered), StoreError> {
        Self::open_in(root.dir(), root.trust(), options, environment)
    }

    fn open_in(
        root: &dyn Dir,
        trust: Trust,
        options: StoreOptions,
        environment: Environment,
    ) -> Result<(Arc<Self>, Recovered), StoreError> {
        let space = Space::new(Layout::open(root)?, options.size_bytes_max, environment);
        let recovered = recover::recover(&space, trust)?;
        Ok((Arc::new(Self { space }), recovered))
    }

    /// Changes what everything may take on the disk together; what is above that goes, oldest first.
    pub fn limit_to(&self, size_bytes_max: u64) {
        self.space.change(|state| state.ledger.set_limit_bytes(size_bytes_max));
    }

    /// Gives what `holder` keeps idle its place in the order of use.
    pub fn on_idle(&self, holder: Weak<dyn IdleHolder>) {
        self.space.on_idle(holder);
    }

    /// The moment of the last use: what is used from now on is used later.
    pub fn moment(&self) -> Moment {
        self.space.lock().ledger.now()
    }

    /// Asks `relief` for space when nothing is left that nobody uses.
    pub fn on_pressure(&self, relief: Weak<dyn PressureRelief>) {
        self.space.on_pressure(relief);
    }

    /// Counts `bytes` on the disk that are no blob, making room first.
    pub async fn charge(self: &Arc<Self>, bytes: u64) -> Result<Charge, StoreError> {
        let reservation = self.space.reserve(bytes).await?;
        Ok(Charge::of(reservation, &self.space))
    }

    /// Like [`BlobStore::charge`], if nothing has to be waited for.
    pub(crate) fn charge_now(self: &Arc<Self>, bytes: u64) -> Option<Charge> {
        Some(Charge::of(self.space.reserve_now(bytes)?, &self.space))
    }

    /// The size of the largest blob that can ever be stored.
    pub fn blob_size_bytes_max(&self) -> u64 {
        let block_bytes = self.space.layout.disk_bytes(1);
        self.space.lock().ledger.limit_bytes() / block_bytes * block_bytes
    }

    /// Refuses what cannot fit, before any of it is sent.
    fn check_size(&self, digest: Digest) -> Result<(), StoreError> {
        let size_bytes_max = self.blob_size_bytes_max();
        if digest.size_bytes() > size_bytes_max {
            return Err(StoreError::TooLarge { digest, size_bytes_max });
        }
        Ok(())
    }

    /// Figures.
    pub fn stats(&self) -> StoreStats {
        let state = self.space.lock();
        StoreStats {
            blobs: state.ledger.blobs(),
            size_bytes: state.ledger.used_bytes(),
            writes: self.space.writes.load(Ordering::Relaxed),
            evictions: self.space.evictions(),
        }
    }
}
