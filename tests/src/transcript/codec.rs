//! gRPC with messages that nobody decodes, in both roles.

use std::convert::Infallible;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use bytes::{Buf as _, BufMut as _, Bytes};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Service, http};
use tonic::metadata::{BinaryMetadataKey, KeyAndValueRef, MetadataMap, MetadataValue};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::transport::server::{Server, TcpIncoming};
use tonic::{Request, Response, Status, Streaming};

use super::{Headers, Message};

/// Messages as they are on the wire.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// What a server says; an error of code OK is an end with trailers.
type Said = Result<Bytes, Status>;

/// A call as its server has it.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) method: String,
    pub(super) headers: MetadataMap,
    pub(super) requests: Streaming<Bytes>,
    /// Where replies go.
    pub(super) replies: mpsc::UnboundedSender<Said>,
}

/// Answers calls of every method.
pub(super) trait Answer: Clone + Send + Sync + 'static {
    /// Answers one of them. The future is dropped when the client does not wait any more.
    fn answer(&self, call: Incoming) -> BoxFuture<'static, ()>;
}

/// Serves on a free port; where it listens, and its task.
pub(super) async fn serve(answer: impl Answer) -> Result<(String, JoinHandle<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("a port")?;
    let uri = format!("http://{}", listener.local_addr().context("the port")?);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let router = Server::builder().add_service(EveryService(answer));
    let task = tokio::spawn(async move {
        // It ends by being aborted; a listener that fails shows in the test.
        let _ = router.serve_with_incoming(incoming).await;
    });
    Ok((uri, task))
}

#[derive(Clone, Debug)]
struct EveryService<A>(A);

impl<A> NamedService for EveryService<A> {
    // The router takes it for a parameter, which stands for every name.
    const NAME: &'static str = "{service}";
}

impl<A: Answer> Service<http::Request<Body>> for EveryService<A> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = OneCall { answer: self.0.clone(), method: request.uri().path().to_owned() };
        Box::pin(async move { Ok(Grpc::new(Raw).streaming(call, request).await) })
    }
}

struct OneCall<A> {
    answer: A,
    method: String,
}

impl<A: Answer> StreamingService<Bytes> for OneCall<A> {
    type Response = Bytes;
    type ResponseStream = BoxStream<'static, Said>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (headers, _, requests) = request.into_parts();
        let (replies, receiver) = mpsc::unbounded_channel();
        let incoming = Incoming { method: std::mem::take(&mut self.method), headers, requests, replies };
        let mut tasks = JoinSet::new();
        tasks.spawn(self.answer.answer(incoming));
        // The task goes with the stream, and so with whoever reads it.
        let stream = UnboundedReceiverStream::new(receiver).inspect(move |_| _ = &tasks);
        std::future::ready(Ok(Response::new(stream.boxed())))
    }
}

/// The binary ones of headers or trailers.
pub(super) fn binary(headers: &MetadataMap) -> Headers {
    let message = |entry| match entry {
        KeyAndValueRef::Binary(key, value) => {
            let value: &MetadataValue<_> = value;
            Some((BinaryMetadataKey::to_string(key), Message(value.to_bytes().ok()?.to_vec())))
        }
        KeyAndValueRef::Ascii(..) => None,
    };
    headers.iter().filter_map(message).collect()
}

/// Headers or trailers with those in them.
pub(super) fn metadata(headers: &Headers) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for (name, Message(value)) in headers {
        let key = BinaryMetadataKey::from_bytes(name.as_bytes()).expect("it was a name when it was recorded");
        metadata.insert_bin(key, MetadataValue::from_bytes(value));
    }
    metadata
}
