//! HTTP/2 by hand: calls that no gRPC client would make, on a connection that need not be listened to.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use longshore_proto::Message;
use longshore_tests::longshore::Longshore;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::codegen::http;

pub(super) const BATCH_READ: &str =
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs";
pub(super) const BATCH_UPDATE: &str =
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs";
pub(super) const READ: &str = "/google.bytestream.ByteStream/Read";
pub(super) const WAIT_EXECUTION: &str = "/build.bazel.remote.execution.v2.Execution/WaitExecution";
pub(super) const WRITE: &str = "/google.bytestream.ByteStream/Write";

/// Windows as large as they may be: the server is told that it can send whatever it likes.
const WINDOW_BYTES: u32 = (1 << 31) - 1;

/// A connection, which is closed when this is dropped.
pub(super) struct Wire {
    sender: SendRequest<Bytes>,
    is_deaf: Arc<AtomicBool>,
    socket: std::net::TcpStream,
    driver: JoinHandle<()>,
}

/// A call that has begun.
pub(super) struct Call {
    pub(super) response: ResponseFuture,
    pub(super) stream: SendStream<Bytes>,
}

impl Wire {
    pub(super) async fn connect(longshore: &Longshore) -> Result<Self> {
        let socket = tcp(longshore).await?.into_std()?;
        let stream = TcpStream::from_std(socket.try_clone()?)?;
        let is_deaf = Arc::new(AtomicBool::new(false));
        let ear = Ear { stream, is_deaf: is_deaf.clone() };
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
        let (sender, connection) = builder.handshake(ear).await.context("a handshake")?;
        // How the connection ends is seen by its calls.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, is_deaf, socket, driver })
    }

    /// Reads nothing any more, while it goes on to write.
    pub(super) fn stop_reading(&self) {
        self.is_deaf.store(true, Ordering::Relaxed);
    }

    /// Says that nothing more will come, and goes on to read.
    pub(super) fn close_writing(&self) -> Result<()> {
        self.socket.shutdown(std::net::Shutdown::Write).context("shutdown")
    }

    /// Begins a call; waits while the server allows no more of them.
    pub(super) async fn begin(&mut self, method: &str) -> Result<Call> {
        self.begin_with(method, &[]).await
    }

    /// The same with headers of one's own.
    pub(super) async fn begin_with(&mut self, method: &str, headers: &[(&str, &str)]) -> Result<Call> {
        let mut request = http::Request::post(format!("http://longshore{method}"));
        for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")].iter().chain(headers)
        {
            request = request.header(*name, *value);
        }
        let request = request.body(()).context("a request")?;
        self.sender = self.sender.clone().ready().await.context("a connection")?;
        let (response, stream) = self.sender.send_request(request, false).context("a stream")?;
        Ok(Call { response, stream })
    }

    /// Makes a call with one message, and ends its side.
    pub(super) async fn call(&mut self, method: &str, message: &impl Message) -> Result<Call> {
        let mut call = self.begin(method).await?;
        call.stream.send_data(framed(message), true).context("a message")?;
        Ok(call)
    }

    /// How many calls at once the server allows.
    pub(super) fn streams_max(&self) -> usize {
        self.sender.current_max_send_streams()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Call {
    /// The status that the call ends with; what it answers is read and thrown away.
    pub(super) async fn status(self) -> Result<Status> {
        let response = self.response.await.context("no answer")?;
        let (head, mut body) = response.into_parts();
        if let Some(status) = Status::from_header_map(&head.headers) {
            return Ok(status);
        }
        while let Some(data) = body.data().await {
            let length = data.context("an answer")?.len();
            body.flow_control().release_capacity(length)?;
        }
        let trailers = body.trailers().await.context("trailers")?.context("no trailers")?;
        Status::from_header_map(&trailers).context("no status")
    }

    /// The beginning of the answer.
    pub(super) async fn body(self) -> Result<RecvStream> {
        Ok(self.response.await.context("no answer")?.into_body())
    }
}

/// A message as gRPC frames it.
pub(super) fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::from(&announced(message.encoded_len())[..]);
    message.encode(&mut bytes).expect("it grows");
    bytes.freeze()
}

/// What stands before a message of that length.
pub(super) fn announced(length: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).expect("a length of gRPC"));
    bytes.freeze()
}

/// A connection without any protocol.
pub(super) async fn tcp(longshore: &Longshore) -> Result<TcpStream> {
    let address = longshore.uri().strip_prefix("http://").context("an address")?;
    TcpStream::connect(address).await.with_context(|| address.to_owned())
}

/// A stream that can be made not to hear.
struct Ear {
    stream: TcpStream,
    is_deaf: Arc<AtomicBool>,
}

impl AsyncRead for Ear {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_deaf.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Ear {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
