//! Keepers without a command: they wait a few seconds for the next one, which starts sooner than with a new keeper.
//!
//! There are never more of them than commands ran at once within those seconds.
//!
//! *Locking*: one lock, held to take a keeper or to put one back.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::time::Instant;

/// How long a keeper waits for a command.
pub(super) const DEFAULT_IDLE_MAX: Duration = Duration::from_secs(5);

/// Longshore's end of the line to a keeper, which ends when this is dropped.
pub(super) type KeeperSocket = std::os::unix::net::UnixStream;

/// Keepers that wait.
#[derive(Debug)]
pub(super) struct Idle {
    waiting: Mutex<Waiting>,
    wait_max: Duration,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Those that have waited longest come first, and are used last.
    keepers: Vec<(Instant, KeeperSocket)>,
    /// Whether a task sees to their end.
    is_watched: bool,
}

impl Idle {
    pub(super) fn new(wait_max: Duration) -> Self {
        Self { waiting: Mutex::default(), wait_max }
    }

    pub(super) fn take(&self) -> Option<KeeperSocket> {
        self.waiting.lock().keepers.pop().map(|(_, keeper)| keeper)
    }

    /// Keeps a keeper that has reported; called on the runtime.
    pub(super) fn put(self: &Arc<Self>, keeper: UnixStream) {
        // It leaves the runtime: the next command may come from another one.
        let Ok(keeper) = keeper.into_std() else { return };
        let mut waiting = self.waiting.lock();
        waiting.keepers.push((Instant::now(), keeper));
        if !std::mem::replace(&mut waiting.is_watched, true) {
            tokio::spawn(watch(Arc::downgrade(self), Instant::now() + self.wait_max));
        }
    }

    /// Lets all of them go.
    pub(super) fn clear(&self) {
        let keepers = std::mem::take(&mut self.waiting.lock().keepers);
        drop(keepers);
    }

    /// Lets those go that have waited long enough; when the next one will have, if there is one.
    fn expire(&self) -> Option<Instant> {
        let mut waiting = self.waiting.lock();
        let now = Instant::now();
        let staying = waiting.keepers.iter().position(|(since, _)| now < *since + self.wait_max);
        let count = staying.unwrap_or(waiting.keepers.len());
        let gone: Vec<_> = waiting.keepers.drain(..count).collect();
        let next = waiting.keepers.first().map(|(since, _)| *since + self.wait_max);
        waiting.is_watched = next.is_some();
        drop((waiting, gone));
        next
    }
}

/// Sees to the end of those that wait, of which the first has waited long enough `at` that time.
async fn watch(idle: Weak<Idle>, at: Instant) {
    let mut next = Some(at);
    while let Some(at) = next {
        tokio::time::sleep_until(at).await;
        next = idle.upgrade().and_then(|idle| idle.expire());
    }
}
