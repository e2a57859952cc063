//! Writing what belongs together at once.
//!
//! HTTP/2 has several frames for one call, and their senders run one after another: headers, a message, an end. Written
//! as they come, each is a system call, a packet, and a wake-up of the other side. So what is written waits until
//! everything else that is ready has run once; then it goes in one piece.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is gathered at most: more goes at once, and uncopied.
const GATHERED_BYTES_MAX: usize = 16 << 10;

/// A connection that gathers what is written to it.
#[derive(Debug)]
pub struct Gathered<S> {
    stream: S,
    /// What waits from `written` on.
    waiting: Vec<u8>,
    written: usize,
    /// The others have had their turn since the first flush.
    was_put_off: bool,
}

impl<S> Gathered<S> {
    /// Gathers what is written to `stream`.
    pub fn new(stream: S) -> Self {
        Self { stream, waiting: Vec::new(), written: 0, was_put_off: false }
    }

    /// Whether so many bytes more wait as well.
    fn has_room(&self, bytes: usize) -> bool {
        self.waiting.len() + bytes <= GATHERED_BYTES_MAX
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// Writes what waits.
    fn poll_write_waiting(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.waiting.len() {
            let rest = &self.waiting[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        // A connection that is silent holds nothing.
        self.waiting = Vec::new();
        self.written = 0;
        self.was_put_off = false;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        if self.has_room(bytes) {
            for part in parts {
                self.waiting.extend_from_slice(part);
            }
            return Poll::Ready(Ok(bytes));
        }
        ready!(self.poll_write_waiting(context))?;
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.waiting.is_empty() && !self.was_put_off {
            self.was_put_off = true;
            // Behind everybody who is ready now.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_write_waiting(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_waiting(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Keeps what is written, each piece by itself; takes so many bytes at once.
    #[derive(Debug)]
    struct Pieces {
        pieces: Vec<Vec<u8>>,
        bytes_max: usize,
    }

    impl AsyncWrite for Pieces {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.bytes_max);
            self.pieces.push(bytes[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn gathered(bytes_max: usize) -> Gathered<Pieces> {
        Gathered::new(Pieces { pieces: Vec::new(), bytes_max })
    }

    #[tokio::test]
    async fn what_comes_while_others_have_their_turn_goes_in_one_piece() {
        let mut stream = gathered(usize::MAX);
        for text in ["headers ", "message ", "end"] {
            stream.write_all(text.as_bytes()).await.unwrap();
            if text != "end" {
                // HTTP/2 flushes after each of its turns; only the first one is put off.
                let flushed = Pin::new(&mut stream).poll_flush(&mut Context::from_waker(Waker::noop()));
                assert_eq!(flushed.is_pending(), text == "headers ", "{text}");
            }
        }
        stream.flush().await.unwrap();
        assert_eq!(stream.stream.pieces, [b"headers message ".to_vec(), b"end".to_vec()]);
    }

    #[tokio::test]
    async fn a_flush_ends_by_itself() {
        let mut stream = gathered(2);
        stream.write_all(b"alone").await.unwrap();
        assert!(stream.stream.pieces.is_empty());
        stream.flush().await.unwrap();
        assert_eq!(stream.stream.pieces.concat(), b"alone");
        assert_eq!(stream.waiting.capacity(), 0);
    }

    #[tokio::test]
    async fn what_is_much_goes_at_once_and_in_its_turn() {
        let mut stream = gathered(1_000);
        let much = vec![7; GATHERED_BYTES_MAX + 1];
        stream.write_all(b"first").await.unwrap();
        stream.write_all(&much).await.unwrap();
        let first = stream.stream.pieces.first().cloned();
        stream.write_all(b"last").await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(first.as_deref(), Some(&b"first"[..]));
        assert_eq!(stream.stream.pieces.concat(), [b"first", &much[..], b"last"].concat());
    }

    #[tokio::test]
    async fn what_waits_is_written_before_the_end() {
        let mut stream = gathered(usize::MAX);
        stream.write_all(b"goodbye").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(stream.stream.pieces, [b"goodbye".to_vec()]);
    }
}
