//! What one connection may make the server hold: messages on their way in, answers on their way out, and the state of
//! streams that need much of it.
//!
//! Each connection has a share of its own, and what does not fit into it waits for what is before it: nobody waits for
//! another connection. A message counts from when its length is known until its call asks for the next one, or is
//! answered; it is taken whole or not at all, so that half of one never waits for half of another. An answer counts as
//! a whole message until it is known, then as what it is until the connection has taken it. Who makes its own calls wait
//! for too long is told so, by an error.
//!
//! Whoever waits must not be in the way of what it waits for. What a call leaves unread takes of the connection's window,
//! which those need that go on: so only so much may be left unread by calls that wait, and who comes beyond that is
//! refused, where it waits for the store's space at once, where it waits for room after a moment. Messages that go on with
//! an upload have room for themselves: those that begin a call may have to wait for the store's space, which such an upload
//! has. And there is room for an answer only when the whole request is here: what has it waits for no request.

mod answers;
mod messages;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::FutureExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::PollSemaphore;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http;

use self::answers::Answers;
use self::messages::{Held, Messages};
use super::around::{Answer, Around, Services};
use super::limits::{
    ANSWER_BYTES_A_CONNECTION, CHUNK_ANSWER_BYTES, CROWDED_RETRY_DELAY, MESSAGE_BYTES_MAX,
    RECEIVED_BYTES_A_CONNECTION, ROOM_TIME_MAX, STATE_BYTES_A_CONNECTION, STREAM_WINDOW_BYTES,
    WAITING_BYTES_A_CONNECTION, WATCHES_MADE_A_CONNECTION,
};
use crate::status::Failure;

/// What is to be known of a method to count its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    /// What a message of the answer may take.
    answer_bytes: usize,
    /// The call goes on for as long as its client likes before it is answered.
    is_upload: bool,
    /// The answer's messages come when something happens, which may be long after each other.
    is_watch: bool,
}

impl Kind {
    fn of(method: &str) -> Self {
        let plain = Self { answer_bytes: MESSAGE_BYTES_MAX, is_upload: false, is_watch: false };
        match method {
            "/google.bytestream.ByteStream/Write" => Self { is_upload: true, ..plain },
            "/google.bytestream.ByteStream/Read" => Self { answer_bytes: CHUNK_ANSWER_BYTES, ..plain },
            "/build.bazel.remote.execution.v2.Execution/Execute"
            | "/build.bazel.remote.execution.v2.Execution/WaitExecution"
            | "/grpc.health.v1.Health/Watch" => Self { is_watch: true, ..plain },
            _ => plain,
        }
    }
}

/// One connection's share.
#[derive(Clone, Debug)]
pub(super) struct Share {
    /// For the messages that begin a call.
    beginnings: Arc<Semaphore>,
    /// For the others.
    parts: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    state: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    making: Arc<Semaphore>,
    calls: Arc<AtomicUsize>,
    /// The room for the answer of one call, once it has some.
    answer_room: Held,
}

impl Default for Share {
    fn default() -> Self {
        let of = |bytes| Arc::new(Semaphore::new(bytes));
        Self {
            beginnings: of(RECEIVED_BYTES_A_CONNECTION),
            parts: of(RECEIVED_BYTES_A_CONNECTION),
            answers: of(ANSWER_BYTES_A_CONNECTION),
            state: of(STATE_BYTES_A_CONNECTION),
            waiting: of(WAITING_BYTES_A_CONNECTION),
            making: of(WATCHES_MADE_A_CONNECTION),
            calls: Arc::default(),
            answer_room: Held::default(),
        }
    }
}

impl Share {
    /// The share of the connection that `request` came on. What came on none, as in tests, has one for itself.
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get().cloned().unwrap_or_default()
    }

    /// Counts one more call, until the value is dropped.
    pub(super) fn call(&self) -> OpenCall {
        self.calls.fetch_add(1, Ordering::Relaxed);
        OpenCall(self.calls.clone())
    }

    /// Whether a call is under way.
    pub(super) fn has_calls(&self) -> bool {
        self.calls.load(Ordering::Relaxed) > 0
    }

    /// Room to make a message of a watch, which none is set aside for while there is nothing to say.
    pub(super) async fn make(&self) -> Result<OwnedSemaphorePermit, Status> {
        Room::new(&self.making).take(1).await
    }

    /// Leave for a call with `bytes` to come to wait without reading them, if others do not fill the connection with
    /// theirs.
    pub(super) fn wait(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(STREAM_WINDOW_BYTES);
        self.waiting.clone().try_acquire_many_owned(bytes).ok()
    }

    /// Room for the state of a stream that needs `bytes` of it for as long as it is open. Who waits for that holds no room
    /// for an answer: those that have state need it to go on.
    pub(super) async fn state(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Status> {
        let mut room = Room::new(&self.state);
        std::future::poll_fn(|context| {
            let polled = room.poll(context, bytes);
            if polled.is_pending() {
                self.answer_room.lock().take();
            }
            polled
        })
        .await
    }
}

/// What a call hears that has no leave to wait.
pub(super) fn crowded() -> Failure {
    Failure::exhausted("too many calls of the connection wait already", CROWDED_RETRY_DELAY)
}

/// A call under way.
pub(super) struct OpenCall(Arc<AtomicUsize>);

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waiting for room in a share.
struct Room {
    semaphore: PollSemaphore,
    patience: Option<Pin<Box<Sleep>>>,
}

impl Room {
    fn new(semaphore: &Arc<Semaphore>) -> Self {
        Self { semaphore: PollSemaphore::new(semaphore.clone()), patience: None }
    }

    async fn take(mut self, bytes: usize) -> Result<OwnedSemaphorePermit, Status> {
        std::future::poll_fn(|context| self.poll(context, bytes)).await
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        bytes: usize,
    ) -> Poll<Result<OwnedSemaphorePermit, Status>> {
        let bytes = u32::try_from(bytes).expect("shares and messages are far smaller");
        if let Poll::Ready(permit) = self.semaphore.poll_acquire_many(context, bytes) {
            self.patience = None;
            return Poll::Ready(Ok(permit.expect("nobody closes it")));
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(ROOM_TIME_MAX)));
        patience.as_mut().poll(context).map(|()| {
            Err(Status::resource_exhausted(format!(
                "the connection's other calls hold all that it may, and did not go on for {} s",
                ROOM_TIME_MAX.as_secs()
            )))
        })
    }
}

/// Holds no more for a connection than its share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares;

impl Around for Shares {
    fn call<S: Services>(&self, services: &mut S, mut request: http::Request<Body>) -> Answer<S> {
        let share: Share = request.extensions().get().cloned().unwrap_or_default();
        let share = Share { answer_room: Held::default(), ..share };
        request.extensions_mut().insert(share.clone());
        let open_call = share.call();
        let kind = Kind::of(request.uri().path());
        let held = Held::default();
        let messages = |body| Body::new(Messages::new(body, &share, kind, &held));
        let call = services.call(request.map(messages));
        async move {
            let answer = call.await?;
            drop(held);
            let permit = share.answer_room.lock().take();
            let answers =
                |body| Answers { body, kind, room: Room::new(&share.answers), permit, call: open_call };
            Ok(answer.map(|body| Body::new(answers(body))))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests;
