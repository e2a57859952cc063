//! HTTP/2 byte by byte (RFC 9113), for tests that send what no client would.

/// What every client says first.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What stands before the content of a frame: its length, kind, flags and stream.
pub(crate) const FRAME_HEAD_BYTES: usize = 9;

/// Kinds of frames (section 6).
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

/// Flags of the last frames of a call.
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A frame (section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u8, content: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(content.len()).expect("a frame's length").to_be_bytes();
    [&length[..], &[kind, flags, 0, 0, 0, stream], content].concat()
}
