//! `ByteStream.Read`: one blob, resumed where it broke off, verified as it comes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use longshore_cas_store::blob::{BlobPin, BlobWriter, Ingest, StoreError};
use longshore_cas_store::digest::Digest;
use longshore_cas_store::source::{FetchError, Fetched};
use longshore_proto::bytestream::{ReadRequest, ReadResponse};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use super::Remote;
use super::error::reason;
use super::frames::Inflater;
use super::limits::ServerLimits;
use super::names::{self, Encoding};
use super::retry::Attempts;

/// How long a stream may bring nothing.
const STALL_TIME_MAX: Duration = Duration::from_mins(1);
/// What a stream must have brought for its end to count as a new fault.
const PROGRESS_BYTES_MIN: u64 = 64 << 10;
/// How often wrong content is asked for again.
const WRONG_MAX: u32 = 2;

/// Reads `digest` into the store.
pub(super) async fn read(remote: &Remote, digest: Digest) -> Fetched {
    let outcome = match remote.caller.limits().await {
        Ok(limits) => Read::new(remote, digest, limits).run().await,
        Err(error) => Err(remote.caller.unavailable(&error)),
    };
    if outcome.is_ok() {
        remote.shared.known.learn([&digest], remote.caller.clock().now());
    }
    Fetched { digest, outcome }
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
}

/// Why a stream ended too early.
enum Fault {
    Status(Status),
    /// What came is not the blob.
    Wrong(String),
    Store(StoreError),
}

/// What to do after a fault.
enum Next {
    Resume,
    Restart,
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
        Self { remote, digest, limits, attempts, encoding, can_resume: true }
    }

    async fn run(mut self) -> Result<BlobPin, FetchError> {
        let mut wrong = 0;
        loop {
            let store = &self.remote.shared.store;
            let ingest = store.ingest(self.digest).await;
            let writer = match ingest.map_err(|error| FetchError::Store(Arc::new(error)))? {
                Ingest::Present(pin) => return Ok(pin),
                Ingest::Write(writer) => writer,
            };
            let Some(outcome) = self.fill(writer).await? else { continue };
            match outcome {
                Ok(pin) => {
                    self.attempts.succeeded();
                    return Ok(pin);
                }
                Err(reason) => {
                    wrong += 1;
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

    /// Fills `writer`: with the blob, or with what is wrong. Nothing if it must be begun anew.
    async fn fill(&mut self, mut writer: BlobWriter) -> Result<Option<Result<BlobPin, String>>, FetchError> {
        loop {
            let before_bytes = writer.written_bytes();
            let outcome = self.stream(&mut writer).await;
            if writer.written_bytes() - before_bytes >= PROGRESS_BYTES_MIN {
                self.attempts.progressed();
            }
            let outcome = match outcome {
                Ok(()) => writer.finish().await.map_err(Fault::from).map(Some),
                Err(Fault::Status(status)) => {
                    self.remote.shared.fetches.failed();
                    match self.after(status, writer.written_bytes()).await? {
                        Next::Resume => continue,
                        Next::Restart => return Ok(None),
                    }
                }
                Err(fault) => Err(fault),
            };
            return match outcome {
                Ok(pin) => Ok(pin.map(Ok)),
                Err(Fault::Wrong(reason)) => Ok(Some(Err(reason))),
                Err(Fault::Store(error)) => Err(FetchError::Store(Arc::new(error))),
                Err(Fault::Status(status)) => Err(self.remote.caller.unavailable(&reason(&status))),
            };
        }
    }

    /// What to do about a stream that failed with `written_bytes` in place.
    async fn after(&mut self, status: Status, written_bytes: u64) -> Result<Next, FetchError> {
        if !self.remote.shared.fetches.is_wanted(&self.digest) {
            return Err(self.remote.caller.unavailable(&"nobody waits for it any more"));
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
        loop {
            let message = timeout(STALL_TIME_MAX, stream.message()).await;
            let message = message.map_err(|_| Status::deadline_exceeded("the stream stalls"));
            let Some(message) = message.and_then(|message| message).map_err(Fault::Status)? else { break };
            let data = Bytes::from(message.data);
            match &mut inflater {
                None => writer.write(data).await?,
                Some(inflater) => {
                    inflater.push(data);
                    while let Some(piece) = inflater.next().map_err(Fault::Wrong)? {
                        writer.write(piece).await?;
                    }
                }
            }
            if !self.remote.shared.fetches.is_wanted(&self.digest) {
                return Err(Fault::Status(Status::cancelled("nobody waits for it any more")));
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
