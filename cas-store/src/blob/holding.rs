//! What somebody has to hold of the store at one time. What does not fit beside it never will, whoever else gives way.

use std::collections::HashSet;
use std::sync::Arc;

use super::ledger::SlotKey;
use super::space::Space;
use super::{BlobStore, StoreError};
use crate::digest::{Digest, FileKey};

/// What somebody has to hold at one time, by the sizes in the digests; each inode counts once.
#[derive(Debug)]
pub struct Holding {
    space: Arc<Space>,
    inodes: HashSet<SlotKey>,
    bytes: u64,
}

impl Holding {
    /// No blob of `store` yet, but `bytes` that are none.
    pub fn new(store: &BlobStore, bytes: u64) -> Self {
        Self { space: store.space.clone(), inodes: HashSet::new(), bytes }
    }

    /// Adds a blob.
    pub fn add(&mut self, digest: &Digest) {
        self.add_inode(SlotKey::Blob(*digest), digest);
    }

    /// Adds what a file of a tree is made of: its blob, and its inode where that is another one.
    pub(crate) fn add_file(&mut self, key: &FileKey) {
        self.add(&key.digest);
        if key.executable {
            self.add_inode(SlotKey::Variant(key.digest), &key.digest);
        }
    }

    fn add_inode(&mut self, inode: SlotKey, digest: &Digest) {
        if self.inodes.insert(inode) {
            let disk_bytes = self.space.layout.disk_bytes(digest.size_bytes());
            self.bytes = self.bytes.saturating_add(disk_bytes);
        }
    }

    /// Fails if the store can never hold all of it, and `more_bytes` beside it.
    pub fn check(&self, more_bytes: u64) -> Result<(), StoreError> {
        let limit_bytes = self.space.lock().ledger.limit_bytes();
        let needed_bytes = self.bytes.saturating_add(more_bytes);
        if needed_bytes > limit_bytes {
            return Err(StoreError::NeverFits { needed_bytes, limit_bytes });
        }
        Ok(())
    }

    /// What `error` comes to for whoever has to hold all of it: a shortage that no waiting ends is none that passes.
    pub fn judge(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::NoSpace { needed_bytes, .. } => self.check(needed_bytes).err().unwrap_or(error),
            error => error,
        }
    }
}
