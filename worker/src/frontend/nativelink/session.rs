//! What the worker and the scheduler owe each other: a state machine without I/O.
//!
//! Invariants:
//! 1. nothing is said of an operation that the scheduler did not start on this very stream: it throws a worker out that
//!    reports a result which it does not wait for;
//! 2. an operation is answered once, however often it was started before that, and it never runs twice at once: a
//!    scheduler that finds that it takes long starts it again, and may do so while the answer is on its way;
//! 3. when a stream is lost the scheduler queues everything again under the same operation ids. What runs goes on, and
//!    what it comes to is kept until the scheduler starts the operation again, here, or has had time to do so;
//! 4. a scheduler that forgot everything, and whose clients ask again, gets what runs by its digest, where the request
//!    lets others' results do.
//!
//! The module does not know how messages travel. Times are passed in.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::nativelink::execute_result::Result as Outcome;
use longshore_proto::nativelink::update_for_scheduler::Update;
use longshore_proto::nativelink::{ExecuteComplete, ExecuteResult};
use tokio_util::sync::CancellationToken;

use super::PINGS;
use super::reply::{self, Reply};
use crate::status::Failure;

/// How long the scheduler has, after it took the worker on again, to start what ran before.
pub(super) const CLAIM_TIME_MAX: Duration = Duration::from_secs(10);
/// How long it has for what may have been lost on the way to it: it has that in its queue, and needs no client.
const DOUBT_TIME_MAX: Duration = Duration::from_secs(2);
/// How long a result that was sent may have been lost when the stream is: a scheduler that vanishes is found out late.
const DELIVERY_TIME_MAX: Duration = PINGS.found_out_max().saturating_add(Duration::from_secs(5));
/// Results that are kept though they were sent.
const SENT_MAX: usize = 64;

/// What the scheduler asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) operation: String,
    pub(super) instance_name: String,
    pub(super) action_digest: Digest,
    /// Only a run of this very operation will do.
    pub(super) skip_cache_lookup: bool,
    pub(super) queued: SystemTime,
}

impl Request {
    /// Whether what comes of `other`, which nobody waits for, answers this too.
    fn is_answered_by(&self, other: &Self) -> bool {
        self.operation == other.operation
            || !self.skip_cache_lookup
                && self.action_digest == other.action_digest
                && self.instance_name == other.instance_name
    }
}

/// An operation that is to be run, or runs.
#[derive(Debug)]
struct Task {
    request: Request,
    cancelled: CancellationToken,
    /// Whether the scheduler does not wait for it, since the stream is another one.
    is_orphan: Arc<AtomicBool>,
    /// Asked for anew while a run that was killed is still ending.
    again: Option<Request>,
    /// Whether its command has ended.
    has_run: bool,
}

impl Task {
    fn new(request: Request) -> Self {
        let cancelled = CancellationToken::new();
        Self { request, cancelled, is_orphan: Arc::default(), again: None, has_run: false }
    }

    /// Whether the scheduler waits for it on this stream.
    fn is_held(&self) -> bool {
        !self.is_orphan.load(Ordering::Relaxed)
    }
}

/// A result that the scheduler may ask for.
#[derive(Debug)]
struct Kept {
    request: Request,
    outcome: Outcome,
    delivery: Delivery,
}

/// How far a result has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivery {
    /// Nobody has been sent it.
    Waiting,
    /// It was sent on this stream, at that time.
    Sent(SystemTime),
    /// It was sent shortly before the stream was lost, and may have been lost with it.
    Doubtful,
}

impl Kept {
    fn answers(&self, request: &Request) -> bool {
        match self.delivery {
            Delivery::Waiting => request.is_answered_by(&self.request),
            // Somebody may have it already: it is not for others.
            Delivery::Doubtful => request.operation == self.request.operation,
            Delivery::Sent(_) => false,
        }
    }

    fn is_sent(&self) -> bool {
        matches!(self.delivery, Delivery::Sent(_))
    }
}

/// A task for a slot.
#[derive(Debug)]
pub(super) struct Taken {
    /// What the session knows it by.
    pub(super) name: String,
    pub(super) request: Request,
    pub(super) cancelled: CancellationToken,
    pub(super) is_orphan: Arc<AtomicBool>,
}

/// The state of one worker towards one scheduler.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// Since when the scheduler has counted on this worker; nothing without a stream.
    registered: Option<SystemTime>,
    is_draining: bool,
    tasks: BTreeMap<String, Task>,
    /// Names of tasks that wait for a slot.
    queue: VecDeque<String>,
    kept: Vec<Kept>,
    outbox: VecDeque<Update>,
    /// Tells apart tasks whose operations have, or had, the same id.
    serial: u64,
}

impl Session {
    /// The scheduler has taken the worker on.
    pub(super) fn registered(&mut self, now: SystemTime) {
        self.registered = Some(now);
    }

    /// The stream is gone, and with it whatever the scheduler was waiting for.
    pub(super) fn lost(&mut self, now: SystemTime) {
        self.registered = None;
        self.outbox.clear();
        for name in std::mem::take(&mut self.queue) {
            self.tasks.remove(&name);
        }
        for task in self.tasks.values_mut() {
            task.is_orphan.store(true, Ordering::Relaxed);
            task.again = None;
        }
        self.forget_delivered(now);
        for kept in self.kept.iter_mut().filter(|kept| kept.is_sent()) {
            kept.delivery = Delivery::Doubtful;
        }
    }

    /// The scheduler wants an action run.
    pub(super) fn start(&mut self, request: Request, now: SystemTime) {
        if let Some(name) = self.task_for(&request) {
            self.claim(&name, request);
        } else if self.kept.iter().any(|kept| kept.is_sent() && kept.request.operation == request.operation) {
            // It has crossed the result, after which the scheduler waits for no other.
        } else if let Some(at) = self.kept.iter().position(|kept| kept.answers(&request)) {
            let Kept { outcome, .. } = self.kept.remove(at);
            self.answer_and_keep(request, outcome, now);
        } else {
            self.queue(request);
        }
    }

    /// The scheduler wants what cannot be run.
    pub(super) fn refuse(&mut self, operation_id: String, instance_name: String, failure: &Failure) {
        let result = ExecuteResult { instance_name, operation_id, result: Some(reply::refused(failure)) };
        self.outbox.push_back(Update::ExecuteResult(result));
    }

    /// The scheduler does not want a result any more, but wants to hear of the end.
    pub(super) fn kill(&mut self, operation: &str) {
        let mut held = self.tasks.iter_mut().filter(|(_, task)| task.is_held());
        let Some((name, task)) = held.find(|(_, task)| task.request.operation == operation) else { return };
        task.again = None;
        task.cancelled.cancel();
        let name = name.clone();
        if let Some(at) = self.queue.iter().position(|queued| *queued == name) {
            self.queue.remove(at);
            let task = self.tasks.remove(&name).expect("what is queued is a task");
            self.answer(task.request, reply::killed());
        }
    }

    /// The next task for a slot.
    pub(super) fn take(&mut self) -> Option<Taken> {
        let name = self.queue.pop_front()?;
        let Task { request, cancelled, is_orphan, .. } = &self.tasks[&name];
        let (request, cancelled, is_orphan) = (request.clone(), cancelled.clone(), is_orphan.clone());
        Some(Taken { name, request, cancelled, is_orphan })
    }

    /// Whether tasks wait for a slot.
    pub(super) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The function of a task's digests, while it runs.
    pub(super) fn function(&self, name: &str) -> Option<DigestFunction> {
        self.tasks.get(name).map(|task| task.request.action_digest.function())
    }

    /// The command of a task has ended: what it took of the worker's properties is free.
    pub(super) fn ran(&mut self, name: &str) {
        let Some(task) = self.tasks.get_mut(name) else { return };
        task.has_run = true;
        if task.is_held() {
            let operation_id = task.request.operation.clone();
            self.outbox.push_back(Update::ExecuteComplete(ExecuteComplete { operation_id }));
        }
    }

    /// A task has come to its end.
    pub(super) fn completed(&mut self, name: &str, reply: Reply, now: SystemTime) {
        let Some(task) = self.tasks.remove(name) else { return };
        if let Some(request) = task.again {
            self.queue(request);
            return;
        }
        let is_held = task.is_held();
        let Task { request, cancelled, .. } = task;
        let Reply { outcome, is_final, .. } = reply;
        match (is_held, is_final) {
            (true, _) if cancelled.is_cancelled() => self.answer(request, reply::killed()),
            (true, true) => self.answer_and_keep(request, outcome, now),
            (true, false) => self.answer(request, outcome),
            (false, true) if !cancelled.is_cancelled() => {
                self.kept.push(Kept { request, outcome, delivery: Delivery::Waiting });
            }
            (false, _) => {}
        }
    }

    /// Takes no more on.
    pub(super) fn drain(&mut self) {
        self.is_draining = true;
        for name in std::mem::take(&mut self.queue) {
            let task = self.tasks.remove(&name).expect("what is queued is a task");
            self.decline(task.request);
        }
    }

    /// Whether it takes no more on.
    pub(super) fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// How many results wait for the scheduler to ask for them.
    pub(super) fn undelivered(&self) -> usize {
        self.kept.iter().filter(|kept| !kept.is_sent()).count()
    }

    /// How many actions are in slots.
    pub(super) fn running(&self) -> usize {
        self.tasks.len() - self.queue.len()
    }

    /// Time has passed: gives up what the scheduler has not asked for.
    pub(super) fn tick(&mut self, now: SystemTime) {
        self.forget_delivered(now);
        let Some(since) = self.registered else { return };
        let time = age(since, now);
        if time >= DOUBT_TIME_MAX {
            self.kept.retain(|kept| kept.delivery != Delivery::Doubtful);
        }
        if time >= CLAIM_TIME_MAX {
            self.kept.retain(Kept::is_sent);
            for task in self.tasks.values().filter(|task| !task.is_held()) {
                task.cancelled.cancel();
            }
        }
    }

    /// The next message to the scheduler.
    pub(super) fn next_message(&mut self) -> Option<Update> {
        self.outbox.pop_front()
    }

    /// The task that a request is about, or that can answer it.
    fn task_for(&self, request: &Request) -> Option<String> {
        let named = |(_, task): &(&String, &Task)| task.request.operation == request.operation;
        let orphaned = |(_, task): &(&String, &Task)| {
            !task.is_held() && !task.cancelled.is_cancelled() && request.is_answered_by(&task.request)
        };
        let found = self.tasks.iter().find(named).or_else(|| self.tasks.iter().find(orphaned));
        found.map(|(name, _)| name.clone())
    }

    /// The scheduler waits for a task, maybe under another operation id than before.
    fn claim(&mut self, name: &str, request: Request) {
        let task = self.tasks.get_mut(name).expect("the caller has found it");
        let was_held = !task.is_orphan.swap(false, Ordering::Relaxed);
        if task.cancelled.is_cancelled() {
            // What is ending was killed, and is no answer to whoever asks now.
            task.again = Some(request);
            return;
        }
        task.request = request;
        if task.has_run && !was_held {
            self.ran(name);
        }
    }

    fn queue(&mut self, request: Request) {
        if self.is_draining {
            self.decline(request);
            return;
        }
        let mut name = request.operation.clone();
        while self.tasks.contains_key(&name) {
            self.serial += 1;
            name = format!("{}+{}", request.operation, self.serial);
        }
        self.tasks.insert(name.clone(), Task::new(request));
        self.queue.push_back(name);
    }

    /// Gives an operation back. While others of this worker run, the scheduler then leaves it alone until one ends; without
    /// others it would send the same operation again at once, without end, so that it is left to go with the stream.
    fn decline(&mut self, request: Request) {
        if self.tasks.values().any(Task::is_held) {
            self.answer(request, reply::declined());
        }
    }

    fn answer_and_keep(&mut self, request: Request, outcome: Outcome, now: SystemTime) {
        self.answer(request.clone(), outcome.clone());
        self.kept.push(Kept { request, outcome, delivery: Delivery::Sent(now) });
        if self.kept.iter().filter(|kept| kept.is_sent()).count() > SENT_MAX
            && let Some(oldest) = self.kept.iter().position(Kept::is_sent)
        {
            self.kept.remove(oldest);
        }
    }

    /// Forgets results that were sent so long ago that the scheduler has them.
    fn forget_delivered(&mut self, now: SystemTime) {
        self.kept.retain(|kept| match kept.delivery {
            Delivery::Sent(at) => age(at, now) < DELIVERY_TIME_MAX,
            Delivery::Waiting | Delivery::Doubtful => true,
        });
    }

    fn answer(&mut self, request: Request, outcome: Outcome) {
        let Request { operation: operation_id, instance_name, .. } = request;
        let result = ExecuteResult { instance_name, operation_id, result: Some(outcome) };
        self.outbox.push_back(Update::ExecuteResult(result));
    }
}

/// The time from `earlier` to `now`; none if the clock was set back.
fn age(earlier: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(earlier).unwrap_or_default()
}

#[cfg(test)]
mod tests;
