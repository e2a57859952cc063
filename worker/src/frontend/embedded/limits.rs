//! The bounds of the server, named.

use std::time::Duration;

/// The largest message that gRPC peers accept by default.
pub(super) const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// What one batch may carry, announced in Capabilities: thousands of digests and statuses fit around it.
pub(super) const BATCH_BYTES_MAX: u64 = (4 << 20) - (512 << 10);
/// The largest message that is decoded: a batch that is too large is answered, not cut off.
pub(super) const DECODE_BYTES_MAX: usize = 8 << 20;
/// What a page of Directories is filled up to: below what peers accept, with room for what is around them.
pub(super) const RESPONSE_BYTES_MAX: usize = (4 << 20) - (64 << 10);
/// The most Directories in one response where the client names no page size.
pub(super) const PAGE_MAX: usize = 1_000;
/// What may be under way on one stream before it is read.
pub(super) const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// What may be under way on one connection: a hundred calls that wait, which is what gRPC clients have at once by default,
/// do not fill it.
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 128 << 20;
/// What calls that wait may leave unread on one connection, together: as many large ones as gRPC clients have at once by
/// default, and a few. The rest of what may be under way is for those that they wait for.
pub(super) const WAITING_BYTES_A_CONNECTION: usize = 104 * STREAM_WINDOW_BYTES as usize;
/// Calls at once on one connection; further ones wait in the client.
pub(super) const STREAMS_MAX: u32 = 1_000;
/// Messages on their way in on one connection, together, those that begin a call and those that go on with an upload each.
pub(super) const RECEIVED_BYTES_A_CONNECTION: usize = 16 << 20;
/// Answers of one connection that are being made, or that the peer has not taken, together.
pub(super) const ANSWER_BYTES_A_CONNECTION: usize = 64 << 20;
/// What a message of a read may take: a chunk, in either form.
pub(super) const CHUNK_ANSWER_BYTES: usize = 512 << 10;
/// Messages about operations that are being made on one connection at once.
pub(super) const WATCHES_MADE_A_CONNECTION: usize = 16;
/// What the open streams of one connection may need beside their messages, together.
pub(super) const STATE_BYTES_A_CONNECTION: usize = 64 << 20;
/// What a stream that compresses needs: its window, tables and buffers.
pub(super) const COMPRESSION_STATE_BYTES: usize = 1 << 20;
/// What a walk over a tree counts as, although few trees make it need that much.
pub(super) const WALK_STATE_BYTES: usize = 16 << 20;
/// How long a message waits without leave: as long as it does, it may be what keeps those it waits for from going on.
pub(super) const CROWD_TIME_MAX: Duration = Duration::from_secs(2);
/// How long a call that may not wait is asked to stay away.
pub(super) const CROWDED_RETRY_DELAY: Duration = Duration::from_secs(1);
/// How long a call waits for the others of its connection to make room.
pub(super) const ROOM_TIME_MAX: Duration = Duration::from_mins(1);
/// How much of an upload that is not needed any more is read, so that the client sees an answer and no reset.
pub(super) const DRAIN_BYTES_MAX: usize = 16 << 20;
/// For how long it is read.
pub(super) const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);
/// How long the end of an upload's stream is awaited after `finish_write`.
pub(super) const HALF_CLOSE_TIME_MAX: Duration = Duration::from_millis(100);
/// What an Action, a Command, a Directory or a Tree may be to be read into memory.
pub(super) const METADATA_BYTES_MAX: u64 = 64 << 20;
/// What is added to an `ActionResult` where a client asked for contents inline.
pub(super) const INLINE_BYTES_MAX: u64 = 1 << 20;
/// Directories that a walk reads at once.
pub(super) const DIRECTORIES_A_READ: usize = 256;
/// Directories that one walk visits.
pub(super) const DIRECTORIES_MAX: usize = 1 << 20;
/// The base-2 logarithm of the largest zstd window that is taken: what RFC 8878 asks every decoder to support.
pub(super) const WINDOW_LOG_MAX: u32 = 23;
/// What an open upload gathers before it is written, about; a decompressor's window is beside it.
pub(super) const UPLOAD_MEMORY_BYTES: u64 = 512 << 10;
/// What the uploads that are open may gather together.
pub(super) const UPLOADS_MEMORY_BYTES_MAX: u64 = 1 << 30;
/// Beginnings of uploads that are kept for clients that come back.
pub(super) const KEPT_UPLOADS_MAX: usize = 256;
/// The part of the store that they may take together: one in so many.
pub(super) const KEPT_UPLOADS_SHARE: u64 = 4;
/// How often the clock looks at them.
pub(super) const KEPT_LOOK_EVERY: Duration = Duration::from_mins(1);
/// At which look one is given up.
pub(super) const KEPT_LOOKS_MAX: u32 = 10;
/// How long an upload may stand still that holds what others need.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(10);
/// How long an upload may be silent; an empty message is a sign of life.
pub(super) const SILENCE_MAX: Duration = Duration::from_mins(2);
/// The headers of one call, as HTTP/2 counts them.
pub(super) const HEADER_BYTES_MAX: u32 = 64 << 10;
/// Calls on one connection that the peer has reset before they were accepted.
pub(super) const PENDING_RESETS_MAX: usize = 1_000;
/// How long a connection without a call may be idle while another one waits.
pub(super) const IDLE_CONNECTION_MAX: Duration = Duration::from_secs(2);
/// How often such a one is looked for.
pub(super) const IDLE_LOOK_EVERY: Duration = Duration::from_millis(100);
/// After this long without a word the peer of a connection is asked whether it is still there.
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_mins(1);
/// How long its answer may take before the connection is closed.
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_mins(1);
