//! Answers on their way out: none is made before there is room for it, and its room is free when the socket has it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;
use tonic::body::Body;

use super::{Kind, OpenCall, Room};

/// The body of an answer.
pub(super) struct Answers {
    pub(super) body: Body,
    pub(super) kind: Kind,
    pub(super) room: Room,
    /// For the next message, if it has been made room for.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// Counts the call until the answer has ended.
    #[expect(dead_code, reason = "it is there to be dropped")]
    pub(super) call: OpenCall,
}

impl http_body::Body for Answers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let mut permit = match this.permit.take() {
            Some(permit) => permit,
            None => match ready!(this.room.poll(context, this.kind.answer_bytes)) {
                Ok(permit) => permit,
                Err(status) => return Poll::Ready(Some(Err(status))),
            },
        };
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
            // What is being made is in memory already; who waits for something to happen holds nothing.
            this.permit = (!this.kind.is_watch).then_some(permit);
            return Poll::Pending;
        };
        let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
        Poll::Ready(Some(Ok(frame.map_data(|data| {
            let bytes = data.len().min(permit.num_permits());
            let permit = permit.split(bytes);
            Bytes::from_owner(Unsent { data, _permit: permit })
        }))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes that the socket has not taken yet.
struct Unsent {
    data: Bytes,
    _permit: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Unsent {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}
