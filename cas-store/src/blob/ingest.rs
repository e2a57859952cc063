//! How blobs come in: hashed while they are written, visible only when they are right.
//!
//! An ingest holds a [`Ticket`] (nobody else writes the digest), a [`Reservation`] (its bytes fit) and a
//! [`Temporary`] (nobody sees it). Dropped at any point, it returns all three; whatever a thread of the pool is
//! doing then runs to its end first.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::flight::{Admission, Ticket};
use super::layout::BLOB_MODE;
use super::ledger::SlotKey;
use super::space::{Reservation, Space};
use super::temporary::Temporary;
use super::writer::BlobWriter;
use super::{BlobPin, BlobStore, StoreError};
use crate::digest::Digest;

/// How an ingest begins.
#[derive(Debug)]
pub enum Ingest {
    /// The blob is here already; nothing needs to be sent.
    Present(BlobPin),
    /// It is not: write it.
    Write(BlobWriter),
}

impl Space {
    /// Makes a verified file visible, unless its digest is by now. Blocks.
    pub(super) fn publish(
        self: &Arc<Self>,
        digest: Digest,
        mut temporary: Temporary,
        reservation: Reservation,
    ) -> Result<BlobPin, StoreError> {
        let full = self.on_write(digest.size_bytes());
        let key = SlotKey::Blob(digest);
        let guard = self.take_key(key);
        let present = self.lock().ledger.pin(&key);
        if let Some(id) = present {
            return Ok(BlobPin::of_slot(self.clone(), digest, id));
        }
        // Over a file that the ledger does not know, if there is one: it was never verified.
        temporary.publish(&key).map_err(&full)?;
        let id = self.change(|state| state.insert(key, reservation));
        drop(guard);
        self.writes.fetch_add(1, Ordering::Relaxed);
        Ok(BlobPin::of_slot(self.clone(), digest, id))
    }

    /// Verifies, writes and publishes a blob that is in memory. Blocks.
    fn write_whole(
        self: &Arc<Self>,
        ticket: Ticket,
        reservation: Reservation,
        digest: Digest,
        data: &[u8],
    ) -> Result<BlobPin, StoreError> {
        // Before anything is written: a wrong blob costs no file.
        check(digest, digest.function().digest(data))?;
        let full = self.on_write(digest.size_bytes());
        let temporary = Temporary::create(&self.layout, BLOB_MODE).map_err(&full)?;
        temporary.write(data).map_err(&full)?;
        let pin = self.publish(digest, temporary, reservation)?;
        self.recent.keep(digest, &[data]);
        drop(ticket);
        Ok(pin)
    }
}

/// What becomes of one blob of a batch; `K` is what is kept of its pin.
enum Turn<K> {
    Done(Result<K, StoreError>),
    Write(Ticket, Digest, Bytes),
    /// Somebody else writes it, perhaps this very batch.
    Later(Digest, Bytes),
}

impl BlobStore {
    /// Stores a blob that is in memory.
    pub async fn put(self: &Arc<Self>, digest: Digest, data: Bytes) -> Result<BlobPin, StoreError> {
        if let Some(outcome) = put_nothing(digest, &data) {
            return outcome;
        }
        let ticket = match self.space.admit(digest).await {
            Admission::Present(pin) => return Ok(pin),
            Admission::Lead(ticket) => ticket,
        };
        self.check_size(digest)?;
        let reservation = self.space.reserve(self.space.layout.disk_bytes(digest.size_bytes())).await?;
        let space = self.space.clone();
        self.space.environment.io.run(move || space.write_whole(ticket, reservation, digest, &data)).await
    }

    /// Stores many small blobs by one hop to the pool; one outcome each, in order.
    ///
    /// The pins are held from the first blob to the last: together they have to fit into the store, beside everything
    /// that others hold.
    pub async fn put_many(self: &Arc<Self>, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<BlobPin, StoreError>> {
        self.put_all(blobs, |pin| pin).await
    }

    /// The same for somebody who needs no pins: each blob is one like any other as soon as it is stored.
    pub async fn store_many(self: &Arc<Self>, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<(), StoreError>> {
        self.put_all(blobs, drop).await
    }

    async fn put_all<K: Send + 'static>(
        self: &Arc<Self>,
        blobs: Vec<(Digest, Bytes)>,
        keep: fn(BlobPin) -> K,
    ) -> Vec<Result<K, StoreError>> {
        let mut turns: Vec<_> =
            blobs.into_iter().map(|(digest, data)| self.turn(digest, data, keep)).collect();
        let bytes = turns.iter().map(|turn| match turn {
            Turn::Write(_, digest, _) => self.space.layout.disk_bytes(digest.size_bytes()),
            Turn::Done(_) | Turn::Later(..) => 0,
        });
        let total_bytes = bytes.fold(0, u64::saturating_add);
        if total_bytes > 0 {
            turns = match self.space.reserve(total_bytes).await {
                Ok(reservation) => self.write_turns(turns, reservation, keep).await,
                // Together they are too much; one after another they may fit.
                Err(_) => turns.into_iter().map(Turn::postponed).collect(),
            };
        }
        let mut outcomes = Vec::with_capacity(turns.len());
        for turn in turns {
            outcomes.push(match turn {
                Turn::Done(outcome) => outcome,
                Turn::Write(_, digest, data) | Turn::Later(digest, data) => {
                    self.put(digest, data).await.map(keep)
                }
            });
        }
        outcomes
    }

    /// Begins a streamed ingest. Waits while another ingest of the digest makes progress.
    pub async fn ingest(self: &Arc<Self>, digest: Digest) -> Result<Ingest, StoreError> {
        if digest.is_empty() {
            return Ok(Ingest::Present(BlobPin::of_empty(digest)));
        }
        let ticket = match self.space.admit(digest).await {
            Admission::Present(pin) => return Ok(Ingest::Present(pin)),
            Admission::Lead(ticket) => ticket,
        };
        self.check_size(digest)?;
        let reservation = self.space.reserve(self.space.layout.disk_bytes(digest.size_bytes())).await?;
        Ok(Ingest::Write(BlobWriter::new(ticket, reservation, digest, self.space.clone())))
    }

    /// The same for somebody for whom others may be waiting: waits for nothing. Beside another ingest of the digest, it
    /// writes the blob, too; the first of them to end makes it visible. Where space would have to be made, there is none.
    pub fn ingest_now(&self, digest: Digest) -> Result<Ingest, StoreError> {
        if digest.is_empty() {
            return Ok(Ingest::Present(BlobPin::of_empty(digest)));
        }
        let ticket = match self.space.admit_beside(digest) {
            Admission::Present(pin) => return Ok(Ingest::Present(pin)),
            Admission::Lead(ticket) => ticket,
        };
        self.check_size(digest)?;
        let needed_bytes = self.space.layout.disk_bytes(digest.size_bytes());
        let reservation = self.space.reserve_now(needed_bytes).ok_or_else(|| {
            let reason = "none of the store's is free at the moment".to_owned();
            StoreError::NoSpace { needed_bytes, reason }
        })?;
        Ok(Ingest::Write(BlobWriter::new(ticket, reservation, digest, self.space.clone())))
    }

    fn turn<K>(&self, digest: Digest, data: Bytes, keep: fn(BlobPin) -> K) -> Turn<K> {
        if let Some(outcome) = put_nothing(digest, &data) {
            return Turn::Done(outcome.map(keep));
        }
        match self.space.try_admit(digest) {
            Some(Admission::Present(pin)) => Turn::Done(Ok(keep(pin))),
            Some(Admission::Lead(ticket)) => Turn::Write(ticket, digest, data),
            None => Turn::Later(digest, data),
        }
    }

    /// Writes those whose turn it is, side by side.
    async fn write_turns<K: Send + 'static>(
        &self,
        turns: Vec<Turn<K>>,
        mut reservation: Reservation,
        keep: fn(BlobPin) -> K,
    ) -> Vec<Turn<K>> {
        let space = self.space.clone();
        let write = move || {
            let layout = space.layout.clone();
            let parts = turns.into_iter().map(|turn| {
                let part = match &turn {
                    Turn::Write(_, digest, _) => layout.disk_bytes(digest.size_bytes()),
                    Turn::Done(_) | Turn::Later(..) => 0,
                };
                (turn, reservation.split(part))
            });
            let parts: Vec<_> = parts.collect();
            let write = |(turn, part)| match turn {
                Turn::Write(ticket, digest, data) => {
                    Turn::Done(space.write_whole(ticket, part, digest, &data).map(keep))
                }
                other => other,
            };
            parts.into_par_iter().map(write).collect()
        };
        self.space.environment.io.run(write).await
    }
}

impl<K> Turn<K> {
    fn postponed(self) -> Self {
        match self {
            Self::Write(_, digest, data) => Self::Later(digest, data),
            other => other,
        }
    }
}

/// The outcome of storing something that needs no file: the empty blob, or what has the wrong size.
fn put_nothing(digest: Digest, data: &Bytes) -> Option<Result<BlobPin, StoreError>> {
    if data.len() as u64 != digest.size_bytes() {
        let found = format!("{} bytes", data.len());
        return Some(Err(StoreError::Mismatch { expected: digest, found }));
    }
    digest.is_empty().then(|| Ok(BlobPin::of_empty(digest)))
}

pub(super) fn check(expected: Digest, found: Digest) -> Result<(), StoreError> {
    if expected == found {
        return Ok(());
    }
    let found = if expected.size_bytes() == found.size_bytes() {
        format!("hash {}", found.hash_hex())
    } else {
        format!("{} bytes", found.size_bytes())
    };
    Err(StoreError::Mismatch { expected, found })
}
