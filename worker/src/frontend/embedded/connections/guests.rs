//! Who is connected, and who of them has to go when somebody else waits.
//!
//! A connection without a call is of no use to anybody, and its client connects again when it needs one; one with calls
//! says something now and then, for the server asks. Who has been silent longest goes first. Nobody has to go while
//! there is room.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use longshore_cas_store::io::Clock;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::super::limits::{IDLE_CONNECTION_MAX, IDLE_LOOK_EVERY, SILENCE_MAX};
use super::super::share::Share;

/// Everybody who is connected.
pub(super) struct Guests {
    here: Vec<Weak<Guest>>,
    count_max: usize,
    clock: Arc<dyn Clock>,
}

/// One of them.
pub(super) struct Guest {
    share: Share,
    sent_away: CancellationToken,
    /// In milliseconds since the epoch.
    active_ms: AtomicU64,
    clock: Arc<dyn Clock>,
}

impl Guests {
    /// At most `count_max` at once.
    pub(super) fn new(count_max: usize, clock: Arc<dyn Clock>) -> Self {
        Self { here: Vec::new(), count_max, clock }
    }

    /// Adds one.
    pub(super) fn welcome(&mut self) -> Arc<Guest> {
        // Those that have gone are thrown out now and then, so that it costs nothing each time.
        if self.here.len() > 2 * self.count_max {
            self.here.retain(|guest| guest.strong_count() > 0);
        }
        let guest = Arc::new(Guest {
            share: Share::default(),
            sent_away: CancellationToken::new(),
            active_ms: AtomicU64::new(now_ms(&*self.clock)),
            clock: self.clock.clone(),
        });
        self.here.push(Arc::downgrade(&guest));
        guest
    }

    /// Sends away who may be; completes a moment later.
    pub(super) async fn send_one_away(&self) {
        let now_ms = now_ms(&*self.clock);
        let here = self.here.iter().filter_map(Weak::upgrade).filter(|guest| guest.may_be_sent_away(now_ms));
        if let Some(guest) = here.min_by_key(|guest| guest.active_ms.load(Ordering::Relaxed)) {
            tracing::debug!("an idle connection is closed: another one waits");
            guest.sent_away.cancel();
        }
        self.clock.sleep(IDLE_LOOK_EVERY).await;
    }
}

impl Guest {
    /// What its connection may make the server hold.
    pub(super) fn share(&self) -> &Share {
        &self.share
    }

    /// Says that bytes went to and fro.
    pub(super) fn is_active(&self) {
        self.active_ms.store(now_ms(&*self.clock), Ordering::Relaxed);
    }

    /// Completes when its connection has to be closed.
    pub(super) fn sent_away(&self) -> WaitForCancellationFutureOwned {
        self.sent_away.clone().cancelled_owned()
    }

    fn may_be_sent_away(&self, now_ms: u64) -> bool {
        let idle = Duration::from_millis(now_ms.saturating_sub(self.active_ms.load(Ordering::Relaxed)));
        let idle_max = if self.share.has_calls() { SILENCE_MAX } else { IDLE_CONNECTION_MAX };
        !self.sent_away.is_cancelled() && idle >= idle_max
    }
}

fn now_ms(clock: &dyn Clock) -> u64 {
    let since = clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
