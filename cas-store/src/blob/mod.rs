//! The blob store: one file a blob, counted once an inode, verified before it is visible.

use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;

use crate::digest::{Digest, DigestFunction, FileKey};
use crate::dir::{Dir, PathError};
use crate::io::Environment;
use crate::root::StoreRoot;

/// How the store may behave.
#[derive(Clone, Debug)]
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
    /// The disk, or the store's share of it, is full of things in use.
    #[error("no space for {needed_bytes} bytes: {reason}")]
    NoSpace {
        /// What was needed.
        needed_bytes: u64,
        /// What is full.
        reason: String,
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
    _private: (),
}

/// A counted reference to one blob: while it lives, the blob is not evicted.
#[derive(Clone, Debug)]
pub struct BlobPin {
    digest: Digest,
}

impl BlobPin {
    /// Which blob.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

/// Counted references to many blobs and variants, cheap a piece: what a tree holds.
#[derive(Debug)]
pub struct BlobPins {
    _private: (),
}

/// Bytes on the disk that are no blob (a tree's directories), counted while this lives.
#[derive(Debug)]
pub struct Charge {
    _private: (),
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

/// How an ingest begins.
#[derive(Debug)]
pub enum Ingest {
    /// The blob is here already; nothing needs to be sent.
    Present(BlobPin),
    /// It is not: write it.
    Write(BlobWriter),
}

/// A blob being written; dropped unfinished, it leaves nothing behind.
#[derive(Debug)]
pub struct BlobWriter {
    _private: (),
}

impl BlobWriter {
    /// The number of bytes written.
    pub fn written_bytes(&self) -> u64 {
        todo!()
    }

    /// Appends `data`. Fails at once when it is more than the digest's size.
    pub async fn write(&mut self, data: Bytes) -> Result<(), StoreError> {
        todo!("{}", data.len())
    }

    /// Verifies length and hash, and makes the blob visible.
    pub async fn finish(self) -> Result<BlobPin, StoreError> {
        todo!()
    }
}

/// A blob's bytes as a stream of chunks; it holds the blob's pin.
#[derive(Debug)]
pub struct BlobReader {
    _private: (),
}

impl Stream for BlobReader {
    type Item = Result<Bytes, StoreError>;

    fn poll_next(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        todo!()
    }
}

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

impl BlobStore {
    /// Opens the store in `root`, recovering what the last owner left.
    pub fn open(
        root: &StoreRoot,
        options: StoreOptions,
        environment: Environment,
    ) -> Result<(Arc<Self>, Recovered), StoreError> {
        todo!("{root:?} {options:?} {environment:?}")
    }

    /// Pins a blob and marks it used; nothing if it is not here. The empty blob is always here.
    pub fn pin(&self, digest: &Digest) -> Option<BlobPin> {
        todo!("{digest}")
    }

    /// Pins every blob, or says which are not here.
    pub fn pin_all(&self, digests: &[Digest]) -> Result<BlobPins, Vec<Digest>> {
        todo!("{digests:?}")
    }

    /// Those of `digests` that are not here, each once; the others are marked used. One pass, no I/O.
    pub fn find_missing(&self, digests: &[Digest]) -> Vec<Digest> {
        todo!("{digests:?}")
    }

    /// Stores a blob that is in memory.
    pub async fn put(self: &Arc<Self>, digest: Digest, data: Bytes) -> Result<BlobPin, StoreError> {
        todo!("{digest} {}", data.len())
    }

    /// Stores many small blobs by one hop to the pool; one outcome each, in order.
    pub async fn put_many(self: &Arc<Self>, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<BlobPin, StoreError>> {
        todo!("{}", blobs.len())
    }

    /// Begins a streamed ingest. Waits while another ingest of the digest makes progress.
    pub async fn ingest(self: &Arc<Self>, digest: Digest) -> Result<Ingest, StoreError> {
        todo!("{digest}")
    }

    /// Takes the finished file `name` of `dir` into the store (decision 6). Blocks; call on the pool.
    ///
    /// Moves the inode if nobody can still write it, else copies. The file may be gone from `dir` afterwards.
    pub fn adopt(
        self: &Arc<Self>,
        function: DigestFunction,
        dir: &dyn Dir,
        name: &Path,
    ) -> Result<(BlobPin, Adopted), StoreError> {
        todo!("{function} {name:?} {:?}", dir.fd())
    }

    /// Reads a part of a blob into memory; `range` is cut at the blob's end.
    pub async fn read(self: &Arc<Self>, pin: &BlobPin, range: Range<u64>) -> Result<Bytes, StoreError> {
        todo!("{pin:?} {range:?}")
    }

    /// Reads many small blobs whole, by one hop to the pool; `None` for those not here. In order.
    pub async fn read_many(self: &Arc<Self>, digests: Vec<Digest>) -> Result<Vec<Option<Bytes>>, StoreError> {
        todo!("{digests:?}")
    }

    /// Streams a blob from `offset`, at most `limit` bytes.
    pub fn reader(self: &Arc<Self>, pin: BlobPin, offset: u64, limit: u64) -> BlobReader {
        todo!("{pin:?} {offset} {limit}")
    }

    /// Gives the shared inode of `key` another name (blocks; call on the pool). The blob must be pinned.
    ///
    /// Makes the executable variant if there is none yet; renews an inode that has no link left (`EMLINK`);
    /// copies where a link cannot reach (`EXDEV`). Never for the empty blob, which has no inode.
    pub fn link(&self, key: &FileKey, to: &dyn Dir, to_path: &Path) -> Result<(), StoreError> {
        todo!("{key:?} {to_path:?} {:?}", to.fd())
    }

    /// Copies (or reflinks) a blob to a private file with exactly that mode (blocks; call on the pool).
    pub fn copy(&self, digest: &Digest, to: &dyn Dir, to_path: &Path, mode: u32) -> Result<(), StoreError> {
        todo!("{digest} {to_path:?} {mode} {:?}", to.fd())
    }

    /// Counts `bytes` on the disk that are no blob, making room first.
    pub async fn charge(self: &Arc<Self>, bytes: u64) -> Result<Charge, StoreError> {
        todo!("{bytes}")
    }

    /// Figures.
    pub fn stats(&self) -> StoreStats {
        todo!()
    }
}
