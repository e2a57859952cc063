//! ByteStream, compressed and not.

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use longshore_proto::bytestream::byte_stream_server::ByteStream;
use longshore_proto::bytestream::{
    QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest, WriteResponse,
};
use tonic::{Request, Response, Status, Streaming};

use super::services::{Service, call};
use super::{Call, Fault, Method, corrupted};

/// The size of one message of a read.
const CHUNK_BYTES: usize = 64 << 10;

/// What a resource name says.
struct Named {
    instance_name: String,
    hash: String,
    is_zstd: bool,
}

fn parse(name: &str) -> Result<Named, Status> {
    let parts: Vec<_> = name.split('/').collect();
    let [.., hash, _size] = parts[..] else { return Err(Status::invalid_argument("resource_name")) };
    let is_instance = |part: &&&str| !["blobs", "compressed-blobs", "uploads"].contains(*part);
    let instance: Vec<_> = parts.iter().take_while(is_instance).copied().collect();
    Ok(Named {
        instance_name: instance.join("/"),
        hash: hash.to_owned(),
        is_zstd: parts.contains(&"compressed-blobs"),
    })
}

#[tonic::async_trait]
impl ByteStream for Service {
    type ReadStream = BoxStream<'static, Result<ReadResponse, Status>>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let (headers, request) = (request.metadata().clone(), request.into_inner());
        let Named { instance_name, hash, is_zstd } = parse(&request.resource_name)?;
        let fault = self
            .0
            .enter(Call {
                hashes: vec![hash.clone()],
                instance_name: instance_name.clone(),
                resource_name: request.resource_name,
                offset: request.read_offset,
                ..call(Method::Read, &headers, [])
            })
            .await?;
        let data = self.0.lock().of(&instance_name).blobs.get(&hash).cloned();
        let data = data.ok_or_else(|| Status::not_found(hash))?;
        let offset = usize::try_from(request.read_offset).map_err(|_| Status::out_of_range("read_offset"))?;
        let offset = if matches!(fault, Some(Fault::Anew)) { 0 } else { offset };
        let data = data.slice(offset.min(data.len())..);
        let (data, end) = match fault {
            Some(Fault::Corrupt) => (corrupted(&data), None),
            Some(Fault::Truncate(len)) => (data.slice(..len.min(data.len())), None),
            Some(Fault::Break(len)) => {
                (data.slice(..len.min(data.len())), Some(Err(Status::internal("the stream breaks"))))
            }
            _ => (data, None),
        };
        let data = if is_zstd { Bytes::from(zstd::encode_all(&data[..], 1)?) } else { data };
        let chunks: Vec<_> =
            data.chunks(CHUNK_BYTES).map(|chunk| Ok(ReadResponse { data: chunk.to_vec() })).collect();
        Ok(Response::new(Box::pin(futures::stream::iter(chunks.into_iter().chain(end)))))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        let (headers, mut requests) = (request.metadata().clone(), request.into_inner());
        let first = requests.next().await.ok_or_else(|| Status::invalid_argument("no request"))??;
        let name = first.resource_name.clone();
        let Named { instance_name, hash, is_zstd } = parse(&name)?;
        let fault = self
            .0
            .enter(Call {
                hashes: vec![hash.clone()],
                instance_name: instance_name.clone(),
                resource_name: name.clone(),
                offset: first.write_offset,
                ..call(Method::Write, &headers, [])
            })
            .await?;
        if let Some(Fault::Commit(committed_size)) = fault {
            return Ok(Response::new(WriteResponse { committed_size }));
        }
        let mut data = self.0.lock().committed.remove(&name).unwrap_or_default().to_vec();
        if usize::try_from(first.write_offset) != Ok(data.len()) {
            return Err(Status::invalid_argument("write_offset"));
        }
        let mut request = first;
        loop {
            data.extend_from_slice(&request.data);
            if let Some(Fault::Break(len)) = fault
                && data.len() >= len
            {
                self.0.lock().committed.insert(name, data.into());
                return Err(Status::internal("the stream breaks"));
            }
            if request.finish_write {
                break;
            }
            request = requests.next().await.ok_or_else(|| Status::invalid_argument("finish_write"))??;
        }
        let committed_size = i64::try_from(data.len()).expect("it is in memory");
        let data = if is_zstd { zstd::decode_all(&data[..])? } else { data };
        self.0.lock().of(&instance_name).blobs.insert(hash, data.into());
        Ok(Response::new(WriteResponse { committed_size }))
    }

    async fn query_write_status(
        &self,
        request: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        let (headers, request) = (request.metadata().clone(), request.into_inner());
        let resource_name = request.resource_name.clone();
        let Named { instance_name, .. } = parse(&resource_name)?;
        let call = call(Method::QueryWriteStatus, &headers, []);
        self.0.enter(Call { resource_name, instance_name, ..call }).await?;
        let inner = self.0.lock();
        let committed = inner.committed.get(&request.resource_name);
        let committed = committed.ok_or_else(|| Status::not_found(request.resource_name.clone()))?;
        Ok(Response::new(QueryWriteStatusResponse {
            committed_size: i64::try_from(committed.len()).expect("it is in memory"),
            complete: false,
        }))
    }
}
