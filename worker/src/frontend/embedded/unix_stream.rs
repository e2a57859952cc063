//! A connection on a Unix socket, whatever its client calls the other end.
//!
//! gRPC leaves open what `:authority` is where there is no host. Bazel and other clients in Java send the path of the
//! socket, those in C++ and Python the path percent-encoded; neither is an authority of a URI, and the HTTP/2 library
//! would reset every call. Nothing here depends on the authority, so letters stand in for it before the library sees
//! it. Only frames of type HEADERS are touched; what follows the announced length of a frame passes as it is.

mod header_block;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// What a client sends before its first frame (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
/// Length, type, flags and stream of a frame (RFC 9113, section 4.1).
const FRAME_HEADER_BYTES: usize = 9;
/// The largest frame that a peer takes unless it says otherwise, and the library says nothing.
const FRAME_BYTES_MAX: usize = 16 << 10;
/// The type of frames that begin a call (RFC 9113, section 6.2), and two of their flags.
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// What a frame with [`PRIORITY`] has before its header block.
const PRIORITY_BYTES: usize = 5;

/// A Unix stream whose reader sees authorities that are some.
pub(super) struct LocalStream {
    stream: UnixStream,
    frames: Frames,
    /// Rewritten and not read yet.
    ready: BytesMut,
}

impl LocalStream {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, frames: Frames::default(), ready: BytesMut::new() }
    }
}

/// Where a client's bytes are in their frames.
struct Frames {
    /// The beginning of a frame that is looked at as a whole.
    held: Vec<u8>,
    /// How much of what follows is not looked at.
    passed_bytes: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self { held: Vec::new(), passed_bytes: PREFACE_BYTES }
    }
}

impl Frames {
    /// Takes bytes in, and yields those that are ready.
    fn push(&mut self, mut bytes: &[u8], ready: &mut BytesMut) {
        while !bytes.is_empty() {
            let passed_bytes = self.passed_bytes.min(bytes.len());
            ready.extend_from_slice(&bytes[..passed_bytes]);
            self.passed_bytes -= passed_bytes;
            bytes = &bytes[passed_bytes..];

            let wanted_bytes = self.frame_bytes() - self.held.len();
            let (taken, rest) = bytes.split_at(wanted_bytes.min(bytes.len()));
            self.held.extend_from_slice(taken);
            bytes = rest;
            if self.held.len() >= FRAME_HEADER_BYTES && self.held.len() == self.frame_bytes() {
                self.let_go(ready);
            }
        }
    }

    /// How much of the frame that has begun is looked at together.
    fn frame_bytes(&self) -> usize {
        match self.payload() {
            Some((HEADERS, bytes)) if bytes <= FRAME_BYTES_MAX => FRAME_HEADER_BYTES + bytes,
            _ => FRAME_HEADER_BYTES,
        }
    }

    /// The type and length that the frame announces, once its header is there.
    fn payload(&self) -> Option<(u8, usize)> {
        let [high, middle, low, kind, ..] = self.held[..].get(..FRAME_HEADER_BYTES)? else { return None };
        Some((*kind, usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low)))
    }

    fn let_go(&mut self, ready: &mut BytesMut) {
        let (_, announced_bytes) = self.payload().expect("a whole header");
        self.passed_bytes = announced_bytes + FRAME_HEADER_BYTES - self.held.len();
        let frame = std::mem::take(&mut self.held);
        match rewritten(&frame) {
            Some(frame) => ready.extend_from_slice(&frame),
            None => ready.extend_from_slice(&frame),
        }
    }
}

/// A frame with its authority replaced; nothing if it has none that can be found.
fn rewritten(frame: &[u8]) -> Option<Vec<u8>> {
    let (header, payload) = frame.split_at_checked(FRAME_HEADER_BYTES)?;
    let (kind, flags) = (header[3], header[4]);
    if kind != HEADERS {
        return None;
    }
    let padding_bytes = if flags & PADDED == 0 { 0 } else { usize::from(*payload.first()?) };
    let begin = usize::from(flags & PADDED != 0) + if flags & PRIORITY == 0 { 0 } else { PRIORITY_BYTES };
    let end = payload.len().checked_sub(padding_bytes)?;
    let block = header_block::rewritten(payload.get(begin..end)?)?;
    let payload_bytes = begin + block.len() + padding_bytes;
    if payload_bytes > FRAME_BYTES_MAX {
        return None;
    }
    let length = u32::try_from(payload_bytes).ok()?.to_be_bytes();
    Some([&length[1..], &header[3..], &payload[..begin], &block, &payload[end..]].concat())
}

impl AsyncRead for LocalStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, frames, ready } = self.get_mut();
        while ready.is_empty() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut *stream).poll_read(context, buffer))?;
            let read_bytes = buffer.filled().len() - before;
            if read_bytes <= frames.passed_bytes {
                // The end of the stream, too.
                frames.passed_bytes -= read_bytes;
                return Poll::Ready(Ok(()));
            }
            frames.push(&buffer.filled()[before..], ready);
            buffer.set_filled(before);
        }
        let count = ready.len().min(buffer.remaining());
        buffer.put_slice(&ready[..count]);
        ready.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
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
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// `:authority` by its place in the static table, with a path as its value.
    const BLOCK: &[u8] = b"\x41\x06/a%2fb\x83";
    const REWRITTEN: &[u8] = b"\x41\x06xxxxxx\x83";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// A client's stream and what is made of it.
    fn stream() -> (Vec<u8>, Vec<u8>) {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let frames = |block: &[u8]| {
            [
                frame(4, 0, &[0; 6]),
                frame(HEADERS, 4, block),
                frame(0, 0, &[&[0; 5], BLOCK].concat()),
                frame(0, 1, &[]),
                frame(HEADERS, 4 | PADDED | PRIORITY, &[&[3; 6], block, &[0; 3]].concat()),
                // Neither is what it says it is.
                frame(HEADERS, PADDED, &[200, 1]),
                frame(HEADERS, 4, &[]),
                frame(HEADERS, 4, &vec![0xff; 20_000]),
                frame(HEADERS, 4, block),
            ]
            .concat()
        };
        ([&preface[..], &frames(BLOCK)].concat(), [&preface[..], &frames(REWRITTEN)].concat())
    }

    proptest! {
        // However the bytes come, authorities are replaced, and nothing else is.
        #[test]
        fn only_authorities_are_replaced(part_bytes in 1..30_000_usize) {
            let (sent, expected) = stream();
            let (mut frames, mut ready) = (Frames::default(), BytesMut::new());
            for part in sent.chunks(part_bytes) {
                frames.push(part, &mut ready);
            }
            prop_assert_eq!(&ready[..], &expected);
        }
    }

    #[tokio::test]
    async fn a_reader_sees_it_to_the_end() {
        for buffer_bytes in [1, 7, 1 << 16] {
            let (sent, expected) = stream();
            let (client, server) = UnixStream::pair().unwrap();
            let mut server = LocalStream::new(server);
            let sending = tokio::spawn(async move {
                let mut client = client;
                client.write_all(&sent).await.unwrap();
            });
            let (mut seen, mut buffer) = (Vec::new(), vec![0; buffer_bytes]);
            loop {
                match server.read(&mut buffer).await.unwrap() {
                    0 => break,
                    count => seen.extend_from_slice(&buffer[..count]),
                }
            }
            sending.await.unwrap();
            assert_eq!(seen, expected);
        }
    }
}
