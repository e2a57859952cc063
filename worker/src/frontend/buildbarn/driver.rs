//! The calls of one slot, one at a time, for as long as the worker is there.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::pending;
use longshore_cas_store::io::Clock;
use longshore_proto::remoteworker::operation_queue_client::OperationQueueClient;
use longshore_proto::remoteworker::{SynchronizeRequest, SynchronizeResponse, desired_state};
use longshore_proto::{reapi, time};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::{ConnectError, Status};

use super::slot::{Order, Slot};
use super::{Report, Shared, task};
use crate::action::{Assignment, Progress};
use crate::connect::{Backoff, Link, causes, reason};
use crate::status::Failure;

/// How long a call may take that is answered at once.
const CALL_TIME_MAX: Duration = Duration::from_secs(20);
/// How long the scheduler may wait for work, by its own choice.
pub(super) const WAIT_MAX: Duration = Duration::from_mins(2);
/// How long a call may take that does.
const IDLE_CALL_TIME_MAX: Duration = Duration::from_mins(3);
/// How long a slot that executes is silent at most, whatever the clocks of the two machines say. Schedulers ask for the
/// same: that an action is wanted no more is heard with the next call, and hearing it sooner would cost a call a slot
/// every few seconds, at a scheduler that has one lock for all.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long a slot that executes and has no news is silent at least.
const SILENCE_MIN: Duration = Duration::from_secs(1);
/// How long after the announced time the scheduler forgets a slot that is silent.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(1);
/// Between attempts, when calls fail.
const RETRY_FIRST: Duration = Duration::from_millis(200);
pub(super) const RETRY_MAX: Duration = Duration::from_secs(5);

/// What makes the calls of one slot.
pub(super) struct Driver {
    pub(super) link: Link,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) shared: Arc<Shared>,
    pub(super) queue: mpsc::UnboundedSender<Assignment>,
    /// The part of every request that stays the same.
    pub(super) identity: SynchronizeRequest,
}

/// A task that this worker runs.
struct Running {
    operation: String,
    cancelled: CancellationToken,
    progress: watch::Receiver<Progress>,
    result: oneshot::Receiver<Report>,
}

/// The slot and what belongs to what it does.
#[derive(Default)]
struct Work {
    slot: Slot,
    running: Option<Running>,
    /// Dropped when the scheduler has the result.
    delivered: Option<oneshot::Sender<()>>,
    /// When to call again at the latest; nothing before the first answer.
    next: Option<SystemTime>,
    /// When a call that waits for work was given up, or failed, if no other has succeeded since: the scheduler may have
    /// given a task in its answer, and count on this slot.
    in_doubt: Option<SystemTime>,
}

impl Driver {
    /// Calls until the worker drains and the slot has nothing left to report, or until it is closed.
    pub(super) async fn run(self) {
        let closing = self.shared.closing.clone();
        let mut work = Work::default();
        closing.run_until_cancelled(Box::pin(self.keep_in_step(&mut work))).await;
        self.stop(&mut work);
    }

    async fn keep_in_step(&self, work: &mut Work) {
        let draining = &self.shared.draining;
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        loop {
            let is_draining = draining.is_cancelled();
            let mut request = self.identity.clone();
            // Who is in doubt asks for what was given, which comes at once, before waiting for work again.
            work.slot.fill(&mut request, !is_draining && work.in_doubt.is_none());
            let waits = work.slot.is_idle() && !request.prefer_being_idle;
            let call = self.call(request, if waits { IDLE_CALL_TIME_MAX } else { CALL_TIME_MAX });
            // Who drains while waiting for work says so at once, by the next call.
            let outcome = if waits { draining.run_until_cancelled(call).await } else { Some(call.await) };
            if waits && outcome.as_ref().is_none_or(may_have_been_heard) {
                work.in_doubt = Some(self.clock.now());
            }
            let Some(outcome) = outcome else { continue };
            match outcome {
                Ok(answer) => {
                    backoff.succeeded();
                    if self.shared.outage.is_over() {
                        tracing::info!(origin = self.link.origin(), "the scheduler answers again");
                    }
                    work.in_doubt = None;
                    self.follow(work, answer);
                    if is_draining && work.slot.is_idle() {
                        return;
                    }
                    self.rest(work).await;
                }
                Err(status) => {
                    if self.shared.outage.goes_on(self.clock.now()) {
                        let (origin, reason) = (self.link.origin(), reason(&status));
                        tracing::warn!(origin, reason, "a call to the scheduler failed");
                    }
                    if is_draining && self.is_forgotten(work) {
                        return;
                    }
                    tokio::select! {
                        () = self.clock.sleep(backoff.failed()) => {}
                        () = work.news() => {}
                    }
                }
            }
        }
    }

    async fn call(
        &self,
        request: SynchronizeRequest,
        time_max: Duration,
    ) -> Result<SynchronizeResponse, Status> {
        let mut request = self.link.request(request).await?;
        request.set_timeout(time_max);
        let mut client = OperationQueueClient::new(self.link.channel()).max_decoding_message_size(usize::MAX);
        Ok(client.synchronize(request).await?.into_inner())
    }

    fn follow(&self, work: &mut Work, answer: SynchronizeResponse) {
        let order = work.slot.answered(answer.desired_state);
        let announced = answer.next_synchronization_at.as_ref().and_then(time::from_timestamp);
        work.next = Some(next_call(announced, self.clock.now(), work.slot.is_idle()));
        if order != Order::GoOn {
            // A result that was reported has been taken; a task that runs is wanted no more.
            work.delivered = None;
            self.stop(work);
        }
        if let Order::Start(task) = order {
            self.start(work, &task);
        }
    }

    fn start(&self, work: &mut Work, task: &desired_state::Executing) {
        match task::assignment(task, self.clock.now()) {
            Ok((assignment, progress)) => {
                let (sender, result) = oneshot::channel();
                let operation = assignment.operation.clone();
                let cancelled = assignment.cancelled.clone();
                self.shared.expected.lock().insert(operation.clone(), sender);
                work.running = Some(Running { operation, cancelled, progress, result });
                // The worker's side goes only with this one.
                let _ = self.queue.send(assignment);
            }
            Err(failure) => {
                let status = Some(failure.to_rpc());
                work.slot.complete(reapi::ExecuteResponse { status, ..Default::default() });
            }
        }
    }

    /// Stops what runs; its result is for nobody.
    fn stop(&self, work: &mut Work) {
        if let Some(running) = work.running.take() {
            self.shared.expected.lock().remove(&running.operation);
            running.cancelled.cancel();
        }
    }

    /// Waits until there is something to tell, or until the scheduler wants to hear of this slot again.
    async fn rest(&self, work: &mut Work) {
        if work.slot.is_completed() {
            return;
        }
        let until_next = work.next.and_then(|next| next.duration_since(self.clock.now()).ok());
        let is_idle = work.slot.is_idle();
        let drained = async {
            // What runs goes on; only an idle slot has something to say now.
            if is_idle { self.shared.draining.cancelled().await } else { pending().await }
        };
        tokio::select! {
            () = self.clock.sleep(until_next.unwrap_or_default()) => {}
            () = drained => {}
            () = work.news() => {}
        }
    }

    /// Whether the scheduler does not count on this slot, or has given it up: what it would report is for nobody.
    fn is_forgotten(&self, work: &Work) -> bool {
        let since = if work.slot.is_idle() { work.in_doubt } else { work.next };
        let is_late =
            |since| self.clock.now().duration_since(since).is_ok_and(|silence| silence > FORGOTTEN_AFTER);
        work.running.is_none() && since.is_none_or(is_late)
    }
}

/// Whether the scheduler may know of a call: not if there was no connection to make it on.
fn may_have_been_heard<T>(outcome: &Result<T, Status>) -> bool {
    let Err(status) = outcome else { return true };
    !causes(status).any(<dyn Error>::is::<ConnectError>)
}

/// When a slot without news calls again that the scheduler wants to hear of at `announced`.
fn next_call(announced: Option<SystemTime>, now: SystemTime, is_idle: bool) -> SystemTime {
    // The scheduler holds back what it answers to an idle slot; to one that executes it answers at once.
    let first = now + if is_idle { Duration::ZERO } else { SILENCE_MIN };
    announced.map_or(first, |at| at.clamp(first, now + SILENCE_MAX))
}

impl Work {
    /// Completes when what runs has come further, or to its end. Cancel safe.
    async fn news(&mut self) {
        let Some(Running { progress, result, .. }) = &mut self.running else { return pending().await };
        tokio::select! {
            Ok(()) = progress.changed() => self.slot.has_come_to(progress.borrow_and_update().phase),
            report = result => {
                self.running = None;
                self.end(report.ok());
            }
        }
    }

    fn end(&mut self, report: Option<Report>) {
        let lost = || {
            let status = Some(Failure::internal("the worker has lost the action").to_rpc());
            reapi::ExecuteResponse { status, ..Default::default() }
        };
        let (response, delivered) = match report {
            Some(Report { response, delivered }) => (response, Some(delivered)),
            None => (lost(), None),
        };
        let response = match self.slot.task() {
            Some(task) => task::report(response, task),
            None => response,
        };
        self.slot.complete(response);
        self.delivered = delivered;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::TlsOptions;
    use crate::environment::MachineClock;
    use crate::frontend::buildbarn::PINGS;

    // Whoever drains need not wait for a scheduler that was never there.
    #[tokio::test]
    async fn a_call_without_a_connection_has_not_been_heard() {
        let tls = TlsOptions::default();
        let link = Link::open("grpc://127.0.0.1:1", &tls, None, PINGS, Arc::new(MachineClock)).unwrap();
        let mut client = OperationQueueClient::new(link.channel());
        let outcome = client.synchronize(SynchronizeRequest::default()).await;
        assert!(outcome.is_err() && !may_have_been_heard(&outcome), "{outcome:?}");
        for outcome in [Ok(()), Err(Status::unavailable("the connection is lost"))] {
            assert!(may_have_been_heard(&outcome), "{outcome:?}");
        }
    }

    // A scheduler whose clock is behind, or that names no time, must not be called without end.
    #[test]
    fn calls_are_neither_too_close_nor_too_far_apart_whatever_the_scheduler_says() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(1);
        let in_s = |seconds| Some(now + Duration::from_secs(seconds));
        let cases = [
            (in_s(7), 7, 7),
            (in_s(3600), 10, 10),
            (in_s(0), 1, 0),
            (Some(SystemTime::UNIX_EPOCH), 1, 0),
            (None, 1, 0),
        ];
        for (announced, executing_s, idle_s) in cases {
            let calls = [false, true].map(|is_idle| next_call(announced, now, is_idle));
            assert_eq!(calls.map(Some), [in_s(executing_s), in_s(idle_s)], "{announced:?}");
        }
    }
}
