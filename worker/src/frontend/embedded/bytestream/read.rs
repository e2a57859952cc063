//! Reads: a blob or a range of it, as it is or as one zstd frame.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use longshore_cas_store::blob::{BlobStore, StoreError};
use longshore_cas_store::digest::Digest;
use longshore_proto::bytestream::{ReadRequest, ReadResponse};
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Code, Status};

use super::super::compression::Compressor;
use super::super::limits::COMPRESSION_STATE_BYTES;
use super::super::resource_name::{Form, ResourceName, parse_read};
use super::super::share::Share;
use super::not_found;
use crate::status::Failure;

/// The chunks of a read.
pub(super) type Chunks = BoxStream<'static, Result<ReadResponse, Status>>;

/// Opens what a request asks for; the state of a compression takes its room out of `share`.
pub(super) async fn open(
    store: &Arc<BlobStore>,
    share: &Share,
    request: &ReadRequest,
) -> Result<Chunks, Status> {
    let ResourceName { digest, form } = parse_read(&request.resource_name)?;
    let limit = limit(request.read_limit, form)?;
    let pin = store.pin(&digest).ok_or_else(|| not_found(&digest))?;
    let offset = offset(request.read_offset, &digest)?;
    let chunks = store.reader(pin, offset, limit);
    match form {
        Form::Plain => Ok(chunks.map(response).boxed()),
        Form::Zstd => {
            let room = share.state(COMPRESSION_STATE_BYTES).await?;
            Ok(compressed(chunks, room)?.boxed())
        }
    }
}

fn limit(read_limit: i64, form: Form) -> Result<u64, Failure> {
    match (u64::try_from(read_limit), form) {
        (Ok(0), _) => Ok(u64::MAX),
        (Ok(limit), Form::Plain) => Ok(limit),
        (Ok(limit), Form::Zstd) => {
            Err(Failure::invalid(format!("read_limit: is {limit}, and must be 0 for a compressed blob")))
        }
        (Err(_), _) => Err(Failure::invalid(format!("read_limit: {read_limit} is negative"))),
    }
}

/// Offsets count the bytes of the blob, in whatever form they travel.
fn offset(read_offset: i64, digest: &Digest) -> Result<u64, Failure> {
    let offset = u64::try_from(read_offset).ok().filter(|offset| *offset <= digest.size_bytes());
    offset.ok_or_else(|| {
        let message = format!("read_offset: {read_offset} is not within blob {digest}");
        Failure::new(Code::OutOfRange, message)
    })
}

fn response(chunk: Result<Bytes, StoreError>) -> Result<ReadResponse, Status> {
    Ok(ReadResponse { data: chunk.map_err(Failure::from)?.into() })
}

/// One zstd frame of everything that `chunks` yield, made off the async threads; `room` is free afterwards.
fn compressed<S>(
    chunks: S,
    room: OwnedSemaphorePermit,
) -> Result<impl Stream<Item = Result<ReadResponse, Status>> + Send + use<S>, Failure>
where
    S: Stream<Item = Result<Bytes, StoreError>> + Send + Unpin + 'static,
{
    let compressor = Compressor::new().map_err(|error| broken(&error))?;
    let parts = stream::try_unfold(Some((compressor, chunks, room)), |compression| async {
        let Some((mut compressor, mut chunks, room)) = compression else { return Ok(None) };
        let chunk = chunks.try_next().await.map_err(Failure::from)?;
        let part = tokio::task::spawn_blocking(move || match chunk {
            Some(chunk) => compressor.push(&chunk).map(|part| (part, Some(compressor))),
            None => compressor.finish().map(|part| (part, None)),
        });
        let part = part.await.map_err(|error| Failure::internal(format!("compression: {error}")))?;
        let (part, compressor) = part.map_err(|error| broken(&error))?;
        Ok::<_, Status>(Some((part, compressor.map(|compressor| (compressor, chunks, room)))))
    });
    let parts = parts.try_filter(|part| std::future::ready(!part.is_empty()));
    Ok(parts.map_ok(|data| ReadResponse { data }))
}

fn broken(error: &std::io::Error) -> Failure {
    Failure::internal(format!("compression: {error}"))
}
