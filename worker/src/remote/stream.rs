//! `ByteStream.Read`: one blob, resumed where it broke off, verified as it comes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use longshore_cas_store::blob::{BlobPin, BlobWriter, Ingest, StoreError};
use longshore_cas_store::digest::Digest;
use longshore_cas_store::source::{FetchError, Fetched};
use longshore_proto::bytestream::{ReadRequest, ReadResponse};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, Status, Streaming};

use super::Remote;
use super::frames::Inflater;
use super::limits::ServerLimits;
use super::names::{self, Encoding};
use super::retry::{Attempts, Kind, kind};
use crate::connect::reason;

/// How long a stream may bring nothing.
const STALL_TIME_MAX: Duration = Duration::from_mins(1);
/// What a stream must have brought for its end to count as a new fault.
const PROGRESS_BYTES_MIN: u64 = 64 << 10;
/// How often wrong content is asked for again.
const WRONG_MAX: u32 = 2;

/// Reads `digest` into the store; nothing if it was given up because nobody wanted it any more.
pub(super) async fn read(remote: &Remote, digest: Digest) -> Option<Fetched> {
    let outcome = match remote.caller.limits().await {
        Ok(limits) => Read::new(remote, digest, limits).run().await,
        Err(error) => Err(remote.caller.unavailable(&error)),
    };
    Some(Fetched { digest, outcome: outcome.transpose()? })
}

/// The reading of one blob.
struct Read<'r> {
    remote: &'r Remote,
    digest: Digest,
    limits: Arc<ServerLimits>,
    attempts: Attempts<'r>,
    encoding: Encoding,
    /// Whether the server reads from an offset, as far as is known.
    can_resume: bool,
    /// How far any attempt came: what is read anew is no progress before that.
    reached_bytes: u64,
}

/// Why a stream ended too early.
enum Fault {
    Status(Status),
    /// What came is not the blob.
    Wrong(String),
    Store(StoreError),
    /// Nobody waits for it any more.
    Unwanted,
}

/// What to do after a fault.
enum Next {
    Resume,
    Restart,
    GiveUp,
}

/// What a writer came to.
enum Filled {
    Whole(BlobPin),
    /// It has to be begun anew.
    Restart,
    Wrong(String),
    GivenUp,
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Mismatch { found, .. } => Self::Wrong(format!("came with {found}")),
            error => Self::Store(error),
        }
    }
}

impl<'r> Read<'r> {
    fn new(remote: &'r Remote, digest: Digest, limits: Arc<ServerLimits>) -> Self {
        let encoding = if limits.zstd(&digest).is_some() { Encoding::Zstd } else { Encoding::Identity };
        let attempts = remote.caller.attempts();
        Self { remote, digest, limits, attempts, encoding, can_resume: true, reached_bytes: 0 }
    }

    async fn run(mut self) -> Result<Option<BlobPin>, FetchError> {
        let mut wrong = 0;
        loop {
            let store = &self.remote.shared.store;
            let ingest = store.ingest(self.digest).await;
            let writer = match ingest.map_err(|error| FetchError::Store(Arc::new(error)))? {
                // Somebody else brought it, and from somewhere else perhaps.
                Ingest::Present(pin) => return Ok(Some(pin)),
                Ingest::Write(writer) => writer,
            };
            match self.fill(writer).await? {
                Filled::Whole(pin) => {
                    self.attempts.succeeded();
                    return Ok(Some(pin));
                }
                Filled::GivenUp => return Ok(None),
                Filled::Restart => {}
                Filled::Wrong(reason) => {
                    wrong += 1;
                    // Perhaps it went on from another place than we did.
                    self.can_resume = false;
                    let reason = format!("blob {} {reason}", self.digest);
                    tracing::warn!(origin = self.remote.caller.origin(), "{reason}");
                    if wrong == WRONG_MAX {
                        return Err(self.remote.caller.corrupt(&reason));
                    }
                    self.encoding = Encoding::Identity;
                }
            }
        }
    }

    /// Fills `writer`, from wherever streams break off.
    async fn fill(&mut self, mut writer: BlobWriter) -> Result<Filled, FetchError> {
        loop {
            let outcome = self.stream(&mut writer).await;
            if writer.written_bytes() >= self.reached_bytes + PROGRESS_BYTES_MIN {
                self.reached_bytes = writer.written_bytes();
                self.attempts.progressed();
            }
            let outcome = match outcome {
                Ok(()) => writer.finish().await.map_err(Fault::from),
                Err(Fault::Status(status)) => match self.after(status, writer.written_bytes()).await? {
                    Next::Resume => continue,
                    Next::Restart => return Ok(Filled::Restart),
                    Next::GiveUp => return Ok(Filled::GivenUp),
                },
                Err(fault) => Err(fault),
            };
            return match outcome {
                Ok(pin) => Ok(Filled::Whole(pin)),
                Err(Fault::Wrong(reason)) => Ok(Filled::Wrong(reason)),
                Err(Fault::Unwanted) => Ok(Filled::GivenUp),
                Err(Fault::Store(error)) => Err(FetchError::Store(Arc::new(error))),
                Err(Fault::Status(status)) => Err(self.remote.caller.unavailable(&reason(&status))),
            };
        }
    }

    /// What to do about a stream that failed with `written_bytes` in place.
    async fn after(&mut self, status: Status, written_bytes: u64) -> Result<Next, FetchError> {
        if self.remote.shared.fetches.is_given_up(&self.digest) {
            return Ok(Next::GiveUp);
        }
        if kind(&status).0 != Kind::Lasting {
            self.remote.shared.fetches.failed();
        }
        match status.code() {
            Code::NotFound => return Err(FetchError::Missing),
            Code::Unimplemented | Code::InvalidArgument if self.encoding == Encoding::Zstd => {
                if let Some(feature) = self.limits.zstd(&self.digest) {
                    feature.is_absent();
                }
                self.encoding = Encoding::Identity;
                return Ok(Next::Resume);
            }
            Code::Unimplemented | Code::InvalidArgument | Code::OutOfRange
                if written_bytes > 0 && self.can_resume =>
            {
                self.can_resume = false;
                return Ok(Next::Restart);
            }
            _ => {}
        }
        let pause = self.remote.caller.pause(&mut self.attempts, status).await;
        pause.map_err(|status| self.remote.caller.unavailable(&reason(&status)))?;
        Ok(if self.can_resume { Next::Resume } else { Next::Restart })
    }

    /// One attempt, from where the writer is.
    async fn stream(&mut self, writer: &mut BlobWriter) -> Result<(), Fault> {
        let mut stream = self.open(writer.written_bytes()).await.map_err(Fault::Status)?;
        let mut inflater = match self.encoding {
            Encoding::Identity => None,
            Encoding::Zstd => Some(Inflater::new().map_err(Fault::Wrong)?),
        };
        let mut stalled = Instant::now() + STALL_TIME_MAX;
        loop {
            let message = timeout_at(stalled, stream.message()).await;
            let message = message.map_err(|_| Status::deadline_exceeded("the stream stalls"));
            let Some(message) = message.and_then(|message| message).map_err(Fault::Status)? else { break };
            let data = Bytes::from(message.data);
            // Messages without content are no sign of life.
            if !data.is_empty() {
                stalled = Instant::now() + STALL_TIME_MAX;
            }
            match &mut inflater {
                None => writer.write(data).await?,
                Some(inflater) => {
                    inflater.push(data);
                    while let Some(piece) = inflater.next().map_err(Fault::Wrong)? {
                        writer.write(piece).await?;
                    }
                }
            }
            if self.remote.shared.fetches.is_given_up(&self.digest) {
                return Err(Fault::Unwanted);
            }
        }
        let (written, size) = (writer.written_bytes(), self.digest.size_bytes());
        if written < size {
            let message = format!("the stream ended after {written} of {size} bytes");
            return Err(Fault::Status(Status::unknown(message)));
        }
        Ok(())
    }

    async fn open(&self, offset: u64) -> Result<Streaming<ReadResponse>, Status> {
        let caller = &self.remote.caller;
        let request = ReadRequest {
            resource_name: names::read(&caller.instance_name(), self.encoding, &self.digest),
            read_offset: offset.cast_signed(),
            read_limit: 0,
        };
        let request = caller.request(request).await?;
        let mut client = caller.byte_stream();
        let stream = timeout(STALL_TIME_MAX, client.read(request)).await;
        Ok(stream.map_err(|_| Status::deadline_exceeded("no answer"))??.into_inner())
    }
}
