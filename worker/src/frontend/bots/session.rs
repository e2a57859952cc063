//! What a bot knows of its session, apart from all I/O: leases as they are held here, and what a reply changes.
//!
//! The protocol is a comparison of lists. Each call lists every lease that is held, each reply every lease that the
//! server holds for this bot; what is missing in a reply is gone. Which calls were made, and which were lost, does not
//! matter: every call says everything. Only results that are too many for a message take turns: until one has its turn,
//! its lease is listed as if it ran. What was told once is told again until there is an answer: the server may have heard
//! it, and a lease that has ended cannot run again.
//!
//! Invariants: a lease is held until it is gone or its result is acknowledged; a result, once there, does not change;
//! an id that comes back after that is another attempt, and has another name here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use longshore_proto::Message as _;
use longshore_proto::bots::{self, BotStatus, LeaseState};

use crate::frontend::reports::RESPONSE_BYTES_MAX;

/// Results in one call, in bytes: as large as one alone may be.
const RESULTS_BYTES_MAX: usize = RESPONSE_BYTES_MAX;

/// A result as it is reported, until the server has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Report {
    /// The lease with its final state, status and result; its id is the session's affair.
    pub(super) lease: bots::Lease,
    /// Whether the server may give the same lease out again after this result.
    pub(super) may_be_retried: bool,
    /// How long to hold it back.
    pub(super) pause: Duration,
}

/// A lease that is held.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    /// The attempt's name: unique, where the lease's id may come again.
    operation: String,
    /// What came of it; nothing while it runs.
    report: Option<Report>,
    /// Whether a call that was not answered has told that.
    is_told: bool,
}

/// What a call says, and what of it the reply has to be read against.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// The session as it is sent.
    pub(super) message: bots::BotSession,
    /// The leases that are reported as completed.
    reported: BTreeSet<String>,
    /// What runs: each lease's id and its operation.
    pub(super) running: Vec<(String, String)>,
    /// The first lease whose result it has no room for.
    next: Option<String>,
}

impl Call {
    /// Whether there are results that it has no room for.
    pub(super) fn is_full(&self) -> bool {
        self.next.is_some()
    }

    /// Whether it opens a session.
    pub(super) fn is_first(&self) -> bool {
        self.message.name.is_empty()
    }

    /// Whether it tells the server of a result.
    pub(super) fn has_results(&self) -> bool {
        !self.reported.is_empty()
    }

    /// Whether it says that the bot leaves.
    pub(super) fn is_leaving(&self) -> bool {
        self.message.status() == BotStatus::BotTerminating
    }
}

/// An attempt at a lease that begins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Started {
    pub(super) operation: String,
    pub(super) lease: bots::Lease,
}

/// What a reply changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Changes {
    /// What is to be run.
    pub(super) started: Vec<Started>,
    /// Operations whose result the server has.
    pub(super) acknowledged: Vec<String>,
    /// Operations that nobody wants any more.
    pub(super) gone: Vec<String>,
    /// Whether the session is another one than it was, so that the next call asks for something new. A version alone
    /// does not make it so: servers may count whatever they like.
    pub(super) is_news: bool,
}

/// A session, or the lack of one.
#[derive(Clone, Debug)]
pub(super) struct Session {
    bot_id: String,
    worker: bots::Worker,
    name: String,
    version: String,
    held: BTreeMap<String, Held>,
    /// The lease whose result is the first one for the next call; those before it come last.
    turn: String,
    is_leaving: bool,
    attempts: u64,
}

impl Session {
    pub(super) fn new(bot_id: String, worker: bots::Worker) -> Self {
        Self {
            bot_id,
            worker,
            name: String::new(),
            version: String::new(),
            held: BTreeMap::new(),
            turn: String::new(),
            is_leaving: false,
            attempts: 0,
        }
    }

    /// Whether the server has given a session.
    pub(super) fn is_open(&self) -> bool {
        !self.name.is_empty()
    }

    /// Whether no new leases are wanted.
    pub(super) fn is_leaving(&self) -> bool {
        self.is_leaving
    }

    /// Wants no new leases from here on.
    pub(super) fn leave(&mut self) {
        self.is_leaving = true;
    }

    /// Whether there are results that the server is not known to have.
    pub(super) fn has_results(&self) -> bool {
        self.held.values().any(|held| held.report.is_some())
    }

    /// Everything that there is to say now.
    pub(super) fn call(&mut self) -> Call {
        let status = if self.is_leaving { BotStatus::BotTerminating } else { BotStatus::Ok };
        let (reported, next) = self.results();
        let leases = self.held.iter().map(|(id, held)| match &held.report {
            Some(report) if reported.contains(id) => bots::Lease { id: id.clone(), ..report.lease.clone() },
            _ => bots::Lease { id: id.clone(), state: LeaseState::Active.into(), ..Default::default() },
        });
        let message = bots::BotSession {
            name: self.name.clone(),
            bot_id: self.bot_id.clone(),
            status: status.into(),
            worker: Some(self.worker.clone()),
            leases: leases.collect(),
            version: self.version.clone(),
            ..Default::default()
        };
        let running = self.held.iter().filter(|(_, held)| held.report.is_none());
        let running = running.map(|(id, held)| (id.clone(), held.operation.clone())).collect();
        for id in &reported {
            if let Some(held) = self.held.get_mut(id) {
                held.is_told = true;
            }
        }
        Call { message, reported, running, next }
    }

    /// The leases whose results are in the next call, and the first one for which there is no room.
    fn results(&self) -> (BTreeSet<String>, Option<String>) {
        let mut left_bytes = RESULTS_BYTES_MAX;
        let mut reported = BTreeSet::new();
        let in_turn = self.held.range(self.turn.clone()..).chain(self.held.range(..self.turn.clone()));
        // What was told had room together, and has it again.
        let (told, new): (Vec<_>, Vec<_>) = in_turn.partition(|(_, held)| held.is_told);
        for (id, held) in told.into_iter().chain(new) {
            let Some(report) = &held.report else { continue };
            match left_bytes.checked_sub(report.lease.encoded_len()) {
                Some(left) => left_bytes = left,
                // Each has been made to fit by itself.
                None if reported.is_empty() => left_bytes = 0,
                None => return (reported, Some(id.clone())),
            }
            reported.insert(id.clone());
        }
        (reported, None)
    }

    /// The server has answered `call`.
    pub(super) fn answered(&mut self, call: &Call, reply: bots::BotSession) -> Changes {
        let mut changes = Changes::default();
        if call.is_first() {
            self.name = reply.name;
            changes.is_news = self.is_open();
        }
        self.version = reply.version;
        // What the server lists now it has not heard of.
        self.turn = call.next.clone().unwrap_or_default();
        self.held.values_mut().for_each(|held| held.is_told = false);

        let mut absent = std::mem::take(&mut self.held);
        for lease in reply.leases {
            if self.held.contains_key(&lease.id) {
                continue;
            }
            let held = absent.remove(&lease.id);
            self.compare(call, held, lease, &mut changes);
        }
        for (id, held) in absent {
            changes.end(held, call.reported.contains(&id));
        }
        changes
    }

    /// Takes in what the server says of one lease.
    fn compare(&mut self, call: &Call, held: Option<Held>, lease: bots::Lease, changes: &mut Changes) {
        let is_reported = call.reported.contains(&lease.id);
        let is_wanted = matches!(lease.state(), LeaseState::Pending | LeaseState::Active);
        match held {
            // Where the bot's own word for it comes back, the server has it.
            Some(held) if !is_wanted => changes.end(held, is_reported),
            None if !is_wanted => {}
            Some(held) if is_reported && is_another_attempt(&held, lease.state()) => {
                changes.end(held, true);
                self.start(lease, changes);
            }
            Some(held) => {
                self.held.insert(lease.id, held);
            }
            None => self.start(lease, changes),
        }
    }

    fn start(&mut self, lease: bots::Lease, changes: &mut Changes) {
        self.attempts += 1;
        let operation = format!("{}/{}", lease.id, self.attempts);
        let held = Held { operation: operation.clone(), report: None, is_told: false };
        self.held.insert(lease.id.clone(), held);
        changes.started.push(Started { operation, lease });
        changes.is_news = true;
    }

    /// An operation has ended; whether anybody wants to know.
    pub(super) fn complete(&mut self, operation: &str, report: Report) -> bool {
        let running = |held: &&mut Held| held.operation == operation && held.report.is_none();
        let Some(held) = self.held.values_mut().find(running) else { return false };
        held.report = Some(report);
        true
    }

    /// The server knows the session no more: everything in it is gone, and the next call opens another one.
    pub(super) fn lost(&mut self) -> Vec<String> {
        self.name.clear();
        self.version.clear();
        std::mem::take(&mut self.held).into_values().map(|held| held.operation).collect()
    }
}

impl Changes {
    /// A lease is held no more: its result has arrived, or nobody wanted one.
    fn end(&mut self, held: Held, is_reported: bool) {
        self.is_news = true;
        if is_reported {
            self.acknowledged.push(held.operation);
        } else {
            self.gone.push(held.operation);
        }
    }
}

/// Whether a lease that was reported comes back because it was given out anew, and not because the result is not
/// known yet: an offer is always new, and what was accepted before can only be so after a result that is retried.
fn is_another_attempt(held: &Held, state: LeaseState) -> bool {
    state == LeaseState::Pending || held.report.as_ref().is_some_and(|report| report.may_be_retried)
}

#[cfg(test)]
mod tests;
