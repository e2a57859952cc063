//! The client of a CAS, an action cache and an execution service that belong to someone else: the cold path.
//!
//! The rooms: [`call`] reaches the server, over a [`crate::connect::Link`], and says [`on_behalf`] of whom; [`instances`] are
//! those below the configured one; [`retry`] says what is tried again, [`limits`] what
//! the server can do, [`names`] how its blobs are called. Downloads go through one [`queue`] for the whole worker, whose
//! requests in flight are bounded by a [`window`]; [`fetch`] takes from it, [`batch`] and [`stream`] do the reading,
//! [`frames`] unpack what
//! came compressed, [`tree`] asks for whole trees. [`upload`] and [`write`] are the other direction, with a memory of what is [`known`]
//! to be there. [`prefetch`] fetches what no action has asked for yet; [`action_cache`] gets and updates results, and [`execute`] has actions
//! executed, for those who measure a server.
//!
//! Invariants: what came is verified by the store before anybody sees it; a blob that many want is fetched once; nothing
//! is sent that the server is known to have; what cannot be helped by a retry is not retried.
//!
//! The module does not know actions, schedulers or where a tree stands on the disk.
//!
//! *Locking*: the queue, the window and the memory each have a lock of their own, held for changes in memory.

mod action_cache;
mod any;
mod batch;
mod call;
mod error;
mod execute;
mod fetch;
mod frames;
mod instances;
mod known;
mod limits;
mod names;
mod on_behalf;
mod options;
mod prefetch;
mod queue;
mod retry;
mod stream;
mod tree;
mod upload;
mod window;
mod write;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::Digest;
use longshore_cas_store::io::Environment;
use longshore_cas_store::source::Scope;
use longshore_proto::reapi;
use tokio::sync::Semaphore;

pub use any::AnySource;
pub use error::RemoteError;
pub use instances::Instances;
pub use known::KnownStats;
pub use on_behalf::TraceContext;
pub use options::RemoteOptions;
pub use prefetch::{Prefetched, Prefetcher, SpeculationLimits};

use call::Caller;
use fetch::Fetches;
use known::Known;
use queue::Urgency;

/// A CAS and an action cache elsewhere, as one store of this worker uses them. Clones are cheap, and share it.
#[derive(Clone)]
pub struct Remote {
    shared: Arc<Shared>,
    caller: Caller,
    urgency: Urgency,
}

/// What all clones share.
struct Shared {
    options: RemoteOptions,
    store: Arc<BlobStore>,
    environment: Environment,
    fetches: Fetches,
    known: Known,
    /// Uploads in flight, of all actions.
    uploads: Semaphore,
    executions: execute::Counts,
    scope: Scope,
}

/// Figures for the status line and for tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoteStats {
    /// Blobs that were fetched and stored.
    pub fetched_blobs: u64,
    /// Their bytes.
    pub fetched_bytes: u64,
    /// Blobs that had arrived by other ways when their turn came.
    pub spared_blobs: u64,
    /// Wants that joined or lifted one in the queue.
    pub joined_wants: u64,
    /// Attempts that were repeated.
    pub retries: u64,
    /// Executions that were joined again after their stream had broken off.
    pub rejoined_executions: u64,
    /// Executions that were begun anew, since the server had forgotten them.
    pub begun_anew_executions: u64,
    /// The memory of what the server has.
    pub known: KnownStats,
}

impl Remote {
    /// A client of the server that `options` name, for `store`. Connects when it is first used.
    pub fn new(
        options: &RemoteOptions,
        store: Arc<BlobStore>,
        environment: Environment,
    ) -> Result<Self, RemoteError> {
        let caller = Caller::open(options, environment.clock.clone())?;
        Ok(Self::with(caller, options.clone(), store, environment))
    }

    fn with(caller: Caller, options: RemoteOptions, store: Arc<BlobStore>, environment: Environment) -> Self {
        let fetches = Fetches::new(options.requests_in_flight_max);
        let known = Known::new(options.known_age_max);
        let shared = Arc::new(Shared {
            options,
            store,
            environment,
            fetches,
            known,
            uploads: Semaphore::new(upload::UPLOADS_IN_FLIGHT_MAX),
            executions: execute::Counts::default(),
            scope: Scope::of_new_cas(),
        });
        Self { shared, caller, urgency: Urgency::Urgent }
    }

    /// A client of the instance called `suffix` below this one: another CAS, over the same connections.
    fn below(&self, suffix: &str) -> Self {
        let Shared { options, store, environment, .. } = &*self.shared;
        Self::with(self.caller.below(suffix), options.clone(), store.clone(), environment.clone())
    }

    /// The same client, whose calls say that they are made for the request with that metadata, where there is one, and in
    /// that trace.
    #[must_use]
    pub fn on_behalf_of(&self, metadata: &reapi::RequestMetadata, trace: &TraceContext) -> Self {
        let whom = self.caller.whom().request(metadata, trace);
        Self { caller: self.caller.on_behalf_of(whom), ..self.clone() }
    }

    /// The same client, whose downloads give way to all others.
    fn speculative(&self) -> Self {
        Self { urgency: Urgency::Speculative, ..self.clone() }
    }

    /// Asks what the server can do, unless that is known: whether it is there at all.
    pub async fn reach(&self) -> Result<(), RemoteError> {
        self.caller.limits().await.map(drop)
    }

    /// Remembers that the server has these.
    fn learn<'d>(&self, digests: impl IntoIterator<Item = &'d Digest>) {
        self.shared.known.learn(digests, self.caller.clock().now(), self.caller.turns());
    }

    /// Takes back what was remembered of the server: it turned out not to have these.
    pub fn forget<'d>(&self, digests: impl IntoIterator<Item = &'d Digest>) {
        self.shared.known.forget(digests);
    }

    /// Figures.
    pub fn stats(&self) -> RemoteStats {
        RemoteStats {
            retries: self.caller.retries(),
            rejoined_executions: self.shared.executions.rejoined.load(Ordering::Relaxed),
            begun_anew_executions: self.shared.executions.begun_anew.load(Ordering::Relaxed),
            known: self.shared.known.stats(),
            ..self.shared.fetches.stats()
        }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Remote");
        debug.field("origin", &self.caller.origin()).field("stats", &self.stats()).finish_non_exhaustive()
    }
}
