//! The ByteStream service: blobs of any size, in and out, a chunk at a time.
//!
//! Nothing of a write is visible before its end. Where an answer comes before the end of the client's stream, the
//! stream is listened to for a while: a client whose stream is reset may not see the answer.

mod read;
#[cfg(test)]
mod tests;
mod uploads;
mod write;

use std::sync::{Arc, Weak};

use futures::{Stream, StreamExt as _};
use longshore_cas_store::blob::{BlobStore, PressureRelief};
use longshore_cas_store::digest::Digest;
use longshore_cas_store::io::Environment;
use longshore_proto::bytestream::byte_stream_server::ByteStream;
use longshore_proto::bytestream::{
    QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, WriteRequest, WriteResponse,
};
use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};

use super::limits::{DRAIN_BYTES_MAX, DRAIN_TIME_MAX, KEPT_UPLOADS_SHARE, UPLOADS_MEMORY_BYTES_MAX};
use super::resource_name::{Form, ResourceName, parse_write};
use super::share::Share;
use crate::status::Failure;
use uploads::{UploadLimits, Uploads};
use write::{Requests, Writes};

/// The header that routers read instead of the message (REAPI 2.12).
const RESOURCE_NAME_HEADER: &str = "build.bazel.remote.execution.v2.resource-name";

/// The ByteStream service.
#[derive(Clone)]
pub(super) struct ByteStreamService {
    writes: Writes,
}

impl ByteStreamService {
    /// Has at most `uploads_max` uploads open or kept.
    pub(super) fn new(store: Arc<BlobStore>, environment: &Environment, uploads_max: usize) -> Self {
        let limits = UploadLimits {
            kept_bytes_max: store.blob_size_bytes_max() / KEPT_UPLOADS_SHARE,
            count_max: uploads_max,
            memory_bytes_max: UPLOADS_MEMORY_BYTES_MAX,
        };
        let uploads = Uploads::new(limits, environment.clock.clone(), environment.executor.clone());
        let relief: Weak<Uploads> = Arc::downgrade(&uploads);
        store.on_pressure(relief as Weak<dyn PressureRelief>);
        Self { writes: Writes { store, uploads, clock: environment.clock.clone() } }
    }

    /// Takes an upload in; answers the committed size.
    async fn receive<S>(&self, header: Option<String>, share: Share, requests: &mut S) -> Result<i64, Status>
    where
        S: Stream<Item = Result<WriteRequest, Status>> + Unpin + Send,
    {
        let Some(first) = requests.next().await.transpose()? else {
            return Err(Failure::invalid("the stream has no request").into());
        };
        check_header(header.as_deref(), &first.resource_name)?;
        let ResourceName { digest, form } = parse_write(&first.resource_name)?;
        let requests = Requests::new(first, requests, share, self.writes.clock.clone())?;
        match form {
            Form::Plain => self.writes.plain(digest, requests).await,
            Form::Zstd => self.writes.compressed(digest, requests).await,
        }
    }

    fn write_status(&self, resource_name: &str) -> Result<QueryWriteStatusResponse, Failure> {
        let ResourceName { digest, form } = parse_write(resource_name)?;
        if self.writes.store.pin(&digest).is_some() {
            let committed_size = digest.size_bytes().cast_signed();
            return Ok(QueryWriteStatusResponse { committed_size, complete: true });
        }
        let committed_bytes = match form {
            Form::Plain => self.writes.uploads.committed_bytes(resource_name),
            Form::Zstd => None,
        };
        let committed_size = committed_bytes.ok_or_else(|| not_found(&digest))?.cast_signed();
        Ok(QueryWriteStatusResponse { committed_size, complete: false })
    }
}

/// Throws away what a client still sends, for a while.
async fn drain<S>(mut requests: S)
where
    S: Stream<Item = Result<WriteRequest, Status>> + Unpin + Send,
{
    let read = async {
        let mut bytes = 0;
        while let Some(Ok(request)) = requests.next().await {
            bytes += request.data.len();
            if bytes > DRAIN_BYTES_MAX {
                break;
            }
        }
    };
    // Whoever sends longer than that has had its answer.
    let _ = timeout(DRAIN_TIME_MAX, read).await;
}

fn not_found(digest: &Digest) -> Failure {
    Failure::new(Code::NotFound, format!("blob {digest} is not in the store"))
}

fn header(metadata: &MetadataMap) -> Option<String> {
    metadata.get(RESOURCE_NAME_HEADER).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn check_header(header: Option<&str>, resource_name: &str) -> Result<(), Failure> {
    match header {
        Some(header) if header != resource_name => Err(Failure::invalid(format!(
            "resource_name: is not what the header {RESOURCE_NAME_HEADER} says"
        ))),
        _ => Ok(()),
    }
}

#[tonic::async_trait]
impl ByteStream for ByteStreamService {
    type ReadStream = read::Chunks;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        check_header(header(request.metadata()).as_deref(), &request.get_ref().resource_name)?;
        let share = Share::of(&request);
        Ok(Response::new(read::open(&self.writes.store, &share, request.get_ref()).await?))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        let header = header(request.metadata());
        let share = Share::of(&request);
        let mut requests = request.into_inner();
        let outcome = self.receive(header, share, &mut requests).await;
        tokio::spawn(drain(requests));
        outcome.map(|committed_size| Response::new(WriteResponse { committed_size }))
    }

    async fn query_write_status(
        &self,
        request: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        let resource_name = &request.get_ref().resource_name;
        check_header(header(request.metadata()).as_deref(), resource_name)?;
        Ok(Response::new(self.write_status(resource_name)?))
    }
}
