//! The beginning of a blob, set aside until its sender comes back: it holds a file that nobody sees and the space for
//! it, but no right to write. Dropped, it leaves nothing.
//!
//! *Crash safety*: that of `temporary`; a beginning does not survive its process.

use std::fmt;
use std::sync::Arc;

use super::flight::Admission;
use super::writer::Writing;
use super::{BlobStore, BlobWriter, Ingest, StoreError};
use crate::digest::Digest;

/// A blob that is written up to a point.
pub struct PartialBlob {
    /// Taken by the drop, or by who goes on.
    writing: Option<Box<Writing>>,
    digest: Digest,
    written_bytes: u64,
}

impl PartialBlob {
    pub(super) fn new(writing: Box<Writing>, written_bytes: u64) -> Self {
        Self { digest: writing.digest(), writing: Some(writing), written_bytes }
    }

    /// The blob that it is the beginning of.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// How many bytes of it are here.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }
}

impl Drop for PartialBlob {
    fn drop(&mut self) {
        if let Some(writing) = self.writing.take() {
            // To free a large file takes its time.
            let io = writing.space().environment.io.clone();
            io.spawn(move || drop(writing));
        }
    }
}

impl fmt::Debug for PartialBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartialBlob")
            .field("digest", &self.digest)
            .field("written_bytes", &self.written_bytes)
            .finish_non_exhaustive()
    }
}

impl BlobStore {
    /// Goes on with an ingest that was set aside. Waits while another ingest of the digest makes progress.
    pub async fn resume(self: &Arc<Self>, mut partial: PartialBlob) -> Result<Ingest, StoreError> {
        let (digest, written_bytes) = (partial.digest, partial.written_bytes);
        let ticket = match self.space.admit(digest).await {
            Admission::Present(pin) => return Ok(Ingest::Present(pin)),
            Admission::Lead(ticket) => ticket,
        };
        let held_bytes = partial.writing.as_ref().map_or(0, |writing| writing.reserved_bytes());
        let rest_bytes = self.space.layout.disk_bytes(digest.size_bytes()).saturating_sub(held_bytes);
        let rest = self.space.reserve(rest_bytes).await?;
        let writing = partial.writing.take().expect("taken here only, and by the drop");
        let writing = writing.take_up(ticket, rest);
        Ok(Ingest::Write(BlobWriter::continuing(writing, written_bytes, digest, self.space.clone())))
    }
}
