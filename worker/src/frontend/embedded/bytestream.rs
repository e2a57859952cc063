//! The service `ByteStream`: blobs of any size, in a stream each way.

use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use longshore_cas_store::blob::{BlobStore, BlobWriter, Ingest};
use longshore_cas_store::digest::Digest;
use longshore_proto::bytestream::byte_stream_server::ByteStream;
use longshore_proto::bytestream::{
    QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest, WriteResponse,
};
use tonic::{Code, Request, Response, Status, Streaming};

use super::limits::DRAIN_BYTES_MAX;
use super::resource_name::{parse_read, parse_write};
use crate::status::Failure;

/// Serves the store.
#[derive(Clone, Debug)]
pub(super) struct ByteStreamService {
    store: Arc<BlobStore>,
}

type ReadStream = BoxStream<'static, Result<ReadResponse, Status>>;

impl ByteStreamService {
    pub(super) fn new(store: Arc<BlobStore>) -> Self {
        Self { store }
    }

    fn read(&self, request: &ReadRequest) -> Result<ReadStream, Failure> {
        let digest = parse_read(&request.resource_name)?.digest;
        let size = digest.size_bytes();
        let limit = match u64::try_from(request.read_limit) {
            Ok(0) => u64::MAX,
            Ok(limit) => limit,
            Err(_) => return Err(Failure::invalid(format!("read_limit {} is negative", request.read_limit))),
        };
        let pin = self.store.pin(&digest);
        let pin = pin.ok_or_else(|| Failure::new(Code::NotFound, format!("blob {digest} is not here")))?;
        let offset =
            u64::try_from(request.read_offset).ok().filter(|offset| *offset <= size).ok_or_else(|| {
                let message = format!("read_offset {} is outside of blob {digest}", request.read_offset);
                Failure::new(Code::OutOfRange, message)
            })?;
        let chunks = self.store.reader(pin, offset, limit);
        let responses = chunks.map_ok(|data| ReadResponse { data: data.into() });
        Ok(responses.map_err(|error| Failure::from(error).to_tonic()).boxed())
    }

    async fn write(&self, mut requests: Streaming<WriteRequest>) -> Result<i64, Status> {
        let Some(first) = requests.message().await? else {
            return Err(Failure::invalid("the stream ended before its first message").to_tonic());
        };
        let digest = parse_write(&first.resource_name)?.digest;
        let writer = match self.store.ingest(digest).await.map_err(Failure::from)? {
            Ingest::Present(_) => {
                drain(requests).await;
                return Ok(digest.size_bytes().cast_signed());
            }
            Ingest::Write(writer) => writer,
        };
        let name = first.resource_name.clone();
        let mut upload = Upload { digest, name, writer };
        let mut request = first;
        loop {
            let is_last = request.finish_write;
            upload.append(request).await?;
            if is_last {
                break;
            }
            request = requests.message().await?.ok_or_else(|| {
                let written = upload.writer.written_bytes();
                let message =
                    format!("the stream ended without finish_write after {written} bytes of blob {digest}");
                Failure::invalid(message).to_tonic()
            })?;
        }
        if requests.message().await?.is_some() {
            return Err(Failure::invalid("a message follows finish_write").to_tonic());
        }
        upload.writer.finish().await.map_err(Failure::from)?;
        Ok(digest.size_bytes().cast_signed())
    }
}

/// An upload under way.
struct Upload {
    digest: Digest,
    name: String,
    writer: BlobWriter,
}

impl Upload {
    async fn append(&mut self, request: WriteRequest) -> Result<(), Failure> {
        if !request.resource_name.is_empty() && request.resource_name != self.name {
            return Err(Failure::invalid(format!("resource_name changed to {:?}", request.resource_name)));
        }
        let written = self.writer.written_bytes();
        if request.write_offset != written.cast_signed() {
            let message = format!(
                "write_offset is {}, {written} bytes of blob {} are here",
                request.write_offset, self.digest
            );
            return Err(Failure::invalid(message));
        }
        // An empty message keeps the stream alive.
        if request.data.is_empty() {
            return Ok(());
        }
        Ok(self.writer.write(request.data.into()).await?)
    }
}

/// Reads what is still on its way: the answer reaches a client that is in the middle of sending.
async fn drain(mut requests: Streaming<WriteRequest>) {
    let mut bytes = 0;
    while bytes < DRAIN_BYTES_MAX {
        match requests.message().await {
            Ok(Some(request)) if !request.finish_write => bytes += request.data.len() as u64,
            _ => return,
        }
    }
}

#[tonic::async_trait]
impl ByteStream for ByteStreamService {
    type ReadStream = ReadStream;

    async fn read(&self, call: Request<ReadRequest>) -> Result<Response<ReadStream>, Status> {
        Ok(Response::new(self.read(call.get_ref())?))
    }

    async fn write(&self, call: Request<Streaming<WriteRequest>>) -> Result<Response<WriteResponse>, Status> {
        let committed_size = self.write(call.into_inner()).await?;
        Ok(Response::new(WriteResponse { committed_size }))
    }

    async fn query_write_status(
        &self,
        call: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        let digest = parse_write(&call.get_ref().resource_name)?.digest;
        if self.store.pin(&digest).is_none() {
            let message = format!("nothing of blob {digest} is here; uploads begin anew");
            return Err(Failure::new(Code::NotFound, message).to_tonic());
        }
        let committed_size = digest.size_bytes().cast_signed();
        Ok(Response::new(QueryWriteStatusResponse { committed_size, complete: true }))
    }
}
