//! How a finished file becomes a blob: its inode moves in, if nobody can write it any more; else it is copied.
//!
//! A file is moved only under proof: it has one name, it is ours or can be made ours, and a read lease
//! ([`file::lease`]) that is held from before it is hashed until after it has moved shows that nobody has it open
//! for writing or mapped. Whatever is missing for the proof means a copy, and the digest is that of the bytes
//! copied, so that a writer at work meanwhile changes which blob it is but never what a blob holds.

use std::fs::File;
use std::io::Seek;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;

use super::hash::{hash_file, hash_into};
use super::layout::{BLOB_MODE, blob_mtime};
use super::ledger::SlotKey;
use super::temporary::Temporary;
use super::{BlobPin, BlobStore, StoreError};
use crate::digest::{Digest, DigestFunction};
use crate::dir::{Dir, FileKind, Op, PathError, PathErrorExt, Stat, file};

/// The mode that lets the owner read a file whose mode does not.
const READABLE_MODE: u32 = 0o400;

/// How [`BlobStore::adopt`] took a file in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adopted {
    /// The inode itself became the blob.
    Moved,
    /// Its bytes were copied (or reflinked).
    Copied,
    /// The blob was here already.
    Present,
}

/// A file that is to be taken in.
struct Source<'a> {
    dir: &'a dyn Dir,
    name: &'a Path,
    file: File,
    stat: Stat,
}

impl BlobStore {
    /// Takes the finished file `name` of `dir` into the store (decision 6). Blocks; call on the pool.
    ///
    /// Moves the inode if nobody can still write it, else copies. The file may be gone from `dir` afterwards.
    pub fn adopt(
        self: &Arc<Self>,
        function: DigestFunction,
        dir: &dyn Dir,
        name: &Path,
    ) -> Result<(BlobPin, Adopted), StoreError> {
        let source = Source::open(dir, name)?;
        if source.stat.size_bytes == 0 {
            return Ok((BlobPin::of_empty(Digest::empty(function)), Adopted::Present));
        }
        if source.is_ours_alone() && file::lease(&source.file).is_ok() {
            let digest = hash_file(function, &source.file, source.stat.size_bytes, name)?;
            if source.is_unchanged(&digest)
                && let Some(adopted) = self.move_in(digest, &source)?
            {
                return Ok(adopted);
            }
        }
        self.copy_in(function, source)
    }

    /// Moves a file that is under lease; nothing if the proof fails after all. Blocks.
    fn move_in(
        self: &Arc<Self>,
        digest: Digest,
        source: &Source<'_>,
    ) -> Result<Option<(BlobPin, Adopted)>, StoreError> {
        if let Some(pin) = self.pin(&digest) {
            return Ok(Some((pin, Adopted::Present)));
        }
        let layout = &self.space.layout;
        // An action may have allocated more than it wrote.
        let disk_bytes = layout.disk_bytes(digest.size_bytes()).max(source.stat.disk_bytes);
        let reservation = match self.space.reserve_blocking(disk_bytes) {
            Ok(reservation) => reservation,
            // What took the space may have been the same blob.
            Err(error) => {
                return self.pin(&digest).map(|pin| Some((pin, Adopted::Present))).ok_or(error);
            }
        };
        let key = SlotKey::Blob(digest);
        let _guard = self.space.take_key(key);
        if let Some(pin) = self.pin(&digest) {
            return Ok(Some((pin, Adopted::Present)));
        }
        let mut moved = source.seal().and_then(|()| layout.move_in(source.dir, source.name, &key));
        if moved.as_ref().is_err_and(|error| error.errno == Errno::EEXIST) {
            // A file that the ledger does not know was never verified.
            layout.unlink(&key)?;
            moved = layout.move_in(source.dir, source.name, &key);
        }
        if moved.is_err() {
            return Ok(None);
        }
        if !(source.is_unchanged(&digest) && source.is_at(layout.locate(&key))) {
            layout.unlink(&key)?;
            return Ok(None);
        }
        let id = self.space.change(|state| state.insert(key, reservation));
        let pin = BlobPin::of_slot(self.space.clone(), digest, id);
        Ok(Some((pin, Adopted::Moved)))
    }

    /// Copies a file that somebody may be writing. Blocks.
    fn copy_in(
        self: &Arc<Self>,
        function: DigestFunction,
        mut source: Source<'_>,
    ) -> Result<(BlobPin, Adopted), StoreError> {
        let size_bytes = source.stat.size_bytes;
        let full = self.space.on_write(size_bytes);
        let layout = &self.space.layout;
        let reservation = self.space.reserve_blocking(layout.disk_bytes(size_bytes))?;
        let temporary = Temporary::create(layout, BLOB_MODE).map_err(&full)?;
        let digest = if file::reflink(&source.file, temporary.file()) {
            // It may have grown since its size was taken, beyond what is reserved.
            temporary.file().set_len(size_bytes).at(Op::Write, source.name)?;
            hash_file(function, &temporary.open_for_reading()?, size_bytes, source.name)?
        } else {
            source.file.rewind().at(Op::Read, source.name)?;
            hash_into(function, &source.file, size_bytes, &mut temporary.file(), source.name)
                .map_err(&full)?
        };
        if let Some(pin) = self.pin(&digest) {
            return Ok((pin, Adopted::Present));
        }
        Ok((self.space.publish(digest, temporary, reservation)?, Adopted::Copied))
    }
}

impl<'a> Source<'a> {
    fn open(dir: &'a dyn Dir, name: &'a Path) -> Result<Self, PathError> {
        let not_a_file = PathError { op: Op::Open, path: name.to_owned(), errno: Errno::EINVAL };
        // Before it is opened: opening a device can do things.
        let stat = dir.stat(name)?;
        if stat.kind != FileKind::File {
            return Err(not_a_file);
        }
        let file = match dir.open_file(name) {
            Err(error) if error.errno == Errno::EACCES && stat.owner.uid == file::own_owner().uid => {
                dir.set_mode(name, READABLE_MODE)?;
                dir.open_file(name)?
            }
            opened => opened?,
        };
        let stat = file::stat(&file, name)?;
        if stat.kind == FileKind::File { Ok(Self { dir, name, file, stat }) } else { Err(not_a_file) }
    }

    /// Whether it has one name and an owner that is us or that we can replace.
    fn is_ours_alone(&self) -> bool {
        let own = file::own_owner();
        self.stat.links == 1 && (self.stat.owner.uid == own.uid || own.uid == 0)
    }

    /// Whether it still is what was hashed under the lease, by no other name.
    fn is_unchanged(&self, digest: &Digest) -> bool {
        let stat = file::stat(&self.file, self.name);
        file::is_leased(&self.file)
            && stat.is_ok_and(|stat| stat.links == 1 && stat.size_bytes == digest.size_bytes())
    }

    /// Whether the name leads to it.
    fn is_at(&self, (dir, path): (&dyn Dir, std::path::PathBuf)) -> bool {
        let id = |stat: &Stat| (stat.device, stat.inode);
        dir.stat(&path).is_ok_and(|stat| id(&stat) == id(&self.stat))
    }

    /// Gives it the owner, mode and time of a blob.
    fn seal(&self) -> Result<(), PathError> {
        let own = file::own_owner();
        if self.stat.owner != own {
            file::set_owner(&self.file, own, self.name)?;
        }
        file::set_mode(&self.file, BLOB_MODE, self.name)?;
        file::set_mtime(&self.file, blob_mtime(), self.name)
    }
}
