//! The queue between clients and this process's own slots.
//!
//! *Locking*: one mutex over the state, held for its changes only. *Merging*: identical actions under way are one
//! execution with an operation for each client, unless they are not to be cached. *Leaving*: an operation that nobody
//! waits for is kept for a grace period, so that a client that lost its connection finds it again, and then given
//! up; an execution is cancelled when its last operation is.

mod history;
mod state;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use longshore_cas_store::io::Clock;
use longshore_proto::{reapi, rpc};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tonic::Code;
use tracing::{Instrument as _, Span};

use self::history::Ending;
use self::state::{GivenUp, State};
use super::action_cache::ActionCache;
use super::operation::{Execution, Operation, Request};
use crate::action::{Assignment, Inline, Requester};
use crate::frontend::WorkSource;
use crate::status::Failure;

/// How long an operation without a waiter goes on.
const ABANDONED_AFTER: Duration = Duration::from_mins(1);
/// How long a client is asked to wait while longshore stops: somebody may start it again.
const STOPPING_RETRY_DELAY: Duration = Duration::from_secs(1);

/// What runs, waits and is done, for the status line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Actions that wait for a slot.
    pub queued: usize,
    /// Actions in a slot.
    pub running: usize,
    /// Actions that have ended since the start.
    pub done: u64,
    /// Requests that the action cache answered.
    pub cache_hits: u64,
}

/// The scheduler of the standalone mode.
pub struct Scheduler {
    state: Mutex<State>,
    /// Rung when something was queued, and when the scheduler shuts down.
    arrived: Notify,
    cache: Arc<ActionCache>,
    clock: Arc<dyn Clock>,
}

impl Scheduler {
    pub(super) fn new(cache: Arc<ActionCache>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), arrived: Notify::new(), cache, clock })
    }

    /// How many executions have ended since the start, each with its result in the action cache if it belongs there.
    pub(super) fn ended(&self) -> u64 {
        self.state.lock().done
    }

    /// Queues an action, or joins an identical one under way.
    pub(super) fn submit(self: &Arc<Self>, request: Request) -> Result<Waiter, Failure> {
        let mut state = self.open_for(&request)?;
        let operation = state.join(&request, false).unwrap_or_else(|| self.queue(&mut state, request));
        drop(state);
        Ok(Waiter::new(self.clone(), operation))
    }

    /// The same, for who may be given what the action cache has, which had nothing when as many executions had ended
    /// as `ended` says. If the action has ended since, its result may be there now, and the request comes back.
    pub(super) fn submit_unless_ended_since(
        self: &Arc<Self>,
        ended: u64,
        request: Request,
    ) -> Result<Submitted, Failure> {
        let mut state = self.open_for(&request)?;
        let operation = match state.join(&request, true) {
            Some(operation) => operation,
            None if state.has_ended_since(ended, &request) => {
                return Ok(Submitted::LookAgain(Box::new(request)));
            }
            None => self.queue(&mut state, request),
        };
        drop(state);
        Ok(Submitted::Waiting(Waiter::new(self.clone(), operation)))
    }

    /// The state, if it takes one more request.
    fn open_for(&self, request: &Request) -> Result<MutexGuard<'_, State>, Failure> {
        let state = self.state.lock();
        if state.closed {
            return Err(stopping());
        }
        if !state.has_room(request) {
            return Err(Failure::new(Code::ResourceExhausted, "too many actions are queued already"));
        }
        Ok(state)
    }

    fn queue(&self, state: &mut State, request: Request) -> Arc<Operation> {
        let priority = request.priority;
        let operation = Operation::new(request, self.clock.now());
        state.queue(&operation, priority);
        self.arrived.notify_one();
        operation
    }

    /// An operation that was over before it began: its response was known.
    pub(super) fn answer(self: &Arc<Self>, request: Request, response: reapi::ExecuteResponse) -> Waiter {
        let operation = Operation::new(request, self.clock.now());
        let ending = Ending::from(response);
        self.state.lock().answered(&operation, &ending);
        operation.end(ending.response);
        Waiter::new(self.clone(), operation)
    }

    /// An operation by its name; nothing if it is unknown, long over, or from before a restart.
    pub(super) fn find(&self, name: &str) -> Option<Arc<Operation>> {
        self.state.lock().find(name)
    }

    /// Waits for an operation by its name.
    pub(super) fn wait(self: &Arc<Self>, name: &str) -> Option<Waiter> {
        Some(Waiter::new(self.clone(), self.find(name)?))
    }

    /// Cancels one client's request; whether there is one of that name.
    pub(super) fn cancel(&self, name: &str) -> bool {
        let operation = self.find(name);
        operation.map(|operation| self.give_up(&operation)).is_some()
    }

    /// Takes no more actions; what is queued is refused, what runs goes on.
    pub fn close(&self) {
        let ending = failed(&stopping());
        let refused = {
            let mut state = self.state.lock();
            state.closed = true;
            state.dequeue_all(&ending)
        };
        self.arrived.notify_waiters();
        tell(&refused, &ending);
    }

    /// Figures.
    pub fn stats(&self) -> SchedulerStats {
        let state = self.state.lock();
        let State { running, done, cache_hits, .. } = *state;
        SchedulerStats { queued: state.queued(), running, done, cache_hits }
    }

    /// Ends an operation for its client, and what it asked for if nobody else did.
    fn give_up(&self, operation: &Arc<Operation>) {
        let ending = failed(&Failure::cancelled());
        let given_up = self.state.lock().give_up(operation, &ending);
        match given_up {
            GivenUp::Alone | GivenUp::Dequeued => tell(std::slice::from_ref(operation), &ending),
            GivenUp::Running(execution) => execution.cancelled.cancel(),
            GivenUp::Over => {}
        }
    }

    /// The next queued execution.
    fn take(&self) -> Option<Arc<Execution>> {
        let mut state = self.state.lock();
        let execution = state.take()?;
        if state.queued() > 0 {
            // One ring may stand for several arrivals.
            self.arrived.notify_one();
        }
        Some(execution)
    }

    fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Writes a result that others may be given into the action cache; whether it is there.
    async fn store_result(&self, execution: &Execution, result: &reapi::ActionResult) -> bool {
        let Execution { name, instance, action_digest, .. } = execution;
        let stored = self.cache.put(instance, action_digest, result).await;
        if let Err(failure) = &stored {
            // The client gets its result all the same; only the next one has to run it again.
            tracing::warn!(operation = name, "cannot cache the result: {}", failure.message());
        }
        stored.is_ok()
    }
}

impl WorkSource for Scheduler {
    fn next(&self) -> BoxFuture<'_, Option<Assignment>> {
        Box::pin(async {
            loop {
                let arrived = self.arrived.notified();
                tokio::pin!(arrived);
                // Registered before the look, so that no ring between the two is missed.
                arrived.as_mut().enable();
                if let Some(execution) = self.take() {
                    return Some(assignment(&execution));
                }
                if self.is_closed() {
                    return None;
                }
                arrived.await;
            }
        })
    }

    fn complete(&self, name: String, response: reapi::ExecuteResponse) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let result = may_be_kept(&response);
            let Some(execution) = self.state.lock().seal(&name, result.is_some()) else { return };
            let is_kept = match result {
                Some(result) if !execution.do_not_cache => self.store_result(&execution, result).await,
                _ => false,
            };
            log_end(&execution, &response);
            let ending = Ending::from(response);
            let told = {
                let mut state = self.state.lock();
                state.running -= 1;
                state.done += 1;
                if is_kept {
                    state.remember_kept(execution.action_digest);
                }
                state.end(&name, &ending)
            };
            tell(&told, &ending);
        })
    }

    fn drain(&self) {
        self.close();
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        // Clients are the server's; it lets them go.
        Box::pin(std::future::ready(()))
    }
}

/// The result, if it is of a success.
fn may_be_kept(response: &reapi::ExecuteResponse) -> Option<&reapi::ActionResult> {
    response.result.as_ref().filter(|result| code_of(response) == Code::Ok && result.exit_code == 0)
}

fn tell(operations: &[Arc<Operation>], ending: &Ending) {
    for operation in operations {
        operation.end(ending.response.clone());
    }
}

/// Contents go inline when an operation is delivered: each client has its own wishes.
fn assignment(execution: &Execution) -> Assignment {
    Assignment {
        operation: execution.name.clone(),
        action_digest: execution.action_digest,
        action: None,
        inline: Inline::default(),
        queued: execution.queued,
        requester: Requester { metadata: execution.metadata.clone(), ..Requester::default() },
        progress: execution.progress.clone(),
        cancelled: execution.cancelled.clone(),
        is_orphan: Arc::default(),
    }
}

fn stopping() -> Failure {
    Failure::unavailable("longshore is shutting down", STOPPING_RETRY_DELAY)
}

fn failed(failure: &Failure) -> Ending {
    reapi::ExecuteResponse { status: Some(failure.to_rpc()), ..Default::default() }.into()
}

fn code_of(response: &reapi::ExecuteResponse) -> Code {
    response.status.as_ref().map_or(Code::Ok, |status| Code::from(status.code))
}

/// Within the action's span, which says whose end it is.
fn log_end(execution: &Execution, response: &reapi::ExecuteResponse) {
    let rpc::Status { message, .. } = response.status.clone().unwrap_or_default();
    let exit_code = response.result.as_ref().map_or(0, |result| result.exit_code);
    let took = SystemTime::now().duration_since(execution.queued).unwrap_or_default();
    tracing::info!(status = ?code_of(response), message, exit_code, took_ms = took.as_millis(), "done");
}

/// What became of a request.
pub(super) enum Submitted {
    /// Somebody waits for its operation.
    Waiting(Waiter),
    /// Its result may be in the action cache by now.
    LookAgain(Box<Request>),
}

/// Somebody who waits for an operation.
pub(super) struct Waiter {
    scheduler: Arc<Scheduler>,
    pub(super) operation: Arc<Operation>,
    /// That of the call which waits.
    span: Span,
}

impl Waiter {
    fn new(scheduler: Arc<Scheduler>, operation: Arc<Operation>) -> Self {
        operation.join();
        Self { scheduler, operation, span: Span::current() }
    }

    /// Completes after that time, by the scheduler's clock.
    pub(super) fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.scheduler.clock.sleep(duration)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if !self.operation.leave() || self.operation.is_done() {
            return;
        }
        let (scheduler, operation) = (self.scheduler.clone(), self.operation.clone());
        let give_up = async move {
            scheduler.clock.sleep(ABANDONED_AFTER).await;
            if !operation.has_waiters() && !operation.is_done() {
                tracing::info!(operation = operation.name, "nobody waits any more");
                scheduler.give_up(&operation);
            }
        };
        tokio::spawn(give_up.instrument(self.span.clone()));
    }
}

#[cfg(test)]
mod tests;
