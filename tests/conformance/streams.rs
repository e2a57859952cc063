//! Streams of ByteStream as the tests of its rules need them: by the rules, or against them.

use anyhow::{Context as _, Result};
use futures::channel::mpsc;
use futures::{StreamExt as _, stream};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::bytestream::{
    QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, WriteRequest, WriteResponse,
};
use longshore_tests::client::Client;
use tokio::task::JoinHandle;
use tonic::{Response, Status};

/// What the server writes at once: an upload of several of these is in a file in part.
pub(crate) const FLUSH_BYTES: usize = 256 << 10;

/// What a resource name says of a blob, for every form and after the keyword.
pub(crate) fn tail(digest: &Digest) -> String {
    match digest.function() {
        DigestFunction::Blake3 => format!("blake3/{digest}"),
        _ => digest.to_string(),
    }
}

/// A new name for an upload as zstd.
pub(crate) fn zstd_write_name(digest: &Digest) -> String {
    format!("uploads/{}/{}", uuid::Uuid::new_v4(), zstd_read_name(digest))
}

/// The name that reads a blob as zstd.
pub(crate) fn zstd_read_name(digest: &Digest) -> String {
    format!("compressed-blobs/zstd/{}", tail(digest))
}

/// One request of an upload.
pub(crate) fn part(name: &str, offset: usize, data: &[u8], finish_write: bool) -> WriteRequest {
    WriteRequest {
        resource_name: name.to_owned(),
        write_offset: i64::try_from(offset).expect("an offset"),
        finish_write,
        data: data.to_vec(),
    }
}

/// The requests that send `data` from `offset` on, `part_bytes` each; the last one finishes.
pub(crate) fn parts(name: &str, data: &[u8], offset: usize, part_bytes: usize) -> Vec<WriteRequest> {
    let starts: Vec<_> = (offset..data.len().max(offset + 1)).step_by(part_bytes).collect();
    let one = |start: usize| {
        let end = data.len().min(start + part_bytes);
        part(name, start, &data[start..end], end == data.len())
    };
    starts.into_iter().map(one).collect()
}

/// Sends requests and closes the stream; the committed size.
pub(crate) async fn write(client: &Client, requests: Vec<WriteRequest>) -> Result<i64, Status> {
    let response = client.byte_stream().write(stream::iter(requests)).await?;
    Ok(response.into_inner().committed_size)
}

/// Sends all of a blob by one name.
pub(crate) async fn write_whole(client: &Client, name: &str, data: &[u8]) -> Result<i64, Status> {
    write(client, parts(name, data, 0, 1 << 20)).await
}

/// What the server knows of an upload: the committed size, and whether that is all.
pub(crate) async fn ask(client: &Client, name: &str) -> Result<(i64, bool), Status> {
    let request = QueryWriteStatusRequest { resource_name: name.to_owned() };
    let QueryWriteStatusResponse { committed_size, complete } =
        client.byte_stream().query_write_status(request).await?.into_inner();
    Ok((committed_size, complete))
}

/// The messages of a read.
pub(crate) async fn read_messages(
    client: &Client,
    name: &str,
    read_offset: i64,
    read_limit: i64,
) -> Result<Vec<Vec<u8>>, Status> {
    let request = ReadRequest { resource_name: name.to_owned(), read_offset, read_limit };
    let mut stream = client.byte_stream().read(request).await?.into_inner();
    let mut messages = Vec::new();
    while let Some(response) = stream.next().await {
        messages.push(response?.data);
    }
    Ok(messages)
}

/// The bytes of a read.
pub(crate) async fn read(
    client: &Client,
    name: &str,
    read_offset: i64,
    read_limit: i64,
) -> Result<Vec<u8>, Status> {
    Ok(read_messages(client, name, read_offset, read_limit).await?.concat())
}

/// An upload whose stream stays open until it is closed, or dropped.
pub(crate) struct OpenWrite {
    sender: mpsc::UnboundedSender<WriteRequest>,
    answer: JoinHandle<Result<Response<WriteResponse>, Status>>,
}

impl OpenWrite {
    pub(crate) fn begin(client: &Client, first: WriteRequest) -> Self {
        let (sender, requests) = mpsc::unbounded();
        let mut byte_stream = client.byte_stream();
        let answer = tokio::spawn(async move { byte_stream.write(requests).await });
        let open = Self { sender, answer };
        open.send(first);
        open
    }

    /// Sends one more request, if the stream is still there.
    pub(crate) fn send(&self, request: WriteRequest) {
        let _ = self.sender.unbounded_send(request);
    }

    /// The committed size, while the client's side stays open.
    pub(crate) async fn answered(&mut self) -> Result<i64, Status> {
        let response = (&mut self.answer).await.expect("the call does not panic")?;
        Ok(response.into_inner().committed_size)
    }
}

impl Drop for OpenWrite {
    fn drop(&mut self) {
        // Cancels the call, unless it has ended.
        self.answer.abort();
    }
}

/// Waits until `committed_bytes` of an upload are known at least; how many are.
pub(crate) async fn committed(client: &Client, name: &str, committed_bytes: i64) -> Result<i64> {
    loop {
        match ask(client, name).await {
            Ok((committed, complete)) if complete || committed >= committed_bytes => return Ok(committed),
            Ok(_) => {}
            Err(status) if status.code() == tonic::Code::NotFound => {}
            Err(status) => return Err(status).context("QueryWriteStatus"),
        }
        tokio::task::yield_now().await;
    }
}
