//! Writes: one stream's part in an upload.
//!
//! What breaks the rules ends the upload, and nothing of it is kept; what breaks off does not, and a plain upload can be
//! gone on with where it stopped. A compressed one cannot: what is committed of it says nothing about the form in
//! which it came.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::{Either, select};
use futures::{Stream, StreamExt as _};
use longshore_cas_store::blob::{BlobStore, BlobWriter, Ingest};
use longshore_cas_store::digest::Digest;
use longshore_cas_store::io::Clock;
use longshore_proto::bytestream::WriteRequest;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tonic::Status;

use super::super::compression::{DecompressError, Decompressor};
use super::super::limits::{HALF_CLOSE_TIME_MAX, SILENCE_MAX, UPLOAD_MEMORY_BYTES, WINDOW_LOG_MAX};
use super::super::share::{Share, crowded};
use super::uploads::{Kept, Place, Uploads};
use crate::status::Failure;

/// The committed size of a compressed upload of a blob that is here: how much was sent says nothing (REAPI).
const COMPRESSED_PRESENT: i64 = -1;

/// What writes work with.
#[derive(Clone)]
pub(super) struct Writes {
    pub(super) store: Arc<BlobStore>,
    pub(super) uploads: Arc<Uploads>,
    pub(super) clock: Arc<dyn Clock>,
}

/// Why a stream ends without a blob.
pub(super) enum Broken {
    /// It broke the rules.
    Wrong(Failure),
    /// It broke off.
    Off(Status),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Wrong(failure)
    }
}

impl From<Broken> for Status {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Wrong(failure) => failure.into(),
            Broken::Off(status) => status,
        }
    }
}

/// A client's requests, of which the first has been read.
pub(super) struct Requests<'a, S> {
    name: String,
    first: Option<WriteRequest>,
    rest: &'a mut S,
    /// Of the connection that they come on.
    share: Share,
    clock: Arc<dyn Clock>,
    /// Where the next request has to go on.
    offset: u64,
    is_finished: bool,
}

impl<'a, S> Requests<'a, S>
where
    S: Stream<Item = Result<WriteRequest, Status>> + Unpin + Send,
{
    pub(super) fn new(
        first: WriteRequest,
        rest: &'a mut S,
        share: Share,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Failure> {
        let offset = u64::try_from(first.write_offset)
            .map_err(|_| Failure::invalid(format!("write_offset: {} is negative", first.write_offset)))?;
        let name = first.resource_name.clone();
        Ok(Self { name, first: Some(first), rest, share, clock, offset, is_finished: false })
    }

    /// Leave to wait before anything else is read, where the requests bring `size_bytes` from their beginning on.
    fn wait(&self, size_bytes: u64) -> Option<OwnedSemaphorePermit> {
        let first = self.first.as_ref();
        let held_bytes = first.map_or(0, |first| first.data.len() as u64);
        let is_all = first.is_some_and(|first| first.finish_write);
        let rest_bytes = size_bytes.saturating_sub(self.offset.saturating_add(held_bytes));
        self.share.wait(if is_all { 0 } else { rest_bytes })
    }

    /// The data of the next request, if the client has not closed the stream.
    async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        let request = match self.first.take() {
            Some(first) => Some(first),
            None => self.receive().await?,
        };
        let Some(request) = request else { return Ok(None) };
        if !request.resource_name.is_empty() && request.resource_name != self.name {
            return Err(Failure::invalid("resource_name: changes within the stream").into());
        }
        if u64::try_from(request.write_offset) != Ok(self.offset) {
            let message = format!("write_offset: is {} where {} follows", request.write_offset, self.offset);
            return Err(Failure::invalid(message).into());
        }
        self.offset = self.offset.saturating_add(request.data.len() as u64);
        self.is_finished = request.finish_write;
        Ok(Some(request.data.into()))
    }

    async fn receive(&mut self) -> Result<Option<WriteRequest>, Broken> {
        match select(self.rest.next(), self.clock.sleep(SILENCE_MAX)).await {
            Either::Left((request, _)) => request.transpose().map_err(Broken::Off),
            Either::Right(_) => {
                let message = format!("the stream was silent for {} s", SILENCE_MAX.as_secs());
                Err(Broken::Off(Status::aborted(message)))
            }
        }
    }

    /// Checks that nothing follows the last request.
    async fn end(&mut self) -> Result<(), Broken> {
        // Some clients keep their side open until they are answered.
        match timeout(HALF_CLOSE_TIME_MAX, self.rest.next()).await {
            Ok(Some(Ok(_))) => Err(Failure::invalid("finish_write: a request follows it").into()),
            Ok(Some(Err(status))) => Err(Broken::Off(status)),
            Ok(None) | Err(_) => Ok(()),
        }
    }
}

/// An upload of a stream that may break off at any await: then it is left to the next stream.
struct Receiving {
    place: Option<Place>,
    writer: Option<BlobWriter>,
}

impl Receiving {
    fn writer(&mut self) -> &mut BlobWriter {
        self.writer.as_mut().expect("until the upload ends")
    }

    fn committed(&mut self) {
        let flushed_bytes = self.writer().flushed_bytes();
        self.place.as_ref().expect("until the upload ends").committed(flushed_bytes);
    }

    /// How much is kept of what is written.
    async fn suspend(mut self) -> u64 {
        match (self.place.take(), self.writer.take()) {
            (Some(place), Some(writer)) => place.suspend(writer).await,
            _ => 0,
        }
    }

    /// Keeps nothing.
    fn give_up(mut self) {
        self.writer = None;
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if let (Some(place), Some(writer)) = (self.place.take(), self.writer.take()) {
            // It goes on without anybody waiting for it.
            drop(place.suspend(writer));
        }
    }
}

impl Writes {
    /// Takes the bytes of a blob in; the committed size.
    pub(super) async fn plain<S>(&self, digest: Digest, mut requests: Requests<'_, S>) -> Result<i64, Status>
    where
        S: Stream<Item = Result<WriteRequest, Status>> + Unpin + Send,
    {
        if self.is_present(&digest) {
            return Ok(size(&digest));
        }
        let (place, kept) = self.uploads.take(&requests.name, UPLOAD_MEMORY_BYTES).await;
        let stopped = place.stopped();
        let receive = std::pin::pin!(self.receive(digest, place, kept, &mut requests));
        match select(receive, std::pin::pin!(stopped)).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right((reason, _)) => Err(reason.into()),
        }
    }

    async fn receive<S>(
        &self,
        digest: Digest,
        place: Place,
        kept: Option<Kept>,
        requests: &mut Requests<'_, S>,
    ) -> Result<i64, Status>
    where
        S: Stream<Item = Result<WriteRequest, Status>> + Unpin + Send,
    {
        let (place, kept) = may_begin(place, kept, requests.offset)?;
        let writer = match (kept, requests.wait(digest.size_bytes())) {
            (Some(kept), Some(_leave)) => self.store.resume(kept.partial).await.map_err(Failure::from)?,
            (Some(kept), None) => {
                place.put_back(Some(kept.partial));
                return Err(crowded().into());
            }
            (None, leave) => self.ingest(digest, &place, leave).await?,
        };
        let Ingest::Write(writer) = writer else { return Ok(size(&digest)) };
        let mut receiving = Receiving { place: Some(place), writer: Some(writer) };
        receiving.committed();
        match self.write(digest, &mut receiving, requests).await {
            Ok(true) => {
                let writer = receiving.writer.take().expect("until the upload ends");
                writer.finish().await.map_err(Failure::from)?;
                Ok(size(&digest))
            }
            Ok(false) if self.is_present(&digest) => {
                receiving.give_up();
                Ok(size(&digest))
            }
            Ok(false) => Ok(receiving.suspend().await.cast_signed()),
            Err(Broken::Off(status)) => {
                // Before the client hears of it, so that it can go on at once.
                receiving.suspend().await;
                Err(status)
            }
            Err(Broken::Wrong(failure)) => {
                receiving.give_up();
                Err(failure.into())
            }
        }
    }

    /// Writes what comes; whether that is all of it.
    async fn write<S>(
        &self,
        digest: Digest,
        receiving: &mut Receiving,
        requests: &mut Requests<'_, S>,
    ) -> Result<bool, Broken>
    where
        S: Stream<Item = Result<WriteRequest, Status>> + Unpin + Send,
    {
        // A stream that was taken over may have committed more than the client was told.
        let mut overlap_bytes = receiving.writer().written_bytes() - requests.offset;
        while let Some(mut data) = requests.next().await? {
            let known_bytes = usize::try_from(overlap_bytes).unwrap_or(usize::MAX).min(data.len());
            overlap_bytes -= known_bytes as u64;
            let data = data.split_off(known_bytes);
            receiving.writer().write(data).await.map_err(Failure::from)?;
            receiving.committed();
            if requests.is_finished {
                requests.end().await?;
                return Ok(true);
            }
            if self.is_present(&digest) {
                break;
            }
        }
        Ok(false)
    }

    /// Takes zstd frames in; the committed size.
    pub(super) async fn compressed<S>(
        &self,
        digest: Digest,
        mut requests: Requests<'_, S>,
    ) -> Result<i64, Status>
    where
        S: Stream<Item = Result<WriteRequest, Status>> + Unpin + Send,
    {
        if self.is_present(&digest) {
            return Ok(COMPRESSED_PRESENT);
        }
        if requests.offset != 0 {
            let offset = requests.offset;
            let message = format!("write_offset: is {offset}, and a compressed upload begins at 0");
            return Err(Failure::invalid(message).into());
        }
        let memory_bytes = UPLOAD_MEMORY_BYTES + digest.size_bytes().min(1 << WINDOW_LOG_MAX);
        let (place, _) = self.uploads.take(&requests.name, memory_bytes).await;
        let stopped = place.stopped();
        let receive = std::pin::pin!(self.decompress(digest, place, &mut requests));
        match select(receive, std::pin::pin!(stopped)).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right((reason, _)) => Err(reason.into()),
        }
    }

    async fn decompress<S>(
        &self,
        digest: Digest,
        place: Place,
        requests: &mut Requests<'_, S>,
    ) -> Result<i64, Status>
    where
        S: Stream<Item = Result<WriteRequest, Status>> + Unpin + Send,
    {
        // How much is to come, nobody knows.
        let leave = requests.wait(u64::MAX);
        let Ingest::Write(mut writer) = self.ingest(digest, &place, leave).await? else {
            return Ok(COMPRESSED_PRESENT);
        };
        place.committed(0);
        let mut decompressor = Decompressor::new(digest.size_bytes()).map_err(|error| wrong(&error))?;
        while let Some(data) = requests.next().await? {
            decompressor = write_decompressed(decompressor, data, &mut writer).await?;
            place.committed(writer.flushed_bytes());
            if requests.is_finished {
                decompressor.finish().map_err(|error| wrong(&error))?;
                requests.end().await?;
                writer.finish().await.map_err(Failure::from)?;
                return Ok(requests.offset.cast_signed());
            }
            if self.is_present(&digest) {
                return Ok(COMPRESSED_PRESENT);
            }
        }
        Err(Failure::invalid("finish_write: the stream ends without it").into())
    }

    /// Begins to write a blob, with a file of the uploads' own.
    async fn ingest(
        &self,
        digest: Digest,
        place: &Place,
        leave: Option<OwnedSemaphorePermit>,
    ) -> Result<Ingest, Failure> {
        let file = place.file().await;
        // Who waits for another upload of the blob, or for space, reads nothing. Too many of them, and nothing gets through
        // on their connection any more: neither what they wait for, if it comes there, nor anything else.
        let ingest = match leave {
            Some(_leave) => self.store.ingest(digest).await?,
            None => self.store.ingest_now(digest)?,
        };
        Ok(match ingest {
            Ingest::Write(writer) => Ingest::Write(writer.holding(file)),
            present @ Ingest::Present(_) => present,
        })
    }

    fn is_present(&self, digest: &Digest) -> bool {
        self.store.pin(digest).is_some()
    }
}

/// Decompresses off the async threads, a step at a time, and writes.
async fn write_decompressed(
    mut decompressor: Decompressor,
    mut data: Bytes,
    writer: &mut BlobWriter,
) -> Result<Decompressor, Failure> {
    loop {
        let step = tokio::task::spawn_blocking(move || {
            let content = decompressor.step(&mut data)?;
            Ok((decompressor, data, content))
        });
        let step = step.await.map_err(|error| Failure::internal(format!("decompression: {error}")))?;
        let content;
        (decompressor, data, content) = step.map_err(|error| wrong(&error))?;
        match content {
            Some(content) => writer.write(content).await?,
            None => return Ok(decompressor),
        }
    }
}

/// Whether a stream may begin at `offset`; at 0 it begins anew.
fn may_begin(place: Place, kept: Option<Kept>, offset: u64) -> Result<(Place, Option<Kept>), Failure> {
    let committed_bytes = kept.as_ref().map_or(0, |kept| kept.partial.written_bytes());
    match kept {
        // Clients that try again without asking how far they came send everything once more.
        _ if offset == 0 => Ok((place, None)),
        Some(kept) if offset == committed_bytes || offset == kept.told_bytes => Ok((place, Some(kept))),
        kept => {
            place.put_back(kept.map(|kept| kept.partial));
            Err(Failure::invalid(format!(
                "write_offset: is {offset} where {committed_bytes} bytes are committed"
            )))
        }
    }
}

fn wrong(error: &DecompressError) -> Failure {
    Failure::invalid(format!("data: {error}"))
}

fn size(digest: &Digest) -> i64 {
    digest.size_bytes().cast_signed()
}
