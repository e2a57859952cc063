//! A streamed ingest: chunks are gathered in memory, and written and hashed by the pool.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::flight::Ticket;
use super::ingest::check;
use super::layout::BLOB_MODE;
use super::partial::PartialBlob;
use super::space::{Reservation, Space};
use super::temporary::Temporary;
use super::{BlobPin, StoreError};
use crate::digest::{Digest, Hasher};

/// What is gathered in memory before a thread of the pool is bothered with it.
const WRITE_BYTES: usize = 256 << 10;
/// How many pieces are gathered: each costs something beside its bytes, of which there may be one.
const WRITE_PIECES: usize = 4096;

/// A blob being written; dropped unfinished, it leaves nothing behind.
pub struct BlobWriter {
    space: Arc<Space>,
    digest: Digest,
    written_bytes: u64,
    pending: Vec<Bytes>,
    pending_bytes: usize,
    stage: Stage,
}

enum Stage {
    Idle(Box<Writing>),
    /// On the pool. Kept here, so that a caller that stops waiting for a write can go on with the next one.
    Busy(BoxFuture<'static, Result<Box<Writing>, StoreError>>),
    Failed(StoreError),
    /// In the hands of a method, or given up by the drop.
    Taken,
}

/// What a thread of the pool works on. The order of the fields is the order of the undoing.
pub(super) struct Writing {
    temporary: Option<Temporary>,
    reservation: Reservation,
    /// Nobody writes the digest in the name of a blob that is set aside.
    ticket: Option<Ticket>,
    hasher: Hasher,
    digest: Digest,
    space: Arc<Space>,
    held: Option<Box<dyn Send>>,
}

impl BlobWriter {
    pub(super) fn new(ticket: Ticket, reservation: Reservation, digest: Digest, space: Arc<Space>) -> Self {
        let hasher = digest.function().hasher();
        let writing = Writing {
            temporary: None,
            reservation,
            ticket: Some(ticket),
            hasher,
            digest,
            space: space.clone(),
            held: None,
        };
        Self::continuing(Box::new(writing), 0, digest, space)
    }

    /// Goes on behind `written_bytes`.
    pub(super) fn continuing(
        writing: Box<Writing>,
        written_bytes: u64,
        digest: Digest,
        space: Arc<Space>,
    ) -> Self {
        let stage = Stage::Idle(writing);
        Self { space, digest, written_bytes, pending: Vec::new(), pending_bytes: 0, stage }
    }

    /// Holds `guard` for as long as the blob may have a file open: also while it is set aside, and until the pool has
    /// closed it. To be called before anything is written.
    #[must_use]
    pub fn holding(mut self, guard: impl Send + 'static) -> Self {
        if let Stage::Idle(writing) = &mut self.stage {
            writing.held = Some(Box::new(guard));
        }
        self
    }

    /// The number of bytes written.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// The number of bytes that are in the file, and no longer in memory.
    pub fn flushed_bytes(&self) -> u64 {
        self.written_bytes - self.pending_bytes as u64
    }

    /// Appends `data`. Fails at once when it is more than the digest's size.
    pub async fn write(&mut self, data: Bytes) -> Result<(), StoreError> {
        if data.len() as u64 > self.digest.size_bytes() - self.written_bytes {
            let found = format!("more than {} bytes", self.digest.size_bytes());
            return Err(self.fail(StoreError::Mismatch { expected: self.digest, found }));
        }
        self.written_bytes += data.len() as u64;
        self.pending_bytes += data.len();
        self.pending.push(data);
        if self.pending_bytes < WRITE_BYTES && self.pending.len() < WRITE_PIECES {
            return Ok(());
        }
        let mut writing = self.idle().await?;
        self.pending_bytes = 0;
        let chunks = std::mem::take(&mut self.pending);
        let io = self.space.environment.io.clone();
        self.stage =
            Stage::Busy(Box::pin(
                async move { io.run(move || writing.append(&chunks).map(|()| writing)).await },
            ));
        self.idle().await.map(|writing| self.stage = Stage::Idle(writing))
    }

    /// Verifies length and hash, and makes the blob visible.
    pub async fn finish(mut self) -> Result<BlobPin, StoreError> {
        let mut writing = self.idle().await?;
        let is_whole = self.flushed_bytes() == 0;
        let chunks = std::mem::take(&mut self.pending);
        let (space, digest) = (self.space.clone(), self.digest);
        let publish = move || {
            writing.append(&chunks)?;
            let pin = writing.publish()?;
            if is_whole {
                space.recent.keep(digest, &chunks);
            }
            Ok(pin)
        };
        self.space.environment.io.run(publish).await
    }

    /// Sets the blob aside as far as it is written; others may write it meanwhile.
    pub async fn suspend(mut self) -> Result<PartialBlob, StoreError> {
        let mut writing = self.idle().await?;
        let chunks = std::mem::take(&mut self.pending);
        let written_bytes = self.written_bytes;
        let suspend = move || {
            writing.append(&chunks)?;
            Ok(PartialBlob::new(writing.set_aside(written_bytes), written_bytes))
        };
        self.space.environment.io.run(suspend).await
    }

    /// Takes the state out, waiting for a write under way.
    async fn idle(&mut self) -> Result<Box<Writing>, StoreError> {
        if let Stage::Busy(write) = &mut self.stage {
            self.stage = match write.await {
                Ok(writing) => Stage::Idle(writing),
                Err(error) => Stage::Failed(error),
            };
        }
        match std::mem::replace(&mut self.stage, Stage::Taken) {
            Stage::Idle(writing) => Ok(writing),
            Stage::Failed(error) => Err(self.fail(error)),
            Stage::Busy(_) | Stage::Taken => {
                unreachable!("awaited above, and put back before any other await")
            }
        }
    }

    /// Gives the file up; whatever is asked of the writer from here on fails in the same way.
    fn fail(&mut self, error: StoreError) -> StoreError {
        self.give_up(Stage::Failed(error.clone()));
        error
    }

    /// Removes the file on the pool: to free a large one takes its time.
    fn give_up(&mut self, stage: Stage) {
        if let Stage::Idle(writing) = std::mem::replace(&mut self.stage, stage) {
            self.space.environment.io.spawn(move || drop(writing));
        }
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        self.give_up(Stage::Taken);
    }
}

impl fmt::Debug for BlobWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobWriter")
            .field("digest", &self.digest)
            .field("written_bytes", &self.written_bytes)
            .finish_non_exhaustive()
    }
}

impl Writing {
    pub(super) fn digest(&self) -> Digest {
        self.digest
    }

    pub(super) fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// What is reserved for it.
    pub(super) fn reserved_bytes(&self) -> u64 {
        self.reservation.bytes()
    }

    /// Gives back the right to write, and the space that `written_bytes` do not need.
    fn set_aside(mut self: Box<Self>, written_bytes: u64) -> Box<Self> {
        let needed_bytes = self.space.layout.disk_bytes(written_bytes).min(self.reservation.bytes());
        let needed = self.reservation.split(needed_bytes);
        drop(std::mem::replace(&mut self.reservation, needed));
        self.ticket = None;
        self
    }

    /// Takes up the right to write, and the space for what is left.
    pub(super) fn take_up(mut self: Box<Self>, ticket: Ticket, rest: Reservation) -> Box<Self> {
        self.reservation.join(rest);
        self.ticket = Some(ticket);
        self
    }

    fn append(&mut self, chunks: &[Bytes]) -> Result<(), StoreError> {
        let full = self.space.on_write(self.digest.size_bytes());
        let temporary = match &mut self.temporary {
            Some(temporary) => temporary,
            empty => empty.insert(Temporary::create(&self.space.layout, BLOB_MODE).map_err(&full)?),
        };
        for chunk in chunks {
            self.hasher.update(chunk);
            temporary.write(chunk).map_err(&full)?;
        }
        if let Some(ticket) = &self.ticket {
            ticket.progressed();
        }
        Ok(())
    }

    fn publish(self) -> Result<BlobPin, StoreError> {
        let Self { temporary, reservation, ticket, hasher, digest, space, held: _held } = self;
        check(digest, hasher.finish())?;
        let temporary = temporary.expect("created by the first append, of which there is one");
        let pin = space.publish(digest, temporary, reservation);
        drop(ticket);
        pin
    }
}
