//! The ByteStream service: blobs of any size, in and out, a chunk at a time.
//!
//! A write begins at offset 0: partial uploads are not kept, and `QueryWriteStatus` says so. Nothing of a write is
//! visible before its end. Where an answer comes before the end of the client's stream, the stream is listened
//! to for a while: a client whose stream is reset may not see the answer.

use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use longshore_cas_store::blob::{BlobStore, BlobWriter, Ingest};
use longshore_cas_store::digest::Digest;
use longshore_proto::bytestream::byte_stream_server::ByteStream;
use longshore_proto::bytestream::{
    QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest, WriteResponse,
};
use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};

use super::limits::{DRAIN_BYTES_MAX, DRAIN_TIME_MAX, HALF_CLOSE_TIME_MAX};
use super::resource_name::{parse_read, parse_write};
use crate::status::Failure;

/// The header that routers read instead of the message (REAPI 2.12).
const RESOURCE_NAME_HEADER: &str = "build.bazel.remote.execution.v2.resource-name";

/// The ByteStream service.
#[derive(Clone, Debug)]
pub(super) struct ByteStreamService {
    store: Arc<BlobStore>,
}

impl ByteStreamService {
    pub(super) fn new(store: Arc<BlobStore>) -> Self {
        Self { store }
    }

    fn open(
        &self,
        request: &ReadRequest,
    ) -> Result<impl Stream<Item = Result<ReadResponse, Status>> + Send + use<>, Failure> {
        let digest = parse_read(&request.resource_name)?.digest;
        let limit = match u64::try_from(request.read_limit) {
            Ok(0) => u64::MAX,
            Ok(limit) => limit,
            Err(_) => {
                return Err(Failure::invalid(format!("read_limit: {} is negative", request.read_limit)));
            }
        };
        let pin = self.store.pin(&digest).ok_or_else(|| not_found(&digest))?;
        let offset = u64::try_from(request.read_offset).ok().filter(|offset| *offset <= digest.size_bytes());
        let offset = offset.ok_or_else(|| {
            let message = format!("read_offset: {} is not within blob {digest}", request.read_offset);
            Failure::new(Code::OutOfRange, message)
        })?;
        let chunks = self.store.reader(pin, offset, limit);
        Ok(chunks
            .map_ok(|data| ReadResponse { data: data.into() })
            .map_err(|error| Failure::from(error).into()))
    }

    /// Takes an upload in; answers the committed size.
    async fn receive<S>(&self, header: Option<String>, requests: &mut S) -> Result<i64, Status>
    where
        S: Stream<Item = Result<WriteRequest, Status>> + Unpin + Send,
    {
        let Some(first) = requests.next().await.transpose()? else {
            return Err(Failure::invalid("the stream has no request").into());
        };
        check_header(header.as_deref(), &first.resource_name)?;
        let digest = parse_write(&first.resource_name)?.digest;
        match self.store.ingest(digest).await.map_err(Failure::from)? {
            Ingest::Present(_) => {}
            Ingest::Write(writer) => write(writer, digest, first, requests).await?,
        }
        Ok(digest.size_bytes().cast_signed())
    }
}

/// Writes `first` and what follows it, up to `finish_write`.
async fn write<S>(
    mut writer: BlobWriter,
    digest: Digest,
    first: WriteRequest,
    requests: &mut S,
) -> Result<(), Status>
where
    S: Stream<Item = Result<WriteRequest, Status>> + Unpin + Send,
{
    let resource_name = first.resource_name.clone();
    let mut request = first;
    loop {
        if !request.resource_name.is_empty() && request.resource_name != resource_name {
            return Err(Failure::invalid("resource_name: changes within the stream").into());
        }
        let (offset, written_bytes) = (request.write_offset, writer.written_bytes());
        if u64::try_from(offset) != Ok(written_bytes) {
            let message = format!("write_offset: is {offset} where {written_bytes} bytes are written");
            return Err(Failure::invalid(message).into());
        }
        writer.write(request.data.into()).await.map_err(Failure::from)?;
        if request.finish_write {
            break;
        }
        request = requests.next().await.transpose()?.ok_or_else(|| {
            let (written, size) = (writer.written_bytes(), digest.size_bytes());
            Failure::invalid(format!("the stream ends without finish_write after {written} of {size} bytes"))
        })?;
    }
    // Some clients keep their side open until they are answered.
    if let Ok(Some(Ok(_))) = timeout(HALF_CLOSE_TIME_MAX, requests.next()).await {
        return Err(Failure::invalid("a request follows finish_write").into());
    }
    writer.finish().await.map_err(Failure::from)?;
    Ok(())
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
    type ReadStream = BoxStream<'static, Result<ReadResponse, Status>>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        check_header(header(request.metadata()).as_deref(), &request.get_ref().resource_name)?;
        Ok(Response::new(self.open(request.get_ref())?.boxed()))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        let header = header(request.metadata());
        let mut requests = request.into_inner();
        let outcome = self.receive(header, &mut requests).await;
        tokio::spawn(drain(requests));
        outcome.map(|committed_size| Response::new(WriteResponse { committed_size }))
    }

    async fn query_write_status(
        &self,
        request: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        let resource_name = &request.get_ref().resource_name;
        check_header(header(request.metadata()).as_deref(), resource_name)?;
        let digest = parse_write(resource_name)?.digest;
        if self.store.pin(&digest).is_none() {
            return Err(not_found(&digest).into());
        }
        let committed_size = digest.size_bytes().cast_signed();
        Ok(Response::new(QueryWriteStatusResponse { committed_size, complete: true }))
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use longshore_cas_store::digest::DigestFunction;

    use super::super::testing::Fixture;
    use super::*;

    const DATA: &[u8] = b"0123456789";

    fn upload_name(data: &[u8]) -> String {
        format!("main/uploads/u/blobs/{}", DigestFunction::Sha256.digest(data))
    }

    fn part(write_offset: i64, data: &[u8], finish_write: bool) -> WriteRequest {
        WriteRequest { resource_name: upload_name(DATA), write_offset, finish_write, data: data.to_vec() }
    }

    /// Sends `parts`; what is left of them and the outcome.
    async fn send(fixture: &Fixture, parts: Vec<WriteRequest>) -> (usize, Result<i64, Code>) {
        let service = ByteStreamService::new(fixture.store.clone());
        let mut requests = stream::iter(parts.into_iter().map(Ok));
        let outcome = service.receive(None, &mut requests).await;
        (requests.count().await, outcome.map_err(|status| status.code()))
    }

    fn is_present(fixture: &Fixture) -> bool {
        fixture.store.pin(&DigestFunction::Sha256.digest(DATA)).is_some()
    }

    #[tokio::test]
    async fn a_write_in_parts_becomes_the_blob() {
        let fixture = Fixture::new();
        let mut later = part(7, &DATA[7..], false);
        later.resource_name.clear();
        let parts = vec![part(0, &DATA[..3], false), part(3, &DATA[3..7], false), later, part(10, b"", true)];
        assert_eq!(send(&fixture, parts).await, (0, Ok(10)));
        assert!(is_present(&fixture));
    }

    // Nothing that breaks the rules becomes a blob.
    #[tokio::test]
    async fn wrong_writes_are_refused_and_leave_nothing() {
        let fixture = Fixture::new();
        let mut renamed = part(3, &DATA[3..], true);
        renamed.resource_name = upload_name(b"another");
        let cases = [
            ("no request", vec![]),
            ("an offset at the start", vec![part(3, &DATA[3..], true)]),
            ("a gap", vec![part(0, &DATA[..3], false), part(4, &DATA[4..], true)]),
            ("a negative offset", vec![part(-1, DATA, true)]),
            ("another name", vec![part(0, &DATA[..3], false), renamed]),
            ("no end", vec![part(0, DATA, false)]),
            ("too short", vec![part(0, &DATA[..9], true)]),
            ("too long", vec![part(0, b"0123456789a", true)]),
            ("another hash", vec![part(0, b"012345678x", true)]),
            ("more after the end", vec![part(0, DATA, true), part(10, b"", true)]),
        ];
        for (what, parts) in cases {
            assert_eq!(send(&fixture, parts).await.1, Err(Code::InvalidArgument), "{what}");
            assert!(!is_present(&fixture), "{what}");
        }
    }

    // Too much is noticed when it comes, not at the end of the stream.
    #[tokio::test]
    async fn an_overlong_write_is_refused_without_reading_the_rest() {
        let fixture = Fixture::new();
        let parts = vec![part(0, b"0123456789a", false), part(11, b"b", false), part(12, b"c", true)];
        assert_eq!(send(&fixture, parts).await, (2, Err(Code::InvalidArgument)));
    }

    #[tokio::test]
    async fn a_blob_that_is_here_is_answered_at_once() {
        let fixture = Fixture::new();
        fixture.put(DATA).await;
        assert_eq!(send(&fixture, vec![part(0, b"01", false), part(2, b"2", false)]).await, (1, Ok(10)));
    }

    #[tokio::test]
    async fn the_empty_blob_can_be_written() {
        let fixture = Fixture::new();
        let request =
            WriteRequest { resource_name: upload_name(b""), finish_write: true, ..Default::default() };
        assert_eq!(send(&fixture, vec![request]).await, (0, Ok(0)));
    }

    async fn fetch(
        fixture: &Fixture,
        data: &[u8],
        read_offset: i64,
        read_limit: i64,
    ) -> Result<Vec<u8>, Code> {
        let resource_name = format!("blobs/{}", DigestFunction::Sha256.digest(data));
        let request = ReadRequest { resource_name, read_offset, read_limit };
        let service = ByteStreamService::new(fixture.store.clone());
        let parts = service.read(Request::new(request)).await.map_err(|status| status.code())?.into_inner();
        let parts: Vec<_> = parts.try_collect().await.map_err(|status| status.code())?;
        Ok(parts.into_iter().flat_map(|part| part.data).collect())
    }

    #[tokio::test]
    async fn ranges_are_cut_at_the_end_and_refused_beyond_it() {
        let fixture = Fixture::new();
        fixture.put(DATA).await;
        let cases = [
            (0, 0, Ok(DATA)),
            (3, 0, Ok(&DATA[3..])),
            (3, 2, Ok(&DATA[3..5])),
            (3, 100, Ok(&DATA[3..])),
            (10, 0, Ok(&DATA[10..])),
            (11, 0, Err(Code::OutOfRange)),
            (-1, 0, Err(Code::OutOfRange)),
            (0, -1, Err(Code::InvalidArgument)),
        ];
        for (offset, limit, expected) in cases {
            let read = fetch(&fixture, DATA, offset, limit).await;
            assert_eq!(read, expected.map(<[u8]>::to_vec), "{offset} {limit}");
        }
        assert_eq!(fetch(&fixture, b"absent", 0, 0).await, Err(Code::NotFound));
        assert_eq!(fetch(&fixture, b"", 0, 0).await, Ok(Vec::new()));
    }

    #[tokio::test]
    async fn a_write_is_complete_or_unknown() {
        let fixture = Fixture::new();
        let service = ByteStreamService::new(fixture.store.clone());
        let ask = || Request::new(QueryWriteStatusRequest { resource_name: upload_name(DATA) });
        assert_eq!(service.query_write_status(ask()).await.unwrap_err().code(), Code::NotFound);
        fixture.put(DATA).await;
        let answer = service.query_write_status(ask()).await.unwrap().into_inner();
        assert_eq!(answer, QueryWriteStatusResponse { committed_size: 10, complete: true });
    }

    #[test]
    fn a_header_must_agree_where_there_is_one() {
        assert_eq!(check_header(None, "blobs"), Ok(()));
        assert_eq!(check_header(Some("blobs"), "blobs"), Ok(()));
        assert!(check_header(Some("other"), "blobs").is_err());
    }
}
