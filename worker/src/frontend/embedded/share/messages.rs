//! Messages on their way in: none is taken before there is room for all of it, and the one message of a call that is no
//! upload only with room for its answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

use super::super::limits::{CROWD_TIME_MAX, DECODE_BYTES_MAX};
use super::{Kind, Room, Share, crowded};

/// What stands before each message of gRPC: whether it is compressed, and its length.
const HEADER_BYTES: usize = 5;

/// The room that a call has, if any: for the message that it has in hand, or for its answer.
pub(super) type Held = Arc<Mutex<Option<OwnedSemaphorePermit>>>;

/// The body of a request.
pub(super) struct Messages {
    body: Body,
    framing: Framing,
    share: Share,
    kind: Kind,
    room: Room,
    held: Held,
    answer_room: Room,
    /// To wait for the room.
    leave: Option<OwnedSemaphorePermit>,
    /// How long without that.
    patience: Option<Pin<Box<Sleep>>>,
    /// Received, and not handed on yet.
    data: Bytes,
    /// The room that a message needs which has begun.
    needed_bytes: Option<usize>,
}

impl Messages {
    /// Keeps in `held` the room of the message in hand, and in `share` that of the answer to it.
    pub(super) fn new(body: Body, share: &Share, kind: Kind, held: &Held) -> Self {
        Self {
            body,
            framing: Framing::default(),
            share: share.clone(),
            kind,
            room: Room::new(&share.beginnings),
            held: held.clone(),
            answer_room: Room::new(&share.answers),
            leave: None,
            patience: None,
            data: Bytes::new(),
            needed_bytes: None,
        }
    }

    /// Takes the room for a message of `bytes`, waiting for it; not for long without leave.
    fn poll_room(&mut self, context: &mut Context<'_>, bytes: usize) -> Poll<Result<(), Status>> {
        // Nobody waits for one message while holding another.
        *self.held.lock() = None;
        let Poll::Ready(outcome) = self.room.poll(context, bytes) else {
            if self.leave.is_none() {
                // How much of an upload follows, nobody knows.
                let unread_bytes = if self.kind.is_upload { u64::MAX } else { bytes as u64 };
                self.leave = self.share.wait(unread_bytes);
            }
            if self.leave.is_some() {
                return Poll::Pending;
            }
            let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(CROWD_TIME_MAX)));
            return patience.as_mut().poll(context).map(|()| Err(crowded().into()));
        };
        (self.leave, self.patience) = (None, None);
        *self.held.lock() = Some(outcome?);
        self.room = Room::new(&self.share.parts);
        Poll::Ready(Ok(()))
    }

    /// Takes the room for the answer to a request that is here with the next part.
    fn poll_answer_room(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let is_due = !self.kind.is_upload && self.framing.ends_with(&self.data);
        if is_due && self.share.answer_room.lock().is_none() {
            let permit = ready!(self.answer_room.poll(context, self.kind.answer_bytes))?;
            *self.share.answer_room.lock() = Some(permit);
        }
        Poll::Ready(Ok(()))
    }
}

impl http_body::Body for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        // Who asks for more is done with the last message; or else with all of them when the call is answered.
        if this.kind.is_upload && this.framing.is_between() {
            *this.held.lock() = None;
        }
        if this.data.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.data = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                ended => return Poll::Ready(ended),
            }
        }
        if this.needed_bytes.is_none() {
            this.needed_bytes = this.framing.begin(&this.data);
        }
        if let Some(bytes) = this.needed_bytes {
            if let Err(status) = ready!(this.poll_room(context, bytes)) {
                return Poll::Ready(Some(Err(status)));
            }
            this.needed_bytes = None;
        }
        if let Err(status) = ready!(this.poll_answer_room(context)) {
            return Poll::Ready(Some(Err(status)));
        }
        let part = this.framing.advance(&mut this.data);
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Where in a stream of messages the next byte is.
#[derive(Debug, Default)]
struct Framing {
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    /// What has not come yet of the message that has begun.
    left_bytes: usize,
}

impl Framing {
    fn is_between(&self) -> bool {
        self.header_bytes == 0 && self.left_bytes == 0
    }

    /// Whether a message ends within `data`, of which nothing has been advanced over.
    fn ends_with(&self, data: &Bytes) -> bool {
        self.left_bytes > 0 && self.left_bytes <= data.len()
    }

    /// The length of a message whose header ends in `data`, which has to be advanced over next.
    fn begin(&mut self, data: &Bytes) -> Option<usize> {
        if self.left_bytes > 0 {
            return None;
        }
        let rest_bytes = (HEADER_BYTES - self.header_bytes).min(data.len());
        self.header[self.header_bytes..][..rest_bytes].copy_from_slice(&data[..rest_bytes]);
        if self.header_bytes + rest_bytes < HEADER_BYTES {
            return None;
        }
        let message_bytes = (&self.header[1..]).get_u32() as usize;
        self.header_bytes = 0;
        self.left_bytes = rest_bytes + message_bytes;
        // What is too large is refused before anything is set aside for it.
        (message_bytes <= DECODE_BYTES_MAX).then_some(message_bytes)
    }

    /// Takes out of `data` what belongs to the message, or to a header that is not whole yet.
    fn advance(&mut self, data: &mut Bytes) -> Bytes {
        if self.left_bytes == 0 {
            self.header_bytes += data.len();
            return std::mem::take(data);
        }
        let part = data.split_to(self.left_bytes.min(data.len()));
        self.left_bytes -= part.len();
        part
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        // However a stream is cut, each message is announced once, before its last byte, and no byte is lost.
        #[test]
        fn messages_are_found_in_any_cut(
            lengths in prop::collection::vec(0..50_usize, 0..10),
            cuts in prop::collection::vec(1..30_usize, 1..20),
        ) {
            let mut stream = Vec::new();
            for length in &lengths {
                stream.push(0);
                stream.extend(u32::try_from(*length).unwrap().to_be_bytes());
                stream.extend(std::iter::repeat_n(7, *length));
            }
            let (mut framing, mut found, mut passed) = (Framing::default(), Vec::new(), Vec::new());
            let mut rest = Bytes::from(stream.clone());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let mut data = rest.split_to((*cut).min(rest.len()));
                while !data.is_empty() {
                    found.extend(framing.begin(&data));
                    passed.extend(framing.advance(&mut data));
                }
            }
            prop_assert_eq!(found, lengths);
            prop_assert_eq!(passed, stream);
            prop_assert!(framing.is_between());
        }
    }
}
