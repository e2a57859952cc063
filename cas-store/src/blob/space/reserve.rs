//! Taking of the limit what is about to be written, and waiting for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::channel::oneshot;
use futures::future::{Either, select};

use super::evict::{excess_over, held_over};
use super::{Space, State};
use crate::blob::StoreError;

/// How long a writer waits for space before it looks whether any can come: references that are held for the
/// length of a call are no reason to refuse it.
const LOOK: Duration = Duration::from_millis(250);
/// How often it looks before it gives up.
const LOOKS_MAX: u32 = 120;
/// How often it looks while what was told to go is still there, before victims that were used later have to go.
const PATIENT_LOOKS: u32 = 8;
/// How often a thread of the pool looks, if nothing happens before.
const BLOCKING_LOOK: Duration = Duration::from_millis(5);
/// How long it waits at most.
const BLOCKING_MAX: Duration = Duration::from_secs(10);
/// How long it waits for what was told to go, before victims that were used later have to go.
const BLOCKING_PATIENCE: Duration = Duration::from_secs(2);
/// How long it stays without hope.
const HOPELESS_MAX: Duration = Duration::from_millis(250);

/// Who waits for space.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(super) bytes: u64,
    pub(super) sender: oneshot::Sender<Reservation>,
}

/// Bytes that were promised and do not belong to a slot yet; they return when it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    space: Arc<Space>,
    bytes: u64,
}

impl Reservation {
    /// Takes charge of bytes that the ledger has reserved.
    pub(super) fn granted(space: Arc<Space>, bytes: u64) -> Self {
        Self { space, bytes }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes a part of it.
    pub(crate) fn split(&mut self, bytes: u64) -> Self {
        debug_assert!(bytes <= self.bytes);
        self.bytes -= bytes;
        Self { space: self.space.clone(), bytes }
    }

    /// Takes another one in.
    pub(crate) fn join(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Ends it without returning the bytes: they belong to something else now.
    pub(crate) fn spend(mut self, state: &mut State) -> u64 {
        state.reserved_bytes -= self.bytes;
        std::mem::take(&mut self.bytes)
    }
}

/// A thread of the pool that waits for space: those who are queued leave it what is freed.
struct Urgent<'s> {
    space: &'s Arc<Space>,
    bytes: u64,
}

impl<'s> Urgent<'s> {
    fn wait(space: &'s Arc<Space>, bytes: u64) -> Self {
        space.lock().urgent_bytes += bytes;
        Self { space, bytes }
    }
}

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.space.change(|state| state.urgent_bytes -= self.bytes);
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

impl Space {
    /// Reserves `bytes`, waiting a bounded time while others make room.
    pub(crate) async fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, StoreError> {
        let (mut receiver, limit_bytes) = {
            let mut state = self.lock();
            let limit_bytes = state.ledger.limit_bytes();
            if bytes > limit_bytes {
                return Err(StoreError::NeverFits { needed_bytes: bytes, limit_bytes });
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
        for look in 0..LOOKS_MAX {
            match select(receiver, self.environment.clock.sleep(LOOK)).await {
                Either::Left((granted, _)) => return Ok(granted.expect("who waits stays in the queue")),
                Either::Right(((), unanswered)) => receiver = unanswered,
            }
            if !self.has_hope(bytes) {
                break;
            }
            // What can go by now goes.
            self.change(|_| ());
            if look >= PATIENT_LOOKS {
                let space = self.clone();
                self.environment.io.run(move || space.hurry()).await;
            }
        }
        drop(receiver);
        // Those who wait behind us may fit.
        self.change(|_| ());
        Err(no_space(bytes, limit_bytes))
    }

    /// Reserves `bytes` if they are free and nobody waits for any.
    pub(crate) fn reserve_now(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        let mut state = self.lock();
        let is_free = state.queue.is_empty() && state.urgent_bytes == 0;
        let is_reserved = is_free && state.reserve(bytes);
        self.settle(state);
        is_reserved.then(|| Reservation::granted(self.clone(), bytes))
    }

    /// Reserves `bytes` from a thread of the pool, unlinking victims itself. Blocks.
    ///
    /// Space that is freed by other jobs is waited for by running such jobs, and for a bounded time.
    pub(crate) fn reserve_blocking(self: &Arc<Self>, bytes: u64) -> Result<Reservation, StoreError> {
        let limit_bytes = self.lock().ledger.limit_bytes();
        if bytes > limit_bytes {
            return Err(StoreError::NeverFits { needed_bytes: bytes, limit_bytes });
        }
        let _urgent = Urgent::wait(self, bytes);
        let began = Instant::now();
        let mut hopeful = began;
        loop {
            let waited = began.elapsed();
            if let Some(reservation) = self.reserve_freeing(bytes, waited < BLOCKING_PATIENCE) {
                return Ok(reservation);
            }
            if self.has_hope(bytes) {
                hopeful = Instant::now();
            }
            if waited > BLOCKING_MAX || hopeful.elapsed() > HOPELESS_MAX {
                break;
            }
            if rayon::yield_now() != Some(rayon::Yield::Executed) {
                self.changed.wait_for(&mut self.lock(), BLOCKING_LOOK);
            }
        }
        Err(no_space(bytes, limit_bytes))
    }

    /// Reserves `bytes`, freeing what was used longest ago as long as there is any. Blocks.
    ///
    /// Who `is_patient` leaves alone what was used later than what was told to go.
    fn reserve_freeing(self: &Arc<Self>, bytes: u64, is_patient: bool) -> Option<Reservation> {
        loop {
            let idle_since = self.idle_since();
            let mut state = self.lock();
            if state.reserve(bytes) {
                self.settle(state);
                return Some(Reservation::granted(self.clone(), bytes));
            }
            let goal_bytes = state.ledger.limit_bytes() - bytes;
            let excess = excess_over(&state.ledger, goal_bytes);
            let held = if is_patient { 0 } else { held_over(&state.ledger, goal_bytes) };
            let next = state.take_next(held, None).or_else(|| state.take_next(excess, idle_since))?;
            drop(state);
            self.dismiss(next);
        }
    }

    /// Whether anything is under way that could free space, asking those who can give back references.
    fn has_hope(&self, bytes: u64) -> bool {
        self.relieve(bytes) || self.idle_since().is_some() || !self.lock().is_hopeless()
    }
}

impl State {
    /// Takes `bytes` of the limit for a reservation; whether they are left.
    fn reserve(&mut self, bytes: u64) -> bool {
        let fits = self.ledger.reserve(bytes);
        if fits {
            self.reserved_bytes += bytes;
        }
        fits
    }

    /// Reserves for those who wait, in their order, as long as it fits.
    pub(super) fn grant(&mut self) -> Vec<Waiter> {
        let mut granted = Vec::new();
        while let Some(waiter) = self.queue.front() {
            let (bytes, has_left) = (waiter.bytes, waiter.sender.is_canceled());
            if has_left {
                self.pop_waiter();
            } else if self.ledger.has_room(bytes.saturating_add(self.urgent_bytes)) && self.reserve(bytes) {
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
        let leaving_bytes = self.ledger.victims_bytes() + self.ledger.leaving_bytes();
        !self.ledger.has_victim() && leaving_bytes == 0 && self.reserved_bytes == 0
    }
}

fn no_space(needed_bytes: u64, limit_bytes: u64) -> StoreError {
    let reason = format!("all of the store's {limit_bytes} bytes are in use");
    StoreError::NoSpace { needed_bytes, reason }
}
