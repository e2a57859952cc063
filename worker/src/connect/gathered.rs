//! Writing what belongs together at once.
//!
//! HTTP/2 has several frames for one call, and their senders run one after another: headers, a message, an end. Written
//! as they come, each is a system call, a packet, and a wake-up of the other side. So the first flush after a silence is
//! put off by one turn of the runtime's queue: what others write meanwhile goes with it, in one piece. More flushes before
//! the next silence write at once, for HTTP/2 waits for them when it has much to send.
//!
//! Under TLS, the handshake needs somebody who comes back to a flush that was put off; tokio-rustls does.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is gathered at most: more goes at once, and uncopied.
const GATHERED_BYTES_MAX: usize = 16 << 10;

/// A connection that gathers what is written to it, and holds a `K` for as long as it lasts.
#[derive(Debug)]
pub struct Gathered<S: AsyncWrite + Unpin, K: Unpin = ()> {
    stream: S,
    _kept: K,
    /// What waits from `written` on.
    waiting: Vec<u8>,
    written: usize,
    /// The others have had their turn since the last silence.
    was_put_off: bool,
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// Gathers what is written to `stream`.
    pub fn new(stream: S) -> Self {
        Self::holding((), stream)
    }
}

impl<S: AsyncWrite + Unpin, K: Unpin> Gathered<S, K> {
    /// Gathers what is written to `stream`, and drops `kept` with it.
    pub fn holding(kept: K, stream: S) -> Self {
        Self { stream, _kept: kept, waiting: Vec::new(), written: 0, was_put_off: false }
    }

    /// Writes what waits, and as much of `parts` as goes with it; how much of those that was.
    fn poll_write_with(
        &mut self,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        while self.written < self.waiting.len() {
            let rest = &self.waiting[self.written..];
            let rest_bytes = rest.len();
            let all: Vec<_> =
                [rest].into_iter().chain(parts.iter().map(|part| &**part)).map(io::IoSlice::new).collect();
            let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, &all))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written.min(rest_bytes);
            if written > rest_bytes {
                self.forget();
                return Poll::Ready(Ok(written - rest_bytes));
            }
        }
        self.forget();
        Poll::Ready(Ok(0))
    }

    /// A connection that is silent holds nothing.
    fn forget(&mut self) {
        self.waiting = Vec::new();
        self.written = 0;
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, K: Unpin> AsyncRead for Gathered<S, K> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin, K: Unpin> AsyncWrite for Gathered<S, K> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        if self.waiting.len() + bytes <= GATHERED_BYTES_MAX {
            for part in parts {
                self.waiting.extend_from_slice(part);
            }
            return Poll::Ready(Ok(bytes));
        }
        match ready!(self.poll_write_with(context, parts))? {
            0 => Pin::new(&mut self.stream).poll_write_vectored(context, parts),
            written => Poll::Ready(Ok(written)),
        }
    }

    /// No: HTTP/2 copies small messages, and hands over large ones in pieces, which are put together here.
    fn is_write_vectored(&self) -> bool {
        false
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_empty() {
            self.was_put_off = false;
        } else if !self.was_put_off {
            self.was_put_off = true;
            // Behind those who are ready now.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_write_with(context, &[]))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_with(context, &[]))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: AsyncWrite + Unpin, K: Unpin> Drop for Gathered<S, K> {
    /// Writes what still waits, if it goes at once: TLS says in its last words why it does not trust somebody.
    fn drop(&mut self) {
        let _ = self.poll_write_with(&mut Context::from_waker(Waker::noop()), &[]);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// What was written, each piece by itself.
    type Pieces = Arc<Mutex<Vec<Vec<u8>>>>;

    /// Takes so many bytes at once, and each time only when asked again.
    #[derive(Debug)]
    struct Reluctant {
        pieces: Pieces,
        bytes_max: usize,
        is_asked_again: bool,
    }

    impl AsyncWrite for Reluctant {
        fn poll_write(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            parts: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.is_asked_again ^= true;
            if self.is_asked_again {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let all: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
            let taken = all.len().min(self.bytes_max);
            self.pieces.lock().push(all[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn gathered(bytes_max: usize) -> (Gathered<Reluctant>, Pieces) {
        let pieces = Pieces::default();
        (Gathered::new(Reluctant { pieces: pieces.clone(), bytes_max, is_asked_again: false }), pieces)
    }

    /// What HTTP/2 does at the end of its turn; whether that has to come again.
    fn flush_is_put_off(stream: &mut Gathered<Reluctant>) -> bool {
        Pin::new(stream).poll_flush(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    #[tokio::test]
    async fn what_comes_while_others_have_their_turn_goes_in_one_piece() {
        let (mut stream, pieces) = gathered(usize::MAX);
        for call in 1..=3 {
            stream.write_all(b"headers ").await.unwrap();
            assert!(flush_is_put_off(&mut stream));
            stream.write_all(b"message ").await.unwrap();
            stream.write_all(b"end").await.unwrap();
            stream.flush().await.unwrap();
            assert_eq!(*pieces.lock(), vec![b"headers message end".to_vec(); call]);
            // What it reads next finds nothing to write: a silence.
            stream.flush().await.unwrap();
        }
    }

    // It goes on with what it has when it is through with the flush, so this must not take a turn each time.
    #[tokio::test]
    async fn only_the_first_flush_of_many_is_put_off() {
        let (mut stream, pieces) = gathered(usize::MAX);
        stream.write_all(b"first").await.unwrap();
        assert!(flush_is_put_off(&mut stream));
        stream.flush().await.unwrap();
        for count in 2..5 {
            // From now on it is taken at once.
            stream.stream.is_asked_again = true;
            stream.write_all(b"more").await.unwrap();
            assert!(!flush_is_put_off(&mut stream));
            assert_eq!(pieces.lock().len(), count);
        }
    }

    #[tokio::test]
    async fn a_flush_ends_by_itself() {
        let (mut stream, pieces) = gathered(2);
        stream.write_all(b"alone").await.unwrap();
        assert!(pieces.lock().is_empty());
        stream.flush().await.unwrap();
        assert_eq!(pieces.lock().concat(), b"alone");
        assert_eq!(stream.waiting.capacity(), 0);
    }

    #[tokio::test]
    async fn what_is_much_goes_at_once_with_what_waits() {
        for bytes_max in [3, 1_000, usize::MAX] {
            let (mut stream, pieces) = gathered(bytes_max);
            let much = vec![7; GATHERED_BYTES_MAX + 1];
            stream.write_all(b"first").await.unwrap();
            stream.write_all(&much).await.unwrap();
            if bytes_max == usize::MAX {
                assert_eq!(pieces.lock().len(), 1);
            }
            stream.write_all(b"last").await.unwrap();
            stream.flush().await.unwrap();
            assert_eq!(pieces.lock().concat(), [b"first", &much[..], b"last"].concat(), "{bytes_max}");
        }
    }

    // Part of what waits is written, and then there is more.
    #[tokio::test]
    async fn nothing_is_lost_between_two_parts_of_a_write() {
        let (mut stream, pieces) = gathered(4);
        stream.write_all(b"headers ").await.unwrap();
        while pieces.lock().is_empty() {
            assert!(flush_is_put_off(&mut stream));
        }
        stream.write_all(b"and a message").await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(pieces.lock().concat(), b"headers and a message");
    }

    #[tokio::test]
    async fn what_waits_is_written_before_the_end() {
        let (mut stream, pieces) = gathered(usize::MAX);
        stream.write_all(b"goodbye").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(*pieces.lock(), [b"goodbye".to_vec()]);
    }

    #[tokio::test]
    async fn last_words_are_written_if_they_are_taken_at_once() {
        let (mut stream, pieces) = gathered(usize::MAX);
        stream.stream.is_asked_again = true;
        stream.write_all(b"unknown authority").await.unwrap();
        drop(stream);
        assert_eq!(*pieces.lock(), [b"unknown authority".to_vec()]);
    }
}
