//! How blobs get into trees: by a link to the shared inode, or as a private copy.
//!
//! What shares an inode has one mode and one modification time, and neither is ever changed: an executable is
//! another inode, made by copying when it is first wanted. A link is one system call and takes no lock; only
//! what that call refuses is looked at more closely.

use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;

use super::layout::{BLOB_MODE, VARIANT_MODE, blob_mtime};
use super::ledger::{SlotId, SlotKey};
use super::space::Space;
use super::temporary::Temporary;
use super::{BlobStore, StoreError};
use crate::digest::{Digest, FileKey};
use crate::dir::{Dir, PathError, file};

impl BlobStore {
    /// Gives the shared inode of `key` another name (blocks; call on the pool). The blob must be pinned.
    ///
    /// Makes the executable variant if there is none yet; renews an inode that has no link left (`EMLINK`);
    /// copies where a link cannot reach (`EXDEV`). Never for the empty blob, which has no inode.
    pub fn link(&self, key: &FileKey, to: &dyn Dir, to_path: &Path) -> Result<(), StoreError> {
        let slot_key = if key.executable { SlotKey::Variant(key.digest) } else { SlotKey::Blob(key.digest) };
        let (folder, path) = self.space.layout.locate(&slot_key);
        let link = || folder.link(&path, to, to_path);
        let Err(error) = link() else { return Ok(()) };
        match error.errno {
            // Somebody else has made it meanwhile, or it is the other folder that is missing.
            Errno::ENOENT if folder.stat(&path).is_ok() => Ok(link()?),
            Errno::ENOENT if key.executable => self.space.with_variant(&key.digest, link),
            Errno::ENOENT => {
                self.space.lose_blob(&key.digest);
                Err(StoreError::NotFound(key.digest))
            }
            Errno::EMLINK => self.space.renewed(slot_key, link),
            // Another file system, or one without hard links.
            Errno::EXDEV | Errno::EPERM => {
                let mode = if key.executable { VARIANT_MODE } else { BLOB_MODE };
                self.copy(&key.digest, to, to_path, mode)?;
                Ok(to.set_mtime(to_path, blob_mtime())?)
            }
            _ => Err(error.into()),
        }
    }

    /// Copies (or reflinks) a blob to a private file with exactly that mode (blocks; call on the pool).
    pub fn copy(&self, digest: &Digest, to: &dyn Dir, to_path: &Path, mode: u32) -> Result<(), StoreError> {
        let full = self.space.on_write(digest.size_bytes());
        if digest.is_empty() {
            to.create_file(to_path, mode).map_err(full)?;
            return Ok(());
        }
        let from = self.space.open_pinned(digest)?;
        let target = to.create_file(to_path, mode).map_err(&full)?;
        let remove = scopeguard::guard((), |()| {
            if let Err(error) = to.remove_file(to_path) {
                tracing::warn!(%error, "half of a copy is left");
            }
        });
        let copied = file::copy(&from, &target, digest.size_bytes(), to_path).map_err(&full)?;
        if copied != digest.size_bytes() {
            return Err(StoreError::NotFound(*digest));
        }
        scopeguard::ScopeGuard::into_inner(remove);
        Ok(())
    }
}

impl Space {
    /// Runs `link` when the variant of a blob is there, making it if need be. Blocks.
    fn with_variant(
        self: &Arc<Self>,
        digest: &Digest,
        link: impl Fn() -> Result<(), PathError>,
    ) -> Result<(), StoreError> {
        let key = SlotKey::Variant(*digest);
        let id = self.plan_blocking(key, digest)?;
        // The reference keeps the variant until it has its second name, which is the caller's.
        let _reference = scopeguard::guard(id, |id| self.change(|state| state.ledger.release(id)));
        let guard = self.take_key(key);
        // The name decides, not the ledger: a variant may have lost its file behind our back.
        let (folder, path) = self.layout.locate(&key);
        if folder.stat(&path).is_err() {
            let mut copy = self.copy_of(&SlotKey::Blob(*digest), digest, VARIANT_MODE)?;
            copy.publish(&key).map_err(self.on_write(digest.size_bytes()))?;
        }
        self.lock().ledger.made(id);
        drop(guard);
        Ok(link()?)
    }

    /// Refers to a variant, planning it with a reservation of its own if nobody did. Blocks.
    fn plan_blocking(self: &Arc<Self>, key: SlotKey, digest: &Digest) -> Result<SlotId, StoreError> {
        let planned = self.lock().ledger.pin_planned(&key);
        if let Some(id) = planned {
            return Ok(id);
        }
        let reservation = self.reserve_blocking(self.layout.disk_bytes(digest.size_bytes()))?;
        // Behind its eviction, if that is under way.
        let _guard = self.take_key(key);
        let planned = self.change(|state| match state.ledger.pin_planned(&key) {
            Some(id) => Err((id, reservation)),
            None => Ok(state.plan(key, reservation)),
        });
        Ok(planned.unwrap_or_else(|(id, _returned)| id))
    }

    /// Runs `link` when the inode of `key`, which has no link left, has been replaced by a fresh one. Blocks.
    fn renewed(
        self: &Arc<Self>,
        key: SlotKey,
        link: impl Fn() -> Result<(), PathError>,
    ) -> Result<(), StoreError> {
        let (SlotKey::Blob(digest) | SlotKey::Variant(digest)) = key else {
            unreachable!("records are not linked");
        };
        let mode = if matches!(key, SlotKey::Blob(_)) { BLOB_MODE } else { VARIANT_MODE };
        let reservation = self.reserve_blocking(self.layout.disk_bytes(digest.size_bytes()))?;
        let guard = self.take_key(key);
        match link() {
            Err(error) if error.errno == Errno::EMLINK => {}
            // Somebody else renewed it meanwhile.
            outcome => return Ok(outcome?),
        }
        let mut copy = self.copy_of(&key, &digest, mode)?;
        copy.publish(&key).map_err(self.on_write(digest.size_bytes()))?;
        // The old inode stays on the disk as long as the trees that link to it.
        self.change(|state| match state.ledger.pin(&key) {
            Some(id) => {
                let bytes = reservation.spend(state);
                state.ledger.enlarge(id, bytes);
                state.ledger.release(id);
                None
            }
            None => Some(reservation),
        });
        drop(guard);
        Ok(link()?)
    }

    /// Copies the inode of `from`, whose content has `digest`, to a temporary file. Blocks.
    fn copy_of(
        self: &Arc<Self>,
        from: &SlotKey,
        digest: &Digest,
        mode: u32,
    ) -> Result<Temporary, StoreError> {
        let full = self.on_write(digest.size_bytes());
        let source = match from {
            SlotKey::Blob(digest) => self.open_pinned(digest)?,
            key => self.layout.open_key(key)?,
        };
        let copy = Temporary::create(&self.layout, mode).map_err(&full)?;
        let path = self.layout.locate(from).1;
        let copied = file::copy(&source, copy.file(), digest.size_bytes(), &path).map_err(&full)?;
        if copied == digest.size_bytes() { Ok(copy) } else { Err(StoreError::NotFound(*digest)) }
    }

    /// Opens a blob that somebody has pinned; a damaged one is dropped. Blocks.
    fn open_pinned(self: &Arc<Self>, digest: &Digest) -> Result<std::fs::File, StoreError> {
        let opened = self.open_blob(digest);
        if matches!(opened, Err(StoreError::NotFound(_))) {
            self.lose_blob(digest);
        }
        opened
    }

    fn lose_blob(self: &Arc<Self>, digest: &Digest) {
        let id = self.lock().ledger.pin(&SlotKey::Blob(*digest));
        if let Some(id) = id {
            super::BlobPin::of_slot(self.clone(), *digest, id).lose();
        }
    }
}
