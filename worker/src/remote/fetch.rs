//! Downloads: who wants what, and what is in flight.
//!
//! Wants line up in the [`super::queue`]; whenever the [`super::window`] has room, the next job becomes a task. A job
//! holds its place until everything it set out for has a fate, and gives it back however it ends.
//!
//! *Locking*: one lock over queue and window, held for changes in memory.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::channel::mpsc;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use longshore_cas_store::blob::{BlobPin, BlobStore};
use longshore_cas_store::digest::Digest;
use longshore_cas_store::source::{BlobSource, FetchError, Fetched, Scope};
use parking_lot::Mutex;

use super::limits::ServerLimits;
use super::on_behalf::OnBehalfOf;
use super::queue::{Item, Job, Queue, Room, Urgency, WaiterId};
use super::window::Window;
use super::{Remote, RemoteStats, batch, stream, tree};

/// A batch is not made smaller than that to have more of them in flight.
const BATCH_BYTES_MIN: u64 = 256 << 10;

/// The downloads of one server.
pub(super) struct Fetches {
    state: Mutex<State>,
    waiters: AtomicU64,
    counts: Counts,
}

struct State {
    queue: Queue<Waiter>,
    window: Window,
    /// Requests in flight for a large blob.
    large: usize,
    /// Requests in flight for what may be wanted soon.
    speculative: usize,
}

/// What a request in flight counts as.
#[derive(Clone, Copy)]
struct Counted {
    is_large: bool,
    is_speculative: bool,
}

/// What may start.
struct Start {
    job: Job,
    counted: Counted,
    on_behalf_of: Option<OnBehalfOf>,
}

/// Who is told of a blob's fate, and whom it is asked for.
#[derive(Clone)]
struct Waiter {
    sender: mpsc::UnboundedSender<Fetched>,
    on_behalf_of: OnBehalfOf,
}

#[derive(Default)]
struct Counts {
    fetched_blobs: AtomicU64,
    fetched_bytes: AtomicU64,
    spared_blobs: AtomicU64,
    joined_wants: AtomicU64,
}

impl Fetches {
    pub(super) fn new(requests_in_flight_max: usize) -> Self {
        let window = Window::new(requests_in_flight_max);
        let state = State { queue: Queue::default(), window, large: 0, speculative: 0 };
        Self { state: Mutex::new(state), waiters: AtomicU64::new(0), counts: Counts::default() }
    }

    pub(super) fn stats(&self) -> RemoteStats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RemoteStats {
            fetched_blobs: count(&self.counts.fetched_blobs),
            fetched_bytes: count(&self.counts.fetched_bytes),
            spared_blobs: count(&self.counts.spared_blobs),
            joined_wants: count(&self.counts.joined_wants),
            ..RemoteStats::default()
        }
    }

    /// How long the answer to a request took.
    pub(super) fn answered(&self, took: Duration) {
        self.state.lock().window.answered(took);
    }

    /// A request was in vain.
    pub(super) fn failed(&self) {
        self.state.lock().window.failed();
    }

    /// Whether nobody wants a blob that is under way any more: who wants it later begins anew.
    pub(super) fn is_given_up(&self, digest: &Digest) -> bool {
        self.state.lock().queue.give_up(digest)
    }
}

impl BlobSource for Remote {
    fn fetch(&self, wanted: Vec<Digest>, store: Arc<BlobStore>) -> BoxStream<'static, Fetched> {
        debug_assert!(Arc::ptr_eq(&store, &self.shared.store), "a client fetches for one store");
        let remote = self.clone();
        async move { remote.line_up(wanted).await }.flatten_stream().boxed()
    }

    fn fetch_tree(&self, root: Digest, store: Arc<BlobStore>) -> BoxStream<'static, Fetched> {
        debug_assert!(Arc::ptr_eq(&store, &self.shared.store), "a client fetches for one store");
        tree::fetch(self.clone(), root)
    }

    fn scope(&self) -> Scope {
        self.shared.scope.clone()
    }
}

impl Remote {
    async fn line_up(self, wanted: Vec<Digest>) -> BoxStream<'static, Fetched> {
        let limits = match self.caller.limits().await {
            Ok(limits) => limits,
            Err(error) => {
                let error = self.caller.unavailable(&error);
                let fates = wanted.into_iter().map(move |digest| failed(digest, error.clone()));
                return futures::stream::iter(fates).boxed();
            }
        };
        let (empty, wanted): (Vec<_>, Vec<_>) = wanted.into_iter().partition(Digest::is_empty);
        let store = self.shared.store.clone();
        let none = futures::stream::iter(empty).then(move |digest| {
            let store = store.clone();
            async move { stored(digest, store.put(digest, bytes::Bytes::new()).await) }
        });
        none.chain(self.wait_for(wanted, &limits)).boxed()
    }

    /// Puts `wanted` in line; the stream says what became of each.
    fn wait_for(&self, wanted: Vec<Digest>, limits: &Arc<ServerLimits>) -> BoxStream<'static, Fetched> {
        let fetches = &self.shared.fetches;
        let id = WaiterId(fetches.waiters.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = mpsc::unbounded();
        let waiter = Waiter { sender, on_behalf_of: self.caller.whom().clone() };
        let count = wanted.len();
        {
            let mut state = fetches.state.lock();
            for &digest in &wanted {
                let item = Item {
                    digest,
                    urgency: self.urgency,
                    is_small: limits.is_small(&digest),
                    cost_bytes: ServerLimits::cost(&digest),
                };
                if state.queue.want(item, id, waiter.clone()) {
                    fetches.counts.joined_wants.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        let interest = Interest { remote: self.clone(), id, digests: wanted.into_iter().collect() };
        self.pump(limits);
        let fates = futures::stream::unfold((receiver, interest), |(mut receiver, mut interest)| async {
            let fate: Fetched = receiver.next().await?;
            interest.digests.remove(&fate.digest);
            Some((fate, (receiver, interest)))
        });
        fates.take(count).boxed()
    }

    /// Starts jobs while there is room for them.
    fn pump(&self, limits: &Arc<ServerLimits>) {
        while let Some(Start { job, counted, on_behalf_of }) = self.shared.fetches.start(limits) {
            let caller = self.caller.on_behalf_of(on_behalf_of.unwrap_or_else(|| self.caller.whom().clone()));
            let remote = Self { caller, ..self.clone() };
            let digests = match &job {
                Job::Batch(digests) => digests.iter().copied().collect(),
                Job::Large(digest) => HashSet::from([*digest]),
            };
            let mut flight =
                Flight { remote: remote.clone(), limits: limits.clone(), counted, left: digests };
            self.shared.environment.executor.spawn(Box::pin(async move {
                match job {
                    Job::Batch(digests) => {
                        let digests = flight.spare(digests);
                        batch::read(&remote, &mut flight, digests).await;
                    }
                    Job::Large(digest) => {
                        for digest in flight.spare(vec![digest]) {
                            let fetched = stream::read(&remote, digest).await;
                            flight.end(digest, fetched.as_ref());
                        }
                    }
                }
            }));
        }
    }
}

impl Fetches {
    /// The next job, which is in flight from now on.
    fn start(&self, limits: &ServerLimits) -> Option<Start> {
        let mut state = self.state.lock();
        let room = state.window.room();
        if room == 0 {
            return None;
        }
        // What is in line is spread over what may go now, so that the way and the store work side by side.
        let share = state.queue.small_bytes().div_ceil(room);
        let batch_bytes_max = share.max(BATCH_BYTES_MIN).min(limits.batch_bytes_max());
        let half = state.window.half();
        let (large, speculative) = (state.large < half, state.speculative < half);
        let (job, urgency) = state.queue.take(Room { batch_bytes_max, large, speculative })?;
        let (first, is_large) = match &job {
            Job::Batch(digests) => (digests.first(), false),
            Job::Large(digest) => (Some(digest), true),
        };
        let waiter = first.and_then(|digest| state.queue.first_waiter(digest));
        let on_behalf_of = waiter.map(|waiter| waiter.on_behalf_of.clone());
        let counted = Counted { is_large, is_speculative: urgency == Urgency::Speculative };
        state.window.sent();
        state.large += usize::from(counted.is_large);
        state.speculative += usize::from(counted.is_speculative);
        Some(Start { job, counted, on_behalf_of })
    }

    /// A request has ended, however.
    fn ended(&self, counted: Counted) {
        let mut state = self.state.lock();
        state.window.ended();
        state.large -= usize::from(counted.is_large);
        state.speculative -= usize::from(counted.is_speculative);
    }
}

/// Somebody's wants, given up when the stream is dropped.
struct Interest {
    remote: Remote,
    id: WaiterId,
    digests: HashSet<Digest>,
}

impl Drop for Interest {
    fn drop(&mut self) {
        if !self.digests.is_empty() {
            self.remote.shared.fetches.state.lock().queue.abandon(self.id, &self.digests);
        }
    }
}

/// A job in flight: whatever has no fate when it ends is told so, and its place is given to the next.
pub(super) struct Flight {
    remote: Remote,
    limits: Arc<ServerLimits>,
    counted: Counted,
    left: HashSet<Digest>,
}

impl Flight {
    /// Hands out what has arrived by other ways meanwhile; what is left is to be fetched.
    fn spare(&mut self, digests: Vec<Digest>) -> Vec<Digest> {
        let mut left = Vec::with_capacity(digests.len());
        for digest in digests {
            match self.remote.shared.store.pin(&digest) {
                Some(pin) => {
                    self.remote.shared.fetches.counts.spared_blobs.fetch_add(1, Ordering::Relaxed);
                    self.hand_out(&Fetched { digest, outcome: Ok(pin) });
                }
                None => left.push(digest),
            }
        }
        left
    }

    /// Tells everyone who waits for it.
    pub(super) fn deliver(&mut self, fetched: &Fetched) {
        let shared = &self.remote.shared;
        match &fetched.outcome {
            Ok(pin) => {
                shared.fetches.counts.fetched_blobs.fetch_add(1, Ordering::Relaxed);
                let size_bytes = pin.digest().size_bytes();
                shared.fetches.counts.fetched_bytes.fetch_add(size_bytes, Ordering::Relaxed);
            }
            Err(FetchError::Missing) => shared.known.forget([&fetched.digest]),
            Err(_) => {}
        }
        self.hand_out(fetched);
    }

    /// The same for a blob that was read alone; one that was given up is out of the queue already.
    pub(super) fn end(&mut self, digest: Digest, fetched: Option<&Fetched>) {
        match fetched {
            Some(fetched) => self.deliver(fetched),
            None => {
                self.left.remove(&digest);
            }
        }
    }

    fn hand_out(&mut self, fetched: &Fetched) {
        if !self.left.remove(&fetched.digest) {
            return;
        }
        let waiters = self.remote.shared.fetches.state.lock().queue.landed(&fetched.digest);
        for waiter in waiters {
            let fetched = Fetched { digest: fetched.digest, outcome: fetched.outcome.clone() };
            // Who left does not want it any more.
            let _ = waiter.sender.unbounded_send(fetched);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let error = self.remote.caller.unavailable(&"the fetch ended without an answer");
        for digest in std::mem::take(&mut self.left) {
            self.left.insert(digest);
            self.hand_out(&failed(digest, error.clone()));
        }
        self.remote.shared.fetches.ended(self.counted);
        self.remote.pump(&self.limits);
    }
}

/// The fate of a blob that could not be had.
pub(super) fn failed(digest: Digest, error: FetchError) -> Fetched {
    Fetched { digest, outcome: Err(error) }
}

/// The fate of a blob that the store was given.
pub(super) fn stored(
    digest: Digest,
    outcome: Result<BlobPin, longshore_cas_store::blob::StoreError>,
) -> Fetched {
    Fetched { digest, outcome: outcome.map_err(|error| FetchError::Store(Arc::new(error))) }
}
