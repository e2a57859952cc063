//! What the scheduler knows, without locks, clocks or tasks.
//!
//! *Invariants*: an execution is queued or runs, and then has at least one operation, or it is gone. It is joinable
//! until it is cancelled or its result is known, so that nobody joins what has ended for somebody else; who may be
//! given what the action cache has (REAPI, `skip_cache_lookup`) may join until the result is there. What the operations
//! under way hold is counted and bounded, and so is what is kept of those that have ended.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use longshore_cas_store::digest::Digest;

use super::super::operation::{Execution, Operation, Request};
use super::history::{Ending, History};

/// Lower priority first, then first come, first served.
type Place = (i32, u64);

/// How many of the latest results are remembered: far more than come between a lookup and a place in the queue.
const KEPT_MAX: usize = 1024;

/// What operations under way may hold in memory together.
const UNDERWAY_BYTES_MAX: usize = 256 << 20;

#[derive(Default)]
pub(super) struct State {
    /// Names of executions.
    queue: BTreeMap<Place, String>,
    arrivals: u64,
    /// By the name of the execution.
    underway: HashMap<String, Underway>,
    underway_bytes: usize,
    /// The executions that another client may join, by instance and action.
    joinable: HashMap<(String, Digest), Joinable>,
    /// Those under way, by name.
    operations: HashMap<String, Arc<Operation>>,
    /// The latest whose results went to the action cache: each with the count of those that had ended by then.
    kept: VecDeque<(u64, Digest)>,
    executed: History,
    /// Apart, so that a flood of them does not push out what was executed.
    answered: History,
    pub(super) running: usize,
    pub(super) done: u64,
    pub(super) cache_hits: u64,
    /// No more actions are taken.
    pub(super) closed: bool,
}

/// An execution that another client may join.
struct Joinable {
    name: String,
    /// Its result is on its way to the action cache.
    is_known: bool,
}

/// An execution and everybody who asked for it.
struct Underway {
    execution: Arc<Execution>,
    place: Place,
    operations: Vec<Arc<Operation>>,
}

/// What becomes of an execution when one of its operations is given up.
pub(super) enum GivenUp {
    /// Others want it: the operation alone has ended.
    Alone,
    /// It was queued and is gone; its last operation has to be told.
    Dequeued,
    /// Nobody else wants it: what runs has to be stopped, and ends its operation.
    Running(Arc<Execution>),
    /// It had ended before.
    Over,
}

impl State {
    /// Whether there is room for one more operation of `request`.
    pub(super) fn has_room(&self, request: &Request) -> bool {
        self.underway_bytes + request.size_bytes() <= UNDERWAY_BYTES_MAX
    }

    /// Lets `request` join an execution of the same action, where there is one: one whose result is known already only
    /// if it may be given what the action cache has.
    pub(super) fn join(&mut self, request: &Request, may_be_known: bool) -> Option<Arc<Operation>> {
        if request.do_not_cache {
            return None;
        }
        let Joinable { name, is_known } =
            self.joinable.get(&(request.instance.clone(), request.action_digest))?;
        if *is_known && !may_be_known {
            return None;
        }
        let underway = self.underway.get_mut(name)?;
        let operation = Operation::joining(underway.execution.clone(), request);
        self.underway_bytes += operation.size_bytes;
        underway.operations.push(operation.clone());
        let place = (underway.place.0.min(request.priority), underway.place.1);
        if place != underway.place
            && let Some(queued) = self.queue.remove(&underway.place)
        {
            underway.place = place;
            self.queue.insert(place, queued);
        }
        self.operations.insert(operation.name.clone(), operation.clone());
        Some(operation)
    }

    /// Says that the action which ended last has its result in the action cache.
    pub(super) fn remember_kept(&mut self, action: Digest) {
        if self.kept.len() == KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back((self.done, action));
    }

    /// Whether the result of `request` may have come into the action cache since so many executions had ended.
    pub(super) fn has_ended_since(&self, ended: u64, request: &Request) -> bool {
        let is_forgotten = self.kept.len() == KEPT_MAX && self.kept[0].0 > ended;
        let mut since = self.kept.iter().rev().take_while(|(number, _)| *number > ended);
        is_forgotten || since.any(|(_, action)| *action == request.action_digest)
    }

    /// Queues a new execution.
    pub(super) fn queue(&mut self, operation: &Arc<Operation>, priority: i32) {
        let execution = operation.execution.clone();
        self.underway_bytes += operation.size_bytes;
        self.arrivals += 1;
        let place = (priority, self.arrivals);
        self.queue.insert(place, execution.name.clone());
        if !execution.do_not_cache {
            let joinable = Joinable { name: execution.name.clone(), is_known: false };
            self.joinable.insert(key(&execution), joinable);
        }
        self.operations.insert(operation.name.clone(), operation.clone());
        let name = execution.name.clone();
        self.underway.insert(name, Underway { execution, place, operations: vec![operation.clone()] });
    }

    /// The first execution of the queue, which counts as running from now on.
    pub(super) fn take(&mut self) -> Option<Arc<Execution>> {
        let (_, name) = self.queue.pop_first()?;
        let execution = self.underway.get(&name)?.execution.clone();
        self.running += 1;
        Some(execution)
    }

    /// How many executions wait for a slot.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The execution of that name, if it is under way; nobody joins it any more but those who may be given a result that
    /// is kept.
    pub(super) fn seal(&mut self, name: &str, is_kept: bool) -> Option<Arc<Execution>> {
        let execution = self.underway.get(name)?.execution.clone();
        if let Entry::Occupied(mut joinable) = self.joinable.entry(key(&execution))
            && joinable.get().name == name
        {
            if is_kept {
                joinable.get_mut().is_known = true;
            } else {
                joinable.remove();
            }
        }
        Some(execution)
    }

    /// Everybody who asked for an execution that has ended: they have to be told.
    pub(super) fn end(&mut self, name: &str, ending: &Ending) -> Vec<Arc<Operation>> {
        self.seal(name, false);
        let Some(underway) = self.underway.remove(name) else { return Vec::new() };
        self.queue.remove(&underway.place);
        for operation in &underway.operations {
            self.retire(operation, ending);
        }
        underway.operations
    }

    /// Keeps an operation that the action cache answered.
    pub(super) fn answered(&mut self, operation: &Operation, ending: &Ending) {
        self.cache_hits += 1;
        self.answered.add(operation, ending);
    }

    /// Ends one client's interest in an execution.
    pub(super) fn give_up(&mut self, operation: &Arc<Operation>, ending: &Ending) -> GivenUp {
        let name = operation.execution.name.clone();
        let Some(underway) = self.underway.get_mut(&name) else { return GivenUp::Over };
        let Some(index) = underway.operations.iter().position(|other| Arc::ptr_eq(other, operation)) else {
            return GivenUp::Over;
        };
        if underway.operations.len() > 1 {
            underway.operations.swap_remove(index);
            self.retire(operation, ending);
            return GivenUp::Alone;
        }
        let (execution, place) = (underway.execution.clone(), underway.place);
        if self.queue.contains_key(&place) {
            self.end(&name, ending);
            return GivenUp::Dequeued;
        }
        self.seal(&name, false);
        GivenUp::Running(execution)
    }

    /// Takes everything out of the queue that nobody has taken; everybody who asked for it has to be told.
    pub(super) fn dequeue_all(&mut self, ending: &Ending) -> Vec<Arc<Operation>> {
        let names: Vec<_> = self.queue.values().cloned().collect();
        names.iter().flat_map(|name| self.end(name, ending)).collect()
    }

    /// An operation by its name.
    pub(super) fn find(&self, name: &str) -> Option<Arc<Operation>> {
        let underway = self.operations.get(name).cloned();
        underway.or_else(|| self.executed.find(name)).or_else(|| self.answered.find(name))
    }

    /// Moves an operation from those under way to those that have ended.
    fn retire(&mut self, operation: &Operation, ending: &Ending) {
        self.underway_bytes -= operation.size_bytes;
        self.operations.remove(&operation.name);
        self.executed.add(operation, ending);
    }
}

fn key(execution: &Execution) -> (String, Digest) {
    (execution.instance.clone(), execution.action_digest)
}
