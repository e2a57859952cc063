//! Index and flights under one lock, and what goes on outside it: building, handing out, evicting.
//!
//! *Locking*: the lock is held for changes of maps only. What is taken out under it (victims, those who wait) is
//! dealt with after it is released.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use futures::FutureExt as _;
use futures::channel::oneshot;
use futures::future::{AbortRegistration, Abortable};
use parking_lot::Mutex;

use super::construct::Construction;
use super::flight::{Boarding, Flights, Seat};
use super::index::{IdleLimits, Index, Number, Victim};
use super::load::Loader;
use super::site::{Entry, Grounds};
use super::{DirectoryCacheStats, TreeError, TreePin};
use crate::blob::{IdleHolder, Moment};
use crate::digest::Digest;
use crate::io::Executor;
use crate::source::BlobSource;

type Outcome = Result<TreePin, TreeError>;

/// Everything the cache, its pins and its builds have in common.
pub(super) struct Shared {
    pub(super) loader: Loader,
    pub(super) grounds: Arc<Grounds>,
    pub(super) executor: Arc<dyn Executor>,
    pub(super) limits: IdleLimits,
    pub(super) state: Mutex<State>,
    pub(super) counts: Counts,
}

#[derive(Default)]
pub(super) struct State {
    index: Index<Arc<Entry>>,
    flights: Flights<Outcome, Arc<dyn BlobSource>>,
}

/// What happened since the start.
#[derive(Debug, Default)]
pub(super) struct Counts {
    constructions: AtomicU64,
    shares: AtomicU64,
    hits: AtomicU64,
    evictions: AtomicU64,
}

/// Keeps an entry from eviction; the last clone of a [`TreePin`] drops it.
pub(super) struct Pinned {
    pub(super) entry: Arc<Entry>,
    number: Number,
    pub(super) shared: Arc<Shared>,
}

impl Pinned {
    /// Forgets the entry, if it was not forgotten before.
    pub(super) fn lose(&self) {
        self.shared.state.lock().index.lose(&self.entry.tree.digest, self.number);
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let now = self.shared.loader.store.moment();
        let (lost, excess) = {
            let mut state = self.shared.state.lock();
            let lost = state.index.unpin(&self.entry.tree.digest, self.number, now);
            (lost, state.index.take_excess(self.shared.limits))
        };
        self.shared.retire(lost.into_iter().chain(excess));
    }
}

/// What a caller has to do.
enum Next {
    Use(TreePin),
    Wait(Waiter),
    TryAgain(oneshot::Receiver<()>),
}

/// A caller's share of a flight, given up when it is dropped.
struct Waiter {
    shared: Arc<Shared>,
    root: Digest,
    seat: Seat,
    receiver: oneshot::Receiver<Outcome>,
    /// What is built from, where somebody else has begun.
    others_source: Option<Arc<dyn BlobSource>>,
}

impl Waiter {
    /// Whether another build, from `source`, could come to something else than `error`.
    fn may_fare_better(&self, error: &TreeError, source: &dyn BlobSource) -> bool {
        let is_the_sources = matches!(error, TreeError::Missing { .. } | TreeError::Fetch { .. });
        let is_another = |others: &Arc<dyn BlobSource>| others.scope() != source.scope();
        is_the_sources && self.others_source.as_ref().is_some_and(is_another)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.shared.state.lock().flights.leave(&self.root, self.seat);
    }
}

/// Ends a flight when the last of its work has stopped: the task and each job of the pool hold it.
pub(super) struct Landing {
    shared: Arc<Shared>,
    root: Digest,
    /// Why there is no tree.
    error: Mutex<Option<TreeError>>,
}

impl Landing {
    /// Adds a tree to the index, and gives it to those who wait, at once: the way back to the task is a good part of
    /// a small construction. Nothing here keeps it.
    pub(super) fn arrive(&self, entry: Entry) {
        let pin = self.shared.admit(entry);
        let passengers = self.shared.state.lock().flights.arrive(&self.root);
        passengers.deliver(Ok(pin));
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let error = self.error.get_mut().take().unwrap_or(TreeError::Aborted { root: self.root });
        let (passengers, standby) = self.shared.state.lock().flights.land(&self.root);
        passengers.deliver(Err(error));
        standby.release();
    }
}

impl Shared {
    /// The tree with that root, pinned.
    ///
    /// Each failure answers, for good, all who reach what its builder reaches: of those who wait for one tree, nobody waits
    /// for more builds than they have scopes among them.
    pub(super) async fn get(self: &Arc<Self>, root: Digest, source: &Arc<dyn BlobSource>) -> Outcome {
        loop {
            match self.board(root, source) {
                Next::Use(pin) => return Ok(pin),
                Next::Wait(mut waiter) => {
                    let outcome = (&mut waiter.receiver).await.unwrap_or(Err(TreeError::Aborted { root }));
                    match outcome {
                        Err(error) if waiter.may_fare_better(&error, &**source) => {}
                        outcome => return outcome,
                    }
                }
                // Completes also if the sender is gone, which says the same.
                Next::TryAgain(landed) => drop(landed.await),
            }
        }
    }

    fn board(self: &Arc<Self>, root: Digest, source: &Arc<dyn BlobSource>) -> Next {
        let boarding = {
            let mut state = self.state.lock();
            if let Some((entry, number)) = state.index.pin(&root) {
                let pin = self.pin(entry.clone(), number);
                drop(state);
                self.counts.hits.fetch_add(1, Ordering::Relaxed);
                return Next::Use(pin);
            }
            state.flights.board(root, source)
        };
        let (seat, receiver, others_source) = match boarding {
            Boarding::Standby(landed) => return Next::TryAgain(landed),
            Boarding::Shared(seat, receiver, source) => {
                self.counts.shares.fetch_add(1, Ordering::Relaxed);
                (seat, receiver, Some(source))
            }
            Boarding::Started(seat, receiver, registration) => {
                self.counts.constructions.fetch_add(1, Ordering::Relaxed);
                self.take_off(root, source.clone(), registration);
                (seat, receiver, None)
            }
        };
        Next::Wait(Waiter { shared: self.clone(), root, seat, receiver, others_source })
    }

    /// Starts the task that builds.
    fn take_off(
        self: &Arc<Self>,
        root: Digest,
        source: Arc<dyn BlobSource>,
        registration: AbortRegistration,
    ) {
        let landing = Arc::new(Landing { shared: self.clone(), root, error: Mutex::default() });
        let construction = Construction::new(self.clone(), root, source, landing.clone());
        let mut task = Box::pin(async move {
            let building = Abortable::new(construction.build(), registration);
            let built = AssertUnwindSafe(building).catch_unwind().await;
            // Neither a build that everybody left nor one that panicked has an error of its own.
            if let Ok(Ok(Err(error))) = built {
                *landing.error.lock() = Some(error);
            }
        });
        // The pool gets its first job now: the way to the executor is a good part of a small construction.
        if (&mut task).now_or_never().is_none() {
            self.executor.spawn(task);
        }
    }

    /// Adds a new entry to the index, pinned.
    pub(super) fn admit(self: &Arc<Self>, entry: Entry) -> TreePin {
        let entry = Arc::new(entry);
        let (digest, size_bytes) = (entry.tree.digest, entry.tree.totals.size_bytes);
        let number = self.state.lock().index.insert_pinned(digest, size_bytes, entry.clone());
        self.pin(entry, number)
    }

    /// Wraps a pin that was counted already.
    fn pin(self: &Arc<Self>, entry: Arc<Entry>, number: Number) -> TreePin {
        TreePin { pinned: Arc::new(Pinned { entry, number, shared: self.clone() }) }
    }

    /// Deletes entries that are in the index no more, in the background.
    fn retire(&self, victims: impl IntoIterator<Item = Victim<Arc<Entry>>>) {
        for (entry, used_at) in victims {
            self.counts.evictions.fetch_add(1, Ordering::Relaxed);
            self.grounds.retire(entry, used_at);
        }
    }

    pub(super) fn stats(&self) -> DirectoryCacheStats {
        let state = self.state.lock();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DirectoryCacheStats {
            constructions: count(&self.counts.constructions),
            shares: count(&self.counts.shares),
            hits: count(&self.counts.hits),
            evictions: count(&self.counts.evictions),
            entries: state.index.len() as u64,
            pinned: state.index.pinned_len() as u64,
            size_bytes: state.index.size_bytes(),
        }
    }
}

/// The trees that nobody uses, as the store sees them.
#[derive(Debug)]
pub(super) struct IdleTrees(pub(super) Weak<Shared>);

impl IdleHolder for IdleTrees {
    fn idle_since(&self) -> Option<Moment> {
        self.0.upgrade()?.state.lock().index.idle_since()
    }

    fn give_up(&self, moment: Moment) {
        let Some(shared) = self.0.upgrade() else { return };
        let victim = shared.state.lock().index.take_oldest(moment);
        shared.retire(victim);
    }
}
