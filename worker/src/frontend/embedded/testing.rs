//! A store for the tests of the services, removed with its folder; a scheduler, and what passes through it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::poll;
use longshore_cas_store::blob::{BlobStore, StoreOptions};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::io::{Clock, Environment, IoPool};
use longshore_cas_store::record::RecordStore;
use longshore_cas_store::root::StoreRoot;
use longshore_proto::{Message, reapi};
use tokio::sync::watch;

use super::action_cache::ActionCache;
use super::operation::Request;
use super::scheduler::Scheduler;
use crate::action::{Assignment, Inline};
use crate::environment::{MachineClock, TokioExecutor};
use crate::frontend::WorkSource as _;

/// What the store may take: room for every test.
const LIMIT_BYTES: u64 = 64 << 20;

pub(super) struct Fixture {
    pub(super) store: Arc<BlobStore>,
    pub(super) records: Arc<RecordStore>,
    pub(super) environment: Environment,
    _root: StoreRoot,
    _folder: tempfile::TempDir,
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self::with_clock(Arc::new(MachineClock))
    }

    pub(super) fn with_clock(clock: Arc<dyn Clock>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = StoreRoot::claim(&folder.path().join("root")).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let environment = Environment {
            io: IoPool::new(Arc::new(pool)),
            executor: Arc::new(TokioExecutor::current()),
            clock,
        };
        let options = StoreOptions { size_bytes_max: LIMIT_BYTES };
        let (store, _) = BlobStore::open(&root, options, environment.clone()).unwrap();
        let records = Arc::new(RecordStore::new(store.clone()));
        Self { store, records, environment, _root: root, _folder: folder }
    }

    pub(super) async fn put(&self, data: &[u8]) -> Digest {
        let digest = DigestFunction::Sha256.digest(data);
        self.store.put(digest, Bytes::copy_from_slice(data)).await.unwrap();
        digest
    }

    pub(super) async fn put_message(&self, message: &impl Message) -> Digest {
        self.put(&message.encode_to_vec()).await
    }
}

/// A scheduler whose worker is the test.
pub(super) struct Bench {
    pub(super) fixture: Fixture,
    pub(super) cache: Arc<ActionCache>,
    pub(super) clock: Arc<ManualClock>,
    pub(super) scheduler: Arc<Scheduler>,
}

impl Bench {
    pub(super) fn new() -> Self {
        let fixture = Fixture::new();
        let cache = Arc::new(ActionCache::new(fixture.store.clone(), fixture.records.clone()));
        let clock = Arc::new(ManualClock::default());
        let scheduler = Scheduler::new(cache.clone(), clock.clone());
        Self { fixture, cache, clock, scheduler }
    }

    pub(super) async fn take(&self) -> Assignment {
        self.scheduler.next().await.unwrap()
    }

    pub(super) async fn is_idle(&self) -> bool {
        poll!(self.scheduler.next()).is_pending()
    }

    /// With a result that is kept.
    pub(super) async fn complete_well(&self, assignment: &Assignment) {
        let result = Some(reapi::ActionResult::default());
        let response = reapi::ExecuteResponse { result, ..Default::default() };
        self.scheduler.complete(assignment.operation.clone(), response).await;
    }
}

/// The digest of an action that there need not be.
pub(super) fn digest(name: &str) -> Digest {
    DigestFunction::Sha256.digest(name.as_bytes())
}

/// A request for an action that there need not be.
pub(super) fn request(name: &str) -> Request {
    Request {
        instance: String::new(),
        action_digest: digest(name),
        do_not_cache: false,
        priority: 0,
        inline: Inline::default(),
        metadata: reapi::RequestMetadata::default(),
    }
}

/// Time that passes when it is told to.
#[derive(Default)]
pub(super) struct ManualClock {
    elapsed: watch::Sender<Duration>,
}

impl ManualClock {
    pub(super) fn advance(&self, by: Duration) {
        self.elapsed.send_modify(|elapsed| *elapsed += by);
    }

    /// Completes when somebody sleeps.
    pub(super) async fn has_sleeper(&self) {
        while self.elapsed.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
    }

    /// Completes when everybody who slept is awake.
    pub(super) async fn has_no_sleeper(&self) {
        while self.elapsed.receiver_count() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + *self.elapsed.borrow()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let mut elapsed = self.elapsed.subscribe();
        let until = *elapsed.borrow() + duration;
        Box::pin(async move {
            // The clock outlives everybody who sleeps.
            let _ = elapsed.wait_for(|elapsed| *elapsed >= until).await;
        })
    }
}
