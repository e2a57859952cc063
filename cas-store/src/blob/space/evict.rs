//! Giving back what was used longest ago: unlinking, in the background and on the spot, and having others let go.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use nix::errno::Errno;
use parking_lot::Mutex;

use super::{Space, State};
use crate::blob::ledger::{Ledger, SlotId, SlotKey, Victim};
use crate::blob::{IdleHolder, Moment, PressureRelief, StoreError};
use crate::dir::PathError;

/// Victims that are unlinked between two looks at the ledger.
const VICTIMS_A_BATCH: usize = 32;

/// What is kept free ahead of need is this part of the limit, twice that once unlinking has begun...
const HEADROOM_DIVISOR: u64 = 32;
/// ...but never more than this.
const HEADROOM_BYTES_MAX: u64 = 1 << 30;

/// What is to go next.
pub(super) enum Next {
    /// These are unlinked.
    Victims(Vec<Victim>),
    /// Whoever keeps something idle since then gives it up.
    Idle(Moment),
}

impl Space {
    pub(crate) fn on_idle(&self, holder: Weak<dyn IdleHolder>) {
        self.holders.lock().push(holder);
    }

    pub(crate) fn on_pressure(&self, relief: Weak<dyn PressureRelief>) {
        self.reliefs.lock().push(relief);
    }

    /// Frees what was used longest ago until the headroom is there again, or will be. One thread at a time does that.
    pub(super) fn make_room(self: &Arc<Self>) {
        loop {
            let idle_since = self.idle_since();
            let mut state = self.lock();
            let shortage = state.shortage(2 * headroom(state.ledger.limit_bytes()));
            let Some(next) = state.take_next(shortage, idle_since) else {
                // Whoever frees something later starts it again.
                state.is_evicting = false;
                drop(state);
                if shortage > 0 {
                    self.relieve(shortage);
                }
                return;
            };
            drop(state);
            self.dismiss(next);
        }
    }

    /// Lets go of what is to go.
    pub(super) fn dismiss(self: &Arc<Self>, next: Next) {
        match next {
            Next::Victims(victims) => self.unlink(victims),
            Next::Idle(moment) => live(&self.holders).iter().for_each(|holder| holder.give_up(moment)),
        }
    }

    /// The last use of what has been idle longest.
    pub(super) fn idle_since(&self) -> Option<Moment> {
        live(&self.holders).iter().filter_map(|holder| holder.idle_since()).min()
    }

    /// Unlinks victims for those who wait, whatever was told to go: that takes too long. Blocks.
    pub(super) fn hurry(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            let lack = state.lack();
            let victims = state.take_victims(lack, Moment::END);
            drop(state);
            if victims.is_empty() {
                return;
            }
            self.unlink(victims);
        }
    }

    /// Turns what fails while `needed_bytes` are written into an error: a full disk is no fault of the file.
    ///
    /// Others have filled it, below our own limit. What nobody refers to is given up in the background, so that
    /// whoever tries again finds room.
    pub(crate) fn on_write(self: &Arc<Self>, needed_bytes: u64) -> impl Fn(PathError) -> StoreError + use<> {
        let space = self.clone();
        move |error| match error.errno {
            Errno::ENOSPC | Errno::EDQUOT => {
                space.give_way(needed_bytes);
                StoreError::NoSpace { needed_bytes, reason: error.to_string() }
            }
            _ => StoreError::Path(error),
        }
    }

    /// Unlinks victims worth `bytes` and the headroom in the background, unless that goes on already.
    fn give_way(self: &Arc<Self>, bytes: u64) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.is_evicting, true) {
            return;
        }
        let wanted_bytes = bytes.saturating_add(headroom(state.ledger.limit_bytes()));
        drop(state);
        let space = self.clone();
        self.environment.io.spawn(move || {
            space.free(wanted_bytes);
            space.make_room();
        });
    }

    /// Frees `bytes` of what is here now, or sees to it that they will be.
    fn free(self: &Arc<Self>, bytes: u64) {
        let goal_bytes = excess_over(&self.lock().ledger, 0).saturating_sub(bytes);
        loop {
            let idle_since = self.idle_since();
            let mut state = self.lock();
            let excess = excess_over(&state.ledger, goal_bytes);
            let next = state.take_next(excess, idle_since);
            drop(state);
            let Some(next) = next else {
                if excess > 0 {
                    self.relieve(excess);
                }
                return;
            };
            self.dismiss(next);
        }
    }

    /// Asks others for space; whether anyone begins to give some.
    pub(super) fn relieve(&self, bytes: u64) -> bool {
        // Every one is asked: that one is busy already does not mean that it has enough.
        live(&self.reliefs).iter().filter(|relief| relief.relieve(bytes)).count() > 0
    }

    /// Unlinks victims whose keys this thread has taken, and counts their bytes as free.
    pub(super) fn unlink(self: &Arc<Self>, victims: Vec<Victim>) {
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
    /// What must still be told to go so that those who wait fit and `headroom_bytes` stay free.
    pub(super) fn shortage(&self, headroom_bytes: u64) -> u64 {
        let wanted = self.queued_bytes.saturating_add(headroom_bytes);
        excess_over(&self.ledger, self.ledger.limit_bytes().saturating_sub(wanted))
    }

    /// What those who wait lack while nothing more is freed than what is being unlinked.
    fn lack(&self) -> u64 {
        held_over(&self.ledger, self.ledger.limit_bytes().saturating_sub(self.queued_bytes))
    }

    /// Takes what was used longest ago, so that `bytes` go, or some of them.
    pub(super) fn take_next(&mut self, bytes: u64, idle_since: Option<Moment>) -> Option<Next> {
        if bytes == 0 {
            return None;
        }
        let victims = self.take_victims(bytes, idle_since.unwrap_or(Moment::END));
        if victims.is_empty() { idle_since.map(Next::Idle) } else { Some(Next::Victims(victims)) }
    }

    /// Takes victims worth `bytes` that were not used after `until`, a batch at most, and their keys.
    ///
    /// Never one whose key is taken: whoever has it may be about to publish that very file.
    pub(super) fn take_victims(&mut self, bytes: u64, until: Moment) -> Vec<Victim> {
        let mut victims = Vec::new();
        let mut found_bytes = 0;
        while found_bytes < bytes && victims.len() < VICTIMS_A_BATCH {
            let Self { ledger, taken, .. } = self;
            let Some(victim) = ledger.take_victim(until, |key| !taken.contains(key)) else { break };
            found_bytes += victim.bytes;
            taken.insert(victim.key);
            victims.push(victim);
        }
        victims
    }
}

/// What the ledger holds above `goal_bytes` once its victims are unlinked.
pub(super) fn held_over(ledger: &Ledger, goal_bytes: u64) -> u64 {
    (ledger.used_bytes() - ledger.victims_bytes()).saturating_sub(goal_bytes)
}

/// The same once those who are leaving have left, too.
pub(super) fn excess_over(ledger: &Ledger, goal_bytes: u64) -> u64 {
    held_over(ledger, goal_bytes).saturating_sub(ledger.leaving_bytes())
}

/// Those who are still there.
fn live<T: ?Sized>(registered: &Mutex<Vec<Weak<T>>>) -> Vec<Arc<T>> {
    let mut registered = registered.lock();
    registered.retain(|one| one.strong_count() > 0);
    registered.iter().filter_map(Weak::upgrade).collect()
}

pub(super) fn headroom(limit_bytes: u64) -> u64 {
    (limit_bytes / HEADROOM_DIVISOR).min(HEADROOM_BYTES_MAX)
}
