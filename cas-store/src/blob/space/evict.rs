//! Giving back what nobody refers to: unlinking, in the background and on the spot.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use nix::errno::Errno;

use super::{Space, State};
use crate::blob::ledger::{Ledger, SlotId, SlotKey, Victim};
use crate::blob::{PressureRelief, StoreError};
use crate::dir::PathError;

/// Victims that are unlinked between two looks at the ledger.
const VICTIMS_A_BATCH: usize = 32;

/// What is kept free ahead of need is this part of the limit, twice that once unlinking has begun...
const HEADROOM_DIVISOR: u64 = 32;
/// ...but never more than this.
const HEADROOM_BYTES_MAX: u64 = 1 << 30;

impl Space {
    pub(crate) fn on_pressure(&self, relief: Weak<dyn PressureRelief>) {
        self.reliefs.lock().push(relief);
    }

    /// Unlinks victims until the headroom is there again. One thread at a time does that.
    pub(super) fn make_room(self: &Arc<Self>) {
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

    /// Unlinks victims worth `bytes`; where there are too few, others are asked for references.
    fn free(self: &Arc<Self>, bytes: u64) {
        let mut left_bytes = bytes;
        while left_bytes > 0 {
            let victims = self.lock().take_victims(left_bytes);
            if victims.is_empty() {
                self.relieve(left_bytes);
                return;
            }
            let freed_bytes: u64 = victims.iter().map(|victim| victim.bytes).sum();
            left_bytes = left_bytes.saturating_sub(freed_bytes);
            self.unlink(victims);
        }
    }

    /// Asks those who hold references to give some back; whether anyone does.
    pub(super) fn relieve(&self, bytes: u64) -> bool {
        let reliefs: Vec<_> = {
            let mut reliefs = self.reliefs.lock();
            reliefs.retain(|relief| relief.strong_count() > 0);
            reliefs.iter().filter_map(Weak::upgrade).collect()
        };
        // Every one is asked: that one is busy already does not mean that it has enough.
        reliefs.iter().filter(|relief| relief.relieve(bytes)).count() > 0
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
    /// What must still go so that those who wait fit and `headroom_bytes` stay free.
    pub(super) fn shortage(&self, headroom_bytes: u64) -> u64 {
        let wanted = self.queued_bytes.saturating_add(headroom_bytes);
        excess_over(&self.ledger, self.ledger.limit_bytes().saturating_sub(wanted))
    }

    /// Takes victims worth `bytes`, a batch at most, and their keys.
    ///
    /// Never one whose key is taken: whoever has it may be about to publish that very file.
    pub(super) fn take_victims(&mut self, bytes: u64) -> Vec<Victim> {
        let mut victims = Vec::new();
        let mut found_bytes = 0;
        while found_bytes < bytes && victims.len() < VICTIMS_A_BATCH {
            let Self { ledger, taken, .. } = self;
            let Some(victim) = ledger.take_victim(|key| !taken.contains(key)) else { break };
            found_bytes += victim.bytes;
            taken.insert(victim.key);
            victims.push(victim);
        }
        victims
    }
}

/// What the ledger holds above `goal_bytes` once its victims are unlinked.
pub(super) fn excess_over(ledger: &Ledger, goal_bytes: u64) -> u64 {
    (ledger.used_bytes() - ledger.victims_bytes()).saturating_sub(goal_bytes)
}

pub(super) fn headroom(limit_bytes: u64) -> u64 {
    (limit_bytes / HEADROOM_DIVISOR).min(HEADROOM_BYTES_MAX)
}
