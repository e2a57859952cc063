//! The room that everything takes on the disk: the ledger under its lock, and what moves it.
//!
//! Space is reserved before it is written. Above a high-water mark victims are unlinked in the background; at the
//! limit, writers wait for the unlinking, in the order in which they came. Where no victim is left, those who
//! hold references to things that nobody uses ([`PressureRelief`]) are asked to give them back; where they have
//! none, and nothing else is under way that could free space, the writer learns that there is none.
//!
//! *Locking*: one mutex, held for memory only, a few hundred keys at a time at most. Whoever creates, replaces or
//! unlinks the file of a key has taken the key ([`KeyGuard`]) and is running: waiting for a key is waiting for
//! a few system calls, never for work that is queued. Who holds a key waits for nothing else.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::{Either, select};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::flight::Flights;
use super::layout::Layout;
use super::ledger::{Ledger, SlotId, SlotKey, Victim};
use super::{PressureRelief, StoreError};
use crate::io::Environment;

/// Victims that are unlinked between two looks at the ledger.
const VICTIMS_A_BATCH: usize = 32;

/// What is kept free ahead of need is this part of the limit, twice that once unlinking has begun...
const HEADROOM_DIVISOR: u64 = 32;
/// ...but never more than this.
const HEADROOM_BYTES_MAX: u64 = 1 << 30;

/// How long a writer waits for space before it looks whether any can come: references that are held for the
/// length of a call are no reason to refuse it.
const LOOK: Duration = Duration::from_millis(250);
/// How often it looks before it gives up.
const LOOKS_MAX: u32 = 120;
/// The same for a thread of the pool.
const BLOCKING_LOOK: Duration = Duration::from_millis(5);
const BLOCKING_LOOKS_MAX: u32 = 2_000;
/// How many looks in a row a thread of the pool stays without hope.
const FRUITLESS_LOOKS_MAX: u32 = 50;

/// Everything the store has in common: the ledger, the layout, and who waits for what.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) layout: Arc<Layout>,
    pub(crate) environment: Environment,
    pub(crate) writes: AtomicU64,
    evictions: AtomicU64,
    state: Mutex<State>,
    /// A key was given back, or space was freed.
    changed: Condvar,
    reliefs: Mutex<Vec<Weak<dyn PressureRelief>>>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) ledger: Ledger,
    pub(crate) flights: Flights,
    /// Keys whose file is being created, replaced or unlinked.
    taken: HashSet<SlotKey>,
    queue: VecDeque<Waiter>,
    queued_bytes: u64,
    /// What reservations hold that will be written or returned soon.
    reserved_bytes: u64,
    is_evicting: bool,
}

#[derive(Debug)]
struct Waiter {
    bytes: u64,
    sender: oneshot::Sender<Reservation>,
}

/// Bytes that were promised and do not belong to a slot yet; they return when it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    space: Arc<Space>,
    bytes: u64,
}

impl Reservation {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes a part of it.
    pub(crate) fn split(&mut self, bytes: u64) -> Self {
        debug_assert!(bytes <= self.bytes);
        self.bytes -= bytes;
        Self { space: self.space.clone(), bytes }
    }

    /// Ends it without returning the bytes: they belong to something else now.
    pub(crate) fn spend(mut self, state: &mut State) -> u64 {
        state.reserved_bytes -= self.bytes;
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.space.change(|state| {
                state.reserved_bytes -= self.bytes;
                state.ledger.unreserve(self.bytes);
            });
        }
    }
}

/// The right to create, replace or unlink the file of a key, held by a running thread.
#[derive(Debug)]
pub(crate) struct KeyGuard {
    space: Arc<Space>,
    key: SlotKey,
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        self.space.lock().taken.remove(&self.key);
        self.space.changed.notify_all();
    }
}

impl Space {
    pub(crate) fn new(layout: Layout, limit_bytes: u64, environment: Environment) -> Arc<Self> {
        Arc::new(Self {
            layout: Arc::new(layout),
            environment,
            writes: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            state: Mutex::new(State {
                ledger: Ledger::new(limit_bytes),
                flights: Flights::default(),
                taken: HashSet::new(),
                queue: VecDeque::new(),
                queued_bytes: 0,
                reserved_bytes: 0,
                is_evicting: false,
            }),
            changed: Condvar::new(),
            reliefs: Mutex::new(Vec::new()),
        })
    }

    pub(crate) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    pub(crate) fn on_pressure(&self, relief: Weak<dyn PressureRelief>) {
        self.reliefs.lock().push(relief);
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

    /// Reserves `bytes`, waiting a bounded time while others make room.
    pub(crate) async fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, StoreError> {
        let (mut receiver, limit_bytes) = {
            let mut state = self.lock();
            let limit_bytes = state.ledger.limit_bytes();
            if bytes > limit_bytes {
                return Err(no_space(bytes, limit_bytes));
            }
            let (sender, receiver) = oneshot::channel();
            state.queue.push_back(Waiter { bytes, sender });
            state.queued_bytes += bytes;
            self.settle(state);
            (receiver, limit_bytes)
        };
        if let Ok(Some(reservation)) = receiver.try_recv() {
            return Ok(reservation);
        }
        for _ in 0..LOOKS_MAX {
            match select(receiver, self.environment.clock.sleep(LOOK)).await {
                Either::Left((granted, _)) => return Ok(granted.expect("who waits stays in the queue")),
                Either::Right(((), unanswered)) => receiver = unanswered,
            }
            if !self.can_free(bytes) {
                break;
            }
        }
        drop(receiver);
        // Those who wait behind us may fit.
        self.change(|_| ());
        Err(no_space(bytes, limit_bytes))
    }

    /// Reserves `bytes` from a thread of the pool, unlinking victims itself. Blocks.
    ///
    /// Space that is freed by other jobs is waited for by running such jobs, and for a bounded time.
    pub(crate) fn reserve_blocking(self: &Arc<Self>, bytes: u64) -> Result<Reservation, StoreError> {
        let limit_bytes = self.lock().ledger.limit_bytes();
        if bytes > limit_bytes {
            return Err(no_space(bytes, limit_bytes));
        }
        let mut fruitless_looks = 0;
        for _ in 0..BLOCKING_LOOKS_MAX {
            let mut state = self.lock();
            if state.reserve(bytes) {
                self.settle(state);
                return Ok(Reservation { space: self.clone(), bytes });
            }
            let excess = excess_over(&state.ledger, limit_bytes - bytes);
            let victims = state.take_victims(excess);
            drop(state);
            if !victims.is_empty() {
                self.unlink(victims);
                continue;
            }
            fruitless_looks = if self.can_free(bytes) { 0 } else { fruitless_looks + 1 };
            if fruitless_looks > FRUITLESS_LOOKS_MAX {
                break;
            }
            if rayon::yield_now() != Some(rayon::Yield::Executed) {
                self.changed.wait_for(&mut self.lock(), BLOCKING_LOOK);
            }
        }
        Err(no_space(bytes, limit_bytes))
    }

    /// Whether anything is under way that could free space, asking those who can give back references.
    fn can_free(self: &Arc<Self>, bytes: u64) -> bool {
        let is_relieved = self.relieve(bytes);
        let state = self.lock();
        let is_hopeful = is_relieved || !state.is_hopeless();
        self.settle(state);
        is_hopeful
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
            drop(sender.send(Reservation { space: self.clone(), bytes }));
        }
        if starts {
            let space = self.clone();
            self.environment.io.spawn(move || space.make_room());
        }
        self.changed.notify_all();
    }

    /// Unlinks victims until the headroom is there again. One thread at a time does that.
    fn make_room(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            let shortage = state.shortage(2 * headroom(state.ledger.limit_bytes()));
            if shortage == 0 {
                state.is_evicting = false;
                return;
            }
            let victims = state.take_victims(shortage);
            drop(state);
            if !victims.is_empty() {
                self.unlink(victims);
                continue;
            }
            self.relieve(shortage);
            let mut state = self.lock();
            if !state.ledger.has_victim() {
                // Whoever frees something later starts it again.
                state.is_evicting = false;
                return;
            }
        }
    }

    /// Asks those who hold references to give some back; whether anyone does.
    fn relieve(&self, bytes: u64) -> bool {
        let reliefs: Vec<_> = {
            let mut reliefs = self.reliefs.lock();
            reliefs.retain(|relief| relief.strong_count() > 0);
            reliefs.iter().filter_map(Weak::upgrade).collect()
        };
        // Every one is asked: that one is busy already does not mean that it has enough.
        reliefs.iter().filter(|relief| relief.relieve(bytes)).count() > 0
    }

    /// Unlinks victims whose keys this thread has taken, and counts their bytes as free.
    fn unlink(self: &Arc<Self>, victims: Vec<Victim>) {
        for victim in victims {
            let outcome = self.layout.unlink(&victim.key);
            if let Err(error) = &outcome {
                tracing::warn!(%error, "a victim cannot be unlinked; its space is lost until the next start");
            }
            self.change(|state| {
                state.taken.remove(&victim.key);
                match outcome {
                    Ok(()) => state.ledger.unlinked(victim.bytes),
                    Err(_) => state.ledger.stuck(victim.bytes),
                }
            });
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Unlinks the file of a key that nobody refers to. Blocks.
    pub(crate) fn evict_key(self: &Arc<Self>, key: &SlotKey) {
        let guard = self.take_key(*key);
        let Some(victim) = self.lock().ledger.take_key(key) else { return };
        let outcome = self.layout.unlink(key);
        self.change(|state| match outcome {
            Ok(()) => state.ledger.unlinked(victim.bytes),
            Err(_) => state.ledger.stuck(victim.bytes),
        });
        drop(guard);
    }

    /// Waits until nothing is being written, unlinked or waited for. Blocks.
    #[cfg(test)]
    pub(crate) fn wait_until_quiet(&self) {
        let mut state = self.lock();
        let is_quiet = |state: &State| {
            let is_still = !state.is_evicting && state.taken.is_empty() && state.queue.is_empty();
            is_still && state.reserved_bytes == 0 && state.ledger.victims_bytes() == 0
        };
        while !is_quiet(&state) {
            self.changed.wait_for(&mut state, BLOCKING_LOOK);
        }
    }

    /// Forgets a slot whose file is not what it should be, and removes the file. Blocks.
    pub(crate) fn lose(self: &Arc<Self>, key: &SlotKey, id: SlotId) {
        let guard = self.take_key(*key);
        let was_ready = {
            let mut state = self.lock();
            let was_ready = state.ledger.is_ready(id);
            state.ledger.lose(id);
            was_ready
        };
        if was_ready && let Err(error) = self.layout.unlink(key) {
            tracing::warn!(%error, "a damaged file cannot be removed");
        }
        drop(guard);
    }
}

impl State {
    /// What must still go so that those who wait fit and `headroom_bytes` stay free.
    fn shortage(&self, headroom_bytes: u64) -> u64 {
        let wanted = self.queued_bytes.saturating_add(headroom_bytes);
        excess_over(&self.ledger, self.ledger.limit_bytes().saturating_sub(wanted))
    }

    /// Takes victims worth `bytes`, a batch at most, and their keys.
    fn take_victims(&mut self, bytes: u64) -> Vec<Victim> {
        let mut victims = Vec::new();
        let mut found_bytes = 0;
        while found_bytes < bytes && victims.len() < VICTIMS_A_BATCH {
            let Some(victim) = self.ledger.take_victim() else { break };
            found_bytes += victim.bytes;
            self.taken.insert(victim.key);
            victims.push(victim);
        }
        victims
    }

    /// Takes `bytes` of the limit for a reservation; whether they are left.
    fn reserve(&mut self, bytes: u64) -> bool {
        let fits = self.ledger.reserve(bytes);
        if fits {
            self.reserved_bytes += bytes;
        }
        fits
    }

    /// Reserves for those who wait, in their order, as long as it fits.
    fn grant(&mut self) -> Vec<Waiter> {
        let mut granted = Vec::new();
        while let Some(waiter) = self.queue.front() {
            let (bytes, has_left) = (waiter.bytes, waiter.sender.is_canceled());
            if has_left {
                self.pop_waiter();
            } else if self.reserve(bytes) {
                granted.extend(self.pop_waiter());
            } else {
                break;
            }
        }
        granted
    }

    fn pop_waiter(&mut self) -> Option<Waiter> {
        let waiter = self.queue.pop_front()?;
        self.queued_bytes -= waiter.bytes;
        Some(waiter)
    }

    /// Whether nothing is under way that could free space.
    fn is_hopeless(&self) -> bool {
        !self.ledger.has_victim() && self.ledger.victims_bytes() == 0 && self.reserved_bytes == 0
    }

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

/// What the ledger holds above `goal_bytes` once its victims are unlinked.
fn excess_over(ledger: &Ledger, goal_bytes: u64) -> u64 {
    (ledger.used_bytes() - ledger.victims_bytes()).saturating_sub(goal_bytes)
}

fn headroom(limit_bytes: u64) -> u64 {
    (limit_bytes / HEADROOM_DIVISOR).min(HEADROOM_BYTES_MAX)
}

fn no_space(needed_bytes: u64, limit_bytes: u64) -> StoreError {
    let reason = format!("all of the store's {limit_bytes} bytes are in use");
    StoreError::NoSpace { needed_bytes, reason }
}
