//! How blobs go out: by range, in batches, or as a stream. A whole blob is in memory only where the caller asks.
//!
//! A file that has not the size of its digest was damaged: it is dropped, and the blob is not here. One that has not
//! the time which every blob bears was touched by somebody else, and is verified before anything is read from it.

use std::fmt;
use std::fs::File;
use std::io::Seek as _;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use nix::errno::Errno;

use super::hash::hash_file;
use super::layout::blob_mtime;
use super::ledger::SlotKey;
use super::space::Space;
use super::{BlobPin, BlobStore, StoreError};
use crate::digest::Digest;
use crate::dir::{Op, PathErrorExt, file};

/// What a stream reads at once, and so what it holds in memory.
pub const READ_CHUNK_BYTES: u64 = 256 << 10;

/// How many streams keep their file open between chunks. The others open it anew, so that streams which nobody reads
/// from take no open files from those that need them.
const FILES_KEPT_MAX: usize = 64;

/// A blob's bytes as a stream of chunks of at most [`READ_CHUNK_BYTES`]; it holds the blob's pin.
pub struct BlobReader {
    space: Arc<Space>,
    pin: BlobPin,
    left: Range<u64>,
    file: Option<KeptFile>,
    chunk: Option<BoxFuture<'static, Result<Chunk, StoreError>>>,
}

/// Bytes, and the file that the next ones are in, if there was room to keep it open.
type Chunk = (Option<KeptFile>, Bytes);

/// A file that stays open for the next chunk, and is counted.
struct KeptFile {
    file: File,
    space: Arc<Space>,
}

impl KeptFile {
    fn keep(file: File, space: &Arc<Space>) -> Option<Self> {
        let more = |kept: usize| (kept < FILES_KEPT_MAX).then_some(kept + 1);
        space.files_kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self { file, space: space.clone() })
    }
}

impl Drop for KeptFile {
    fn drop(&mut self) {
        self.space.files_kept.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Stream for BlobReader {
    type Item = Result<Bytes, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.left.is_empty() {
            return Poll::Ready(None);
        }
        let chunk = this.chunk.get_or_insert_with(|| {
            let (space, pin, file) = (this.space.clone(), this.pin.clone(), this.file.take());
            let end = this.left.end.min(this.left.start + READ_CHUNK_BYTES);
            let range = this.left.start..end;
            Box::pin(async move {
                let io = space.environment.io.clone();
                io.run(move || space.read_on(&pin, file, range)).await
            })
        });
        let outcome = ready!(chunk.as_mut().poll(context));
        this.chunk = None;
        Poll::Ready(Some(match outcome {
            Ok((file, bytes)) => {
                this.file = file;
                this.left.start += bytes.len() as u64;
                Ok(bytes)
            }
            Err(error) => {
                this.left = 0..0;
                Err(error)
            }
        }))
    }
}

impl fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobReader").field("pin", &self.pin).field("left", &self.left).finish_non_exhaustive()
    }
}

impl BlobStore {
    /// Reads a part of a blob into memory; `range` is cut at the blob's end.
    pub async fn read(self: &Arc<Self>, pin: &BlobPin, range: Range<u64>) -> Result<Bytes, StoreError> {
        let range = cut(&range, pin.digest());
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        if let Some(blob) = self.space.in_memory(pin) {
            let place = |at| usize::try_from(at).expect("small");
            return Ok(blob.slice(place(range.start)..place(range.end)));
        }
        let (space, pin) = (self.space.clone(), pin.clone());
        let read = move || space.read_range(&pin, range);
        self.space.environment.io.run(read).await
    }

    /// Reads many small blobs whole, by one hop to the pool at most; `None` for those not here. In order.
    pub async fn read_many(self: &Arc<Self>, digests: Vec<Digest>) -> Result<Vec<Option<Bytes>>, StoreError> {
        let pins: Vec<_> = digests.iter().map(|digest| self.pin(digest)).collect();
        let in_memory = |pin: &Option<_>| match pin {
            None => Some(None),
            Some(pin) => self.space.in_memory(pin).map(Some),
        };
        if let Some(blobs) = pins.iter().map(in_memory).collect() {
            return Ok(blobs);
        }
        let space = self.space.clone();
        let read = move || pins.into_iter().map(|pin| space.read_whole(pin)).collect();
        self.space.environment.io.run(read).await
    }

    /// Reads a small blob whole; nothing if it is not here. Blocks; call on the pool.
    pub fn read_now(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        self.space.read_whole(self.pin(digest))
    }

    /// Streams a blob from `offset`, at most `limit` bytes.
    pub fn reader(self: &Arc<Self>, pin: BlobPin, offset: u64, limit: u64) -> BlobReader {
        let left = cut(&(offset..offset.saturating_add(limit)), pin.digest());
        BlobReader { space: self.space.clone(), pin, left, file: None, chunk: None }
    }
}

impl Space {
    /// Opens the file of a blob, if it is one. Blocks.
    pub(super) fn open_blob(self: &Arc<Self>, digest: &Digest) -> Result<File, StoreError> {
        let (dir, path) = self.layout.locate(&SlotKey::Blob(*digest));
        let file = match dir.open_file(&path) {
            Err(error) if error.errno == Errno::ENOENT => return Err(StoreError::NotFound(*digest)),
            opened => opened?,
        };
        let stat = file::stat(&file, &path)?;
        if stat.size_bytes != digest.size_bytes() {
            return Err(StoreError::NotFound(*digest));
        }
        if stat.mtime == blob_mtime() { Ok(file) } else { verified(file, digest, &path) }
    }

    /// Reads one chunk of a stream, and keeps the file for the next one if there is one.
    fn read_on(
        self: &Arc<Self>,
        pin: &BlobPin,
        file: Option<KeptFile>,
        range: Range<u64>,
    ) -> Result<Chunk, StoreError> {
        let is_last = range.end == pin.digest().size_bytes();
        if let Some(kept) = file {
            let bytes = lose_if_gone(pin, || self.read_at(pin.digest(), &kept.file, range))?;
            return Ok((Some(kept), bytes));
        }
        lose_if_gone(pin, || {
            let file = self.open_blob(pin.digest())?;
            let bytes = self.read_at(pin.digest(), &file, range)?;
            Ok((if is_last { None } else { KeptFile::keep(file, self) }, bytes))
        })
    }

    fn read_range(self: &Arc<Self>, pin: &BlobPin, range: Range<u64>) -> Result<Bytes, StoreError> {
        lose_if_gone(pin, || {
            let file = self.open_blob(pin.digest())?;
            self.read_at(pin.digest(), &file, range)
        })
    }

    fn read_at(&self, digest: &Digest, file: &File, range: Range<u64>) -> Result<Bytes, StoreError> {
        let len = usize::try_from(range.end - range.start).expect("64-bit only");
        let mut bytes = vec![0; len];
        match file.read_exact_at(&mut bytes, range.start) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(StoreError::NotFound(*digest))
            }
            outcome => {
                outcome.at(Op::Read, self.layout.locate(&SlotKey::Blob(*digest)).1)?;
                Ok(bytes.into())
            }
        }
    }

    /// A blob that can be had without its file.
    fn in_memory(&self, pin: &BlobPin) -> Option<Bytes> {
        if pin.digest().is_empty() { Some(Bytes::new()) } else { self.recent.get(pin.digest()) }
    }

    fn read_whole(self: &Arc<Self>, pin: Option<BlobPin>) -> Result<Option<Bytes>, StoreError> {
        let Some(pin) = pin else { return Ok(None) };
        if let Some(blob) = self.in_memory(&pin) {
            return Ok(Some(blob));
        }
        match self.read_range(&pin, 0..pin.digest().size_bytes()) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn lose_if_gone<T>(pin: &BlobPin, read: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let outcome = read();
    if matches!(outcome, Err(StoreError::NotFound(_))) {
        pin.lose();
    }
    outcome
}

/// Takes back a file whose time was changed, if nothing else was. Blocks.
fn verified(mut file: File, digest: &Digest, path: &Path) -> Result<File, StoreError> {
    if hash_file(digest.function(), &file, digest.size_bytes(), path)? != *digest {
        return Err(StoreError::NotFound(*digest));
    }
    file::set_mtime(&file, blob_mtime(), path)?;
    file.rewind().at(Op::Read, path)?;
    Ok(file)
}

fn cut(range: &Range<u64>, digest: &Digest) -> Range<u64> {
    let size_bytes = digest.size_bytes();
    range.start.min(size_bytes)..range.end.min(size_bytes)
}
