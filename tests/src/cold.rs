//! A store, a directory cache and a client of a remote CAS, in a folder that goes away: a worker's cold path.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use longshore_cas_store::blob::{BlobPin, BlobStore, StoreOptions};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::io::{Clock, Environment, IoPool};
use longshore_cas_store::reap::Reaper;
use longshore_cas_store::root::StoreRoot;
use longshore_cas_store::source::{BlobSource, FetchError};
use longshore_cas_store::tree::TreeLimits;
use longshore_cas_store::tree_cache::{
    DirectoryCache, DirectoryCacheOptions, DirectoryCacheParts, TreeError, TreePin,
};
use longshore_worker::environment::{MachineClock, TokioExecutor};
use longshore_worker::remote::{Remote, RemoteOptions};
use tempfile::TempDir;

/// A clock whose sleeps take no time: it is set forward instead.
#[derive(Debug)]
pub struct HastyClock {
    state: Mutex<(SystemTime, Vec<Duration>)>,
}

impl HastyClock {
    fn new() -> Self {
        Self { state: Mutex::new((SystemTime::UNIX_EPOCH, Vec::new())) }
    }

    /// Every sleep so far.
    pub fn sleeps(&self) -> Vec<Duration> {
        self.state.lock().expect("not poisoned").1.clone()
    }

    /// Sets it forward.
    pub fn advance(&self, by: Duration) {
        self.state.lock().expect("not poisoned").0 += by;
    }
}

impl Clock for HastyClock {
    fn now(&self) -> SystemTime {
        self.state.lock().expect("not poisoned").0
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let mut state = self.state.lock().expect("not poisoned");
        state.0 += duration;
        state.1.push(duration);
        // Others get their turn, as they would.
        Box::pin(tokio::task::yield_now())
    }
}

/// A worker's store in front of a remote CAS.
#[derive(Debug)]
pub struct ColdWorker {
    /// The client.
    pub remote: Remote,
    /// The store.
    pub store: Arc<BlobStore>,
    /// The directory cache.
    pub cache: Arc<DirectoryCache>,
    /// Its clock, if it is not the machine's.
    pub clock: Arc<HastyClock>,
    environment: Environment,
    reaper: Arc<Reaper>,
    _root: StoreRoot,
    _folder: TempDir,
}

impl ColdWorker {
    /// A worker whose clock is in a hurry.
    pub async fn hasty(options: &RemoteOptions) -> Result<Self> {
        let clock = Arc::new(HastyClock::new());
        Self::open(options, &std::env::temp_dir(), clock.clone(), clock).await
    }

    /// A worker on the machine's clock, with its folder below `parent`.
    pub async fn real(options: &RemoteOptions, parent: &Path) -> Result<Self> {
        Self::open(options, parent, Arc::new(MachineClock), Arc::new(HastyClock::new())).await
    }

    async fn open(
        options: &RemoteOptions,
        parent: &Path,
        clock: Arc<dyn Clock>,
        hasty: Arc<HastyClock>,
    ) -> Result<Self> {
        let folder = tempfile::tempdir_in(parent)?;
        let io = IoPool::new(Arc::new(rayon::ThreadPoolBuilder::new().build()?));
        let environment = Environment { io, executor: Arc::new(TokioExecutor::current()), clock };
        let root = StoreRoot::claim(&folder.path().join("root"))?;
        let store_options = StoreOptions { size_bytes_max: 1 << 40 };
        let (store, _) = BlobStore::open(&root, store_options, environment.clone())?;
        let reaper = Reaper::open(&root, environment.clone())?;
        let remote = Remote::new(options, store.clone(), environment.clone())?;
        let parts = DirectoryCacheParts { store: store.clone(), reaper: reaper.clone() };
        let limits = TreeLimits::default();
        let options = DirectoryCacheOptions { entries_max: 100, size_bytes_max: u64::MAX, limits };
        let cache = DirectoryCache::open(&root, parts, options, environment.clone()).await?;
        Ok(Self { remote, store, cache, clock: hasty, environment, reaper, _root: root, _folder: folder })
    }

    /// A client of another server for the same store.
    pub fn another(&self, options: &RemoteOptions) -> Result<Remote> {
        Ok(Remote::new(options, self.store.clone(), self.environment.clone())?)
    }

    /// A tree, of the client's blobs.
    pub async fn get(&self, root: Digest) -> Result<TreePin, TreeError> {
        let source: Arc<dyn BlobSource> = Arc::new(self.remote.clone());
        self.cache.get(root, &source).await
    }

    /// Fetches blobs; the outcome of each, in the order of `wanted`.
    pub async fn fetch(&self, wanted: &[Digest]) -> Vec<Result<BlobPin, FetchError>> {
        let mut stream = self.remote.fetch(wanted.to_vec(), self.store.clone());
        let mut outcomes = HashMap::new();
        while let Some(fetched) = stream.next().await {
            assert!(outcomes.insert(fetched.digest, fetched.outcome).is_none(), "a fate is told once");
        }
        wanted.iter().map(|digest| outcomes.remove(digest).expect("every fate is told")).collect()
    }

    /// Fetches one blob.
    pub async fn fetch_one(&self, digest: Digest) -> Result<BlobPin, FetchError> {
        self.fetch(&[digest]).await.pop().expect("one fate")
    }

    /// Adds a blob to the store.
    pub async fn put(&self, data: impl Into<Bytes>) -> Result<BlobPin> {
        let data = data.into();
        let digest = DigestFunction::Sha256.digest(&data);
        Ok(self.store.put(digest, data).await?)
    }

    /// The bytes of a blob that is in the store.
    pub async fn read(&self, digest: &Digest) -> Result<Bytes> {
        let pin = self.store.pin(digest).with_context(|| format!("{digest} is not in the store"))?;
        Ok(self.store.read(&pin, 0..digest.size_bytes()).await?)
    }

    /// Waits until nothing is being removed.
    pub async fn settled(&self) {
        self.reaper.settled().await;
    }
}
