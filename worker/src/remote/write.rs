//! `ByteStream.Write`: one blob, resumed where the server says that it stopped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use longshore_cas_store::blob::{BlobPin, StoreError};
use longshore_proto::bytestream::{QueryWriteStatusRequest, WriteRequest};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::frames::Deflater;
use super::names::{self, Encoding};
use super::retry::{Kind, kind};
use super::{Remote, RemoteError};

/// The size of one message.
const CHUNK_BYTES: usize = 256 << 10;
/// Messages that are ready before they can be sent.
const CHUNKS_READY_MAX: usize = 4;
/// How long a server may take no message.
const STALL_TIME_MAX: Duration = Duration::from_mins(2);
/// How long a server may take to make a blob of what it was sent: some copy it to where it stays.
const COMMIT_TIME_MAX: Duration = Duration::from_mins(10);
/// What a server must have committed for the end of a stream to count as a new fault.
const PROGRESS_BYTES_MIN: u64 = 64 << 10;

/// An upload under one resource name.
struct Write<'r> {
    remote: &'r Remote,
    pin: &'r BlobPin,
    name: String,
    encoding: Encoding,
    /// Where it goes on: bytes that the server has committed.
    offset: u64,
    /// Whether the server goes on where it says, as far as is known.
    can_resume: bool,
}

enum Fault {
    Status(Status),
    Store(StoreError),
}

impl Remote {
    /// Uploads one blob.
    pub(super) async fn write(&self, pin: &BlobPin) -> Result<(), RemoteError> {
        let limits = self.caller.limits().await?;
        let zstd = limits.zstd(pin.digest());
        let encoding = if zstd.is_some() { Encoding::Zstd } else { Encoding::Identity };
        let mut write = Write::new(self, pin, encoding);
        let mut attempts = self.caller.attempts();
        let mut reached_bytes = 0;
        loop {
            let status = match write.attempt().await {
                Ok(()) => break,
                Err(Fault::Store(error)) => return Err(error.into()),
                Err(Fault::Status(status)) if status.code() == Code::AlreadyExists => break,
                Err(Fault::Status(status)) => status,
            };
            let is_about_zstd = matches!(status.code(), Code::Unimplemented | Code::InvalidArgument);
            if write.encoding == Encoding::Zstd && is_about_zstd {
                if let Some(feature) = zstd {
                    feature.is_absent();
                }
                write = Write::new(self, pin, Encoding::Identity);
                continue;
            }
            // Behind one name there may be several servers, and what one of them has begun another does not know.
            let is_about_token = status.code() == Code::Unauthenticated;
            if write.offset > 0 && kind(&status).0 == Kind::Lasting && !is_about_token {
                write = Write { can_resume: false, ..Write::new(self, pin, write.encoding) };
                continue;
            }
            let paused = self.caller.pause(&mut attempts, status).await;
            paused.map_err(|status| self.caller.error("ByteStream.Write", &status))?;
            if write.is_committed().await {
                break;
            }
            if write.offset >= reached_bytes + PROGRESS_BYTES_MIN {
                reached_bytes = write.offset;
                attempts.progressed();
            }
        }
        attempts.succeeded();
        self.learn([pin.digest()]);
        Ok(())
    }
}

impl<'r> Write<'r> {
    fn new(remote: &'r Remote, pin: &'r BlobPin, encoding: Encoding) -> Self {
        let name = names::write(&remote.caller.instance_name(), encoding, pin.digest());
        Self { remote, pin, name, encoding, offset: 0, can_resume: true }
    }

    /// Asks where to go on. Whether nothing is left to do; otherwise the next attempt goes on there, or begins anew
    /// under another name where the server does not say.
    async fn is_committed(&mut self) -> bool {
        let request = QueryWriteStatusRequest { resource_name: self.name.clone() };
        let mut client = self.remote.caller.byte_stream_writer();
        let ask = |request| async move { client.query_write_status(request).await };
        let answer = match self.encoding {
            Encoding::Identity if self.can_resume => self.remote.caller.unary(request, ask).await.ok(),
            // Offsets of compressed writes mean different things to different servers.
            Encoding::Identity | Encoding::Zstd => None,
        };
        let size_bytes = self.pin.digest().size_bytes();
        let committed = answer.as_ref().and_then(|answer| u64::try_from(answer.committed_size).ok());
        match committed {
            Some(_) if answer.is_some_and(|answer| answer.complete) => return true,
            Some(offset) if 0 < offset && offset < size_bytes => self.offset = offset,
            _ => {
                let can_resume = self.can_resume;
                *self = Self { can_resume, ..Self::new(self.remote, self.pin, self.encoding) };
            }
        }
        false
    }

    async fn attempt(&self) -> Result<(), Fault> {
        let (sender, receiver) = mpsc::channel(CHUNKS_READY_MAX);
        let request =
            self.remote.caller.request(ReceiverStream::new(receiver)).await.map_err(Fault::Status)?;
        let mut client = self.remote.caller.byte_stream_writer();
        let sent_bytes = AtomicU64::new(0);
        let produce = self.produce(sender, &sent_bytes);
        let call = client.write(request);
        tokio::pin!(produce, call);
        let answer = tokio::select! {
            // An early answer ends the upload: somebody else has brought the blob.
            answer = &mut call => answer,
            produced = &mut produce => {
                produced?;
                let late = |_| Status::deadline_exceeded("all is sent, and there is no answer");
                timeout(COMMIT_TIME_MAX, call).await.map_err(late).map_err(Fault::Status)?
            }
        };
        let answer = answer.map_err(Fault::Status)?.into_inner();
        let size_bytes = self.pin.digest().size_bytes().cast_signed();
        let sent_bytes = sent_bytes.load(Ordering::Relaxed).cast_signed();
        let is_right = match self.encoding {
            Encoding::Identity => answer.committed_size == size_bytes,
            // -1 is the early answer, and nothing else than what was sent is a late one.
            Encoding::Zstd => answer.committed_size == -1 || answer.committed_size == sent_bytes,
        };
        if is_right {
            return Ok(());
        }
        let message = format!("committed {} of {size_bytes} bytes", answer.committed_size);
        Err(Fault::Status(Status::internal(message)))
    }

    /// Makes the messages. Ends early when nobody takes them any more.
    async fn produce(&self, sender: mpsc::Sender<WriteRequest>, sent_bytes: &AtomicU64) -> Result<(), Fault> {
        let size_bytes = self.pin.digest().size_bytes();
        let store = &self.remote.shared.store;
        let mut reader = store.reader(self.pin.clone(), self.offset, u64::MAX);
        let mut deflater = match self.encoding {
            Encoding::Identity => None,
            Encoding::Zstd => Some(Deflater::new().map_err(|reason| internal(&reason))?),
        };
        let mut read_bytes = self.offset;
        let mut offset = self.offset;
        let mut resource_name = self.name.clone();
        while let Some(data) = reader.next().await {
            let data = data.map_err(Fault::Store)?;
            read_bytes += data.len() as u64;
            let is_last = read_bytes == size_bytes;
            let mut data = match &mut deflater {
                None => data,
                Some(deflater) => deflater.pack(&data, is_last).map_err(|reason| internal(&reason))?,
            };
            while !data.is_empty() {
                let chunk: Bytes = data.split_to(data.len().min(CHUNK_BYTES));
                let request = WriteRequest {
                    resource_name: std::mem::take(&mut resource_name),
                    write_offset: offset.cast_signed(),
                    finish_write: is_last && data.is_empty(),
                    data: chunk.to_vec(),
                };
                offset += chunk.len() as u64;
                let sending = timeout(STALL_TIME_MAX, sender.send(request)).await;
                let Ok(sent) = sending else {
                    return Err(Fault::Status(Status::deadline_exceeded("the stream stalls")));
                };
                if sent.is_err() {
                    return Ok(());
                }
                sent_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

fn internal(reason: &str) -> Fault {
    Fault::Status(Status::failed_precondition(format!("zstd: {reason}")))
}
