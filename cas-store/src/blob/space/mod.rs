//! The room that everything takes on the disk: the ledger under its lock, and what moves it.
//!
//! Space is reserved before it is written. Above a high-water mark victims are unlinked in the background; at the
//! limit, writers wait for the unlinking, in the order in which they came; before them comes whoever has an output of an
//! action in hand, which would have to be executed again, where an upload only waits.
//!
//! What was used longest ago goes first, whether it is a victim or something that somebody keeps idle
//! ([`IdleHolder`]), as much as it takes to get below the mark. What was told to go counts as free for that decision,
//! so that nothing else has to go in its place; who waits for it too long gets the space of victims all the same. Where
//! neither is left, others are asked for space ([`PressureRelief`]); where they have none, and nothing else is
//! under way that could free space, the writer learns that there is none. Where the disk is full before the limit is
//! reached, because it is others' as well, the writer learns that at once, and victims are unlinked for those who
//! come next.
//!
//! *Locking*: one mutex, held for memory only, a few hundred keys at a time at most. Whoever creates, replaces or
//! unlinks the file of a key has taken the key ([`KeyGuard`]) and is running: waiting for a key is waiting for
//! a few system calls, never for work that is queued. Who holds a key waits for nothing else.

mod evict;
mod reserve;

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex, MutexGuard};

use evict::headroom;
pub(crate) use reserve::Reservation;
use reserve::Waiter;

use super::flight::Flights;
use super::layout::Layout;
use super::ledger::{Ledger, SlotId, SlotKey};
use super::recent::Recent;
use super::{IdleHolder, PressureRelief};
use crate::io::Environment;

/// Everything the store has in common: the ledger, the layout, and who waits for what.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) layout: Arc<Layout>,
    pub(crate) environment: Environment,
    pub(crate) writes: AtomicU64,
    /// Files that streams keep open between chunks.
    pub(crate) files_kept: AtomicUsize,
    pub(super) recent: Recent,
    evictions: AtomicU64,
    state: Mutex<State>,
    /// A key was given back, or space was freed.
    changed: Condvar,
    holders: Mutex<Vec<Weak<dyn IdleHolder>>>,
    reliefs: Mutex<Vec<Weak<dyn PressureRelief>>>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) ledger: Ledger,
    pub(crate) flights: Flights,
    /// Keys whose file is being created, replaced or unlinked.
    taken: HashSet<SlotKey>,
    pub(crate) queue: VecDeque<Waiter>,
    queued_bytes: u64,
    /// What threads of the pool wait for, who go first.
    pub(crate) urgent_bytes: u64,
    /// What reservations hold that will be written or returned soon.
    reserved_bytes: u64,
    is_evicting: bool,
}

/// The right to create, replace or unlink the file of a key, held by a running thread.
#[derive(Debug)]
pub(crate) struct KeyGuard {
    space: Arc<Space>,
    key: SlotKey,
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        // It may be a victim from now on.
        self.space.change(|state| state.taken.remove(&self.key));
    }
}

impl Space {
    pub(crate) fn new(layout: Layout, limit_bytes: u64, environment: Environment) -> Arc<Self> {
        Arc::new(Self {
            layout: Arc::new(layout),
            environment,
            writes: AtomicU64::new(0),
            files_kept: AtomicUsize::new(0),
            recent: Recent::default(),
            evictions: AtomicU64::new(0),
            state: Mutex::new(State {
                ledger: Ledger::new(limit_bytes),
                flights: Flights::default(),
                taken: HashSet::new(),
                queue: VecDeque::new(),
                queued_bytes: 0,
                urgent_bytes: 0,
                reserved_bytes: 0,
                is_evicting: false,
            }),
            changed: Condvar::new(),
            holders: Mutex::new(Vec::new()),
            reliefs: Mutex::new(Vec::new()),
        })
    }

    pub(crate) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// The state, for a look or a change that frees nothing.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Changes the state in a way that may free space, and lets those who wait for it go on.
    pub(crate) fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let value = change(&mut state);
        self.settle(state);
        value
    }

    /// Takes a key, waiting while another thread has it. Blocks.
    pub(crate) fn take_key(self: &Arc<Self>, key: SlotKey) -> KeyGuard {
        let mut state = self.lock();
        while !state.taken.insert(key) {
            self.changed.wait(&mut state);
        }
        KeyGuard { space: self.clone(), key }
    }

    /// Hands out what fits to those who wait, in their order, and starts the unlinking if space is short.
    fn settle(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let granted = state.grant();
        let is_short = state.shortage(headroom(state.ledger.limit_bytes())) > 0;
        let can_help = state.ledger.has_victim() || !state.queue.is_empty();
        let starts = is_short && can_help && !state.is_evicting;
        state.is_evicting |= starts;
        drop(state);
        for Waiter { bytes, sender } in granted {
            // Where the caller has left, the reservation returns by being dropped.
            drop(sender.send(Reservation::granted(self.clone(), bytes)));
        }
        if starts {
            let space = self.clone();
            self.environment.io.spawn(move || space.make_room());
        }
        self.changed.notify_all();
    }

    /// Waits until nothing is being written, unlinked or waited for, and nobody is leaving. Blocks.
    #[cfg(test)]
    pub(crate) fn wait_until_quiet(&self) {
        let mut state = self.lock();
        let is_quiet = |state: &State| {
            let is_still = !state.is_evicting && state.taken.is_empty() && state.queue.is_empty();
            let leaving_bytes = state.ledger.victims_bytes() + state.ledger.leaving_bytes();
            is_still && state.reserved_bytes == 0 && leaving_bytes == 0
        };
        while !is_quiet(&state) {
            self.changed.wait_for(&mut state, std::time::Duration::from_millis(1));
        }
    }
}

impl State {
    /// Makes a slot of a reservation, for an inode that is there now.
    pub(crate) fn insert(&mut self, key: SlotKey, reservation: Reservation) -> SlotId {
        let bytes = reservation.spend(self);
        self.ledger.insert(key, bytes)
    }

    /// Makes a slot of a reservation, for an inode that is yet to be made.
    pub(crate) fn plan(&mut self, key: SlotKey, reservation: Reservation) -> SlotId {
        let bytes = reservation.spend(self);
        self.ledger.plan(key, bytes)
    }

    pub(crate) fn is_taken(&self, key: &SlotKey) -> bool {
        self.taken.contains(key)
    }
}
