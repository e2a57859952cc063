//! The queue between clients and this process's own slots.
//!
//! *Locking*: one mutex over the maps, held for their changes only. *Merging*: identical actions under way are one
//! operation with several waiters, unless they are not to be cached. *Leaving*: an operation that nobody waits for
//! is kept for a grace period, so that a client that lost its connection finds it again, and then cancelled.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use longshore_cas_store::digest::Digest;
use longshore_cas_store::io::Clock;
use longshore_proto::{reapi, rpc};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::Code;

use super::action_cache::ActionCache;
use super::operation::{Operation, Request};
use crate::action::Assignment;
use crate::frontend::WorkSource;
use crate::status::Failure;

/// How long an operation without a waiter goes on.
const ABANDONED_AFTER: Duration = Duration::from_mins(1);
/// How many finished operations can still be asked for.
const FINISHED_MAX: usize = 1_000;

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

#[derive(Default)]
struct State {
    /// Lower priority first, then first come, first served.
    queue: BTreeMap<(i32, u64), Arc<Operation>>,
    arrivals: u64,
    operations: HashMap<String, Arc<Operation>>,
    /// Operations that another client may join, by instance and action.
    joinable: HashMap<(String, Digest), Arc<Operation>>,
    finished: VecDeque<String>,
    running: usize,
    done: u64,
    cache_hits: u64,
    closed: bool,
}

impl Scheduler {
    pub(super) fn new(cache: Arc<ActionCache>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), arrived: Notify::new(), cache, clock })
    }

    /// Queues an action, or joins an identical one under way.
    pub(super) fn submit(self: &Arc<Self>, request: Request) -> Result<Waiter, Failure> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Failure::unavailable("longshore is shutting down", Duration::from_secs(1)));
        }
        let key = (request.instance.clone(), request.action_digest);
        let mergeable = !request.do_not_cache;
        if let Some(operation) = state.joinable.get(&key).filter(|_| mergeable) {
            return Ok(Waiter::new(self.clone(), operation.clone()));
        }
        let operation = Operation::new(request, self.clock.now());
        if mergeable {
            state.joinable.insert(key, operation.clone());
        }
        state.operations.insert(operation.name.clone(), operation.clone());
        state.arrivals += 1;
        let place = (operation.request.priority, state.arrivals);
        state.queue.insert(place, operation.clone());
        drop(state);
        self.arrived.notify_one();
        Ok(Waiter::new(self.clone(), operation))
    }

    /// Waits for an operation by its name; nothing if it is unknown, or from before a restart.
    pub(super) fn find(self: &Arc<Self>, name: &str) -> Option<Waiter> {
        let operation = self.state.lock().operations.get(name).cloned()?;
        Some(Waiter::new(self.clone(), operation))
    }

    /// Cancels an operation for everybody; whether there is one of that name.
    pub(super) fn cancel(&self, name: &str) -> bool {
        let operation = self.state.lock().operations.get(name).cloned();
        operation.map(|operation| self.abort(&operation)).is_some()
    }

    pub(super) fn count_cache_hit(&self) {
        self.state.lock().cache_hits += 1;
    }

    /// Takes no more actions; what is queued is refused, what runs goes on.
    pub fn close(&self) {
        let queued = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.queue)
        };
        self.arrived.notify_waiters();
        let failure = Failure::unavailable("longshore is shutting down", Duration::from_secs(1));
        for operation in queued.into_values() {
            self.finish(&operation, failed(&failure));
        }
    }

    /// Cancels everything that runs.
    pub fn cancel_all(&self) {
        for operation in self.state.lock().operations.values() {
            operation.cancelled.cancel();
        }
    }

    /// Figures.
    pub fn stats(&self) -> SchedulerStats {
        let state = self.state.lock();
        let State { running, done, cache_hits, .. } = *state;
        SchedulerStats { queued: state.queue.len(), running, done, cache_hits }
    }

    /// Ends an operation that is queued, or tells the slot that runs it to.
    fn abort(&self, operation: &Arc<Operation>) {
        operation.cancelled.cancel();
        let was_queued = {
            let mut state = self.state.lock();
            let before = state.queue.len();
            state.queue.retain(|_, queued| !Arc::ptr_eq(queued, operation));
            state.queue.len() < before
        };
        if was_queued {
            self.finish(operation, failed(&Failure::cancelled()));
        }
    }

    /// Delivers the response and keeps the operation for those who ask later.
    fn finish(&self, operation: &Arc<Operation>, response: reapi::ExecuteResponse) {
        let mut state = self.state.lock();
        let key = (operation.request.instance.clone(), operation.request.action_digest);
        if state.joinable.get(&key).is_some_and(|joinable| Arc::ptr_eq(joinable, operation)) {
            state.joinable.remove(&key);
        }
        state.finished.push_back(operation.name.clone());
        if state.finished.len() > FINISHED_MAX
            && let Some(oldest) = state.finished.pop_front()
        {
            state.operations.remove(&oldest);
        }
        drop(state);
        operation.response.send_replace(Some(Arc::new(response)));
    }

    /// The next queued operation, and a slot that counts as running from now on.
    fn take(&self) -> Option<Arc<Operation>> {
        let mut state = self.state.lock();
        let (_, operation) = state.queue.pop_first()?;
        state.running += 1;
        if !state.queue.is_empty() {
            // One ring may stand for several arrivals.
            self.arrived.notify_one();
        }
        Some(operation)
    }

    fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    async fn store_result(
        &self,
        operation: &Operation,
        response: &reapi::ExecuteResponse,
    ) -> Result<(), Failure> {
        let succeeded = response.status.as_ref().is_none_or(|status| status.code == Code::Ok as i32);
        let Request { instance, action_digest, do_not_cache, .. } = &operation.request;
        match &response.result {
            Some(result) if succeeded && result.exit_code == 0 && !do_not_cache => {
                self.cache.put(instance, action_digest, result).await
            }
            _ => Ok(()),
        }
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
                if let Some(operation) = self.take() {
                    return Some(assignment(&operation));
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
            let Some(operation) = self.state.lock().operations.get(&name).cloned() else { return };
            if let Err(failure) = self.store_result(&operation, &response).await {
                // The client gets its result all the same; only the next one has to run it again.
                tracing::warn!(operation = name, "cannot cache the result: {}", failure.message());
            }
            log_end(&operation, &response);
            {
                let mut state = self.state.lock();
                state.running -= 1;
                state.done += 1;
            }
            self.finish(&operation, response);
        })
    }
}

fn assignment(operation: &Operation) -> Assignment {
    Assignment {
        operation: operation.name.clone(),
        action_digest: operation.request.action_digest,
        action: None,
        inline: operation.request.inline.clone(),
        queued: operation.queued,
        request_metadata: operation.request.metadata.clone(),
        progress: operation.progress.clone(),
        cancelled: operation.cancelled.clone(),
    }
}

fn failed(failure: &Failure) -> reapi::ExecuteResponse {
    reapi::ExecuteResponse { status: Some(failure.to_rpc()), ..Default::default() }
}

fn log_end(operation: &Operation, response: &reapi::ExecuteResponse) {
    let metadata = &operation.request.metadata;
    let rpc::Status { code, message, .. } = response.status.clone().unwrap_or_default();
    let exit_code = response.result.as_ref().map_or(0, |result| result.exit_code);
    let took = SystemTime::now().duration_since(operation.queued).unwrap_or_default();
    tracing::info!(
        action = %operation.request.action_digest,
        target_id = metadata.target_id,
        mnemonic = metadata.action_mnemonic,
        invocation = metadata.tool_invocation_id,
        tool = metadata.tool_details.as_ref().map(|tool| tool.tool_name.as_str()),
        status = ?Code::from(code),
        message,
        exit_code,
        took_ms = took.as_millis(),
        "done"
    );
}

/// Somebody who waits for an operation.
pub(super) struct Waiter {
    scheduler: Arc<Scheduler>,
    pub(super) operation: Arc<Operation>,
}

impl Waiter {
    fn new(scheduler: Arc<Scheduler>, operation: Arc<Operation>) -> Self {
        operation.join();
        Self { scheduler, operation }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if !self.operation.leave() || self.operation.is_done() {
            return;
        }
        let (scheduler, operation) = (self.scheduler.clone(), self.operation.clone());
        tokio::spawn(async move {
            scheduler.clock.sleep(ABANDONED_AFTER).await;
            if !operation.has_waiters() && !operation.is_done() {
                tracing::info!(operation = operation.name, "nobody waits any more");
                scheduler.abort(&operation);
            }
        });
    }
}
