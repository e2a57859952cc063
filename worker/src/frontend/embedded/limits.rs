//! The bounds of the server, named.

/// What one batch may carry, announced in Capabilities: below the 4 MiB that gRPC peers accept by default, with
/// room for the digests around the data.
pub(super) const BATCH_BYTES_MAX: u64 = (4 << 20) - (64 << 10);
/// The largest message that is decoded: a batch that is somewhat too large is answered, not cut off.
pub(super) const DECODE_BYTES_MAX: usize = (4 << 20) + (1 << 20);
/// The largest message of a stream of Directories.
pub(super) const RESPONSE_BYTES_MAX: usize = 2 << 20;
/// The most Directories in one response where the client names no page size.
pub(super) const PAGE_MAX: usize = 1_000;
/// What may be under way on one stream before the peer has taken it.
pub(super) const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// What may be under way on one connection.
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Calls at once on one connection; clients open few connections.
pub(super) const STREAMS_MAX: u32 = 10_000;
/// How much of an upload that is not needed any more is read, so that the client sees an answer and no reset.
pub(super) const DRAIN_BYTES_MAX: u64 = 4 << 20;
