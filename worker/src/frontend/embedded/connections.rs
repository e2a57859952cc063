//! Accepting connections: so many at once, and no faster than the machine can.
//!
//! Each takes an open file, of which there are so many. The connections beyond the bound wait in the kernel's queue
//! until another one closes; they are not refused, because clients do not try again for long. While one waits, those
//! that are of no use to anybody have to go.

mod guests;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use longshore_cas_store::io::Clock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

use self::guests::{Guest, Guests};
use super::share::Share;
use super::unix_stream::LocalStream;
use crate::connect::Gathered;

/// How long nothing is accepted after it failed. Without open files left it fails at once, again and again.
const PAUSE: Duration = Duration::from_millis(100);

/// What connections come from.
pub(super) trait Accept: Send + 'static {
    type Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Connection>> + Send;
}

impl Accept for TcpListener {
    type Connection = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = Self::accept(self).await?;
        // Without TCP_NODELAY a small answer waits for an acknowledgement that the client delays by 40 ms.
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Accept for UnixListener {
    type Connection = LocalStream;

    async fn accept(&self) -> io::Result<LocalStream> {
        Self::accept(self).await.map(|(stream, _)| LocalStream::new(stream))
    }
}

/// The connections of `listener`, at most `connections_max` of them open at once.
pub(super) fn incoming<L: Accept>(
    listener: L,
    connections_max: usize,
    clock: Arc<dyn Clock>,
) -> impl Stream<Item = io::Result<Connection<L::Connection>>> {
    let room = Arc::new(Semaphore::new(connections_max));
    let guests = Guests::new(connections_max, clock.clone());
    futures::stream::unfold((listener, room, guests, clock), async |(listener, room, mut guests, clock)| {
        let stream = accepted(&listener, &*clock).await;
        let permit = loop {
            tokio::select! {
                biased;
                // Nobody closes the semaphore.
                permit = room.clone().acquire_owned() => break permit.ok()?,
                () = guests.send_one_away() => {}
            }
        };
        let connection = Connection::new(stream, guests.welcome(), permit);
        Some((Ok(connection), (listener, room, guests, clock)))
    })
}

async fn accepted<L: Accept>(listener: &L, clock: &dyn Clock) -> L::Connection {
    loop {
        match listener.accept().await {
            Ok(stream) => return stream,
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                clock.sleep(PAUSE).await;
            }
        }
    }
}

/// Whether it is over with the connection that was to be accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// A connection, which makes room for another one when it is dropped.
pub(super) struct Connection<S: AsyncWrite + Unpin> {
    stream: Gathered<S>,
    guest: Arc<Guest>,
    sent_away: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: OwnedSemaphorePermit,
}

impl<S: AsyncWrite + Unpin> Connection<S> {
    fn new(stream: S, guest: Arc<Guest>, permit: OwnedSemaphorePermit) -> Self {
        let sent_away = Box::pin(guest.sent_away());
        Self { stream: Gathered::new(stream), guest, sent_away, _permit: permit }
    }

    /// Fails once the connection has to go.
    fn poll_sent_away(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.sent_away.as_mut().poll(context) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::TimedOut, "idle while others wait")),
        }
    }
}

impl<S: AsyncWrite + Unpin> Connected for Connection<S> {
    type ConnectInfo = Share;

    fn connect_info(&self) -> Share {
        self.guest.share().clone()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_sent_away(context)?;
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.guest.is_active();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_sent_away(context)?;
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if written.is_ready() {
            self.guest.is_active();
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_sent_away(context)?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        if written.is_ready() {
            self.guest.is_active();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
