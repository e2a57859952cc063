//! A store, a cache and a materializer in a folder that goes away, and the clock around each contender.

use std::future::Future;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use longshore_cas_store::blob::{BlobStore, StoreOptions};
use longshore_cas_store::digest::Digest;
use longshore_cas_store::dir::OsDir;
use longshore_cas_store::io::{Environment, IoPool};
use longshore_cas_store::reap::Reaper;
use longshore_cas_store::root::StoreRoot;
use longshore_cas_store::source::{BlobSource, NoSource};
use longshore_cas_store::tree::TreeLimits;
use longshore_cas_store::tree_cache::{
    DirectoryCache, DirectoryCacheOptions, DirectoryCacheParts, TreeError, TreePin,
};
use longshore_worker::environment::{MachineClock, TokioExecutor};
use longshore_worker::materialize::HardlinkMaterializer;
use tokio::runtime::Handle;

use crate::bare::{Plan, Source};
use crate::rivals;
use crate::shape::Shape;

/// Blobs that are stored at once.
const UPLOAD_BATCH: usize = 1_000;

/// Everything that is measured, in one folder.
pub(crate) struct Bench {
    pub(crate) path: PathBuf,
    pub(crate) cache: Arc<DirectoryCache>,
    pub(crate) materializer: HardlinkMaterializer,
    io: IoPool,
    store: Arc<BlobStore>,
    reaper: Arc<Reaper>,
    rival_dir: Arc<OsDir>,
    rivals: AtomicUsize,
    root: StoreRoot,
    /// As many blocking threads as the pool has.
    pub(crate) few_threads: Handle,
    environment: Environment,
    _folder: tempfile::TempDir,
}

impl Bench {
    pub(crate) async fn open(parent: &Path, threads: usize, few_threads: Handle) -> Result<Self> {
        let folder = tempfile::tempdir_in(parent)?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let io = IoPool::new(Arc::new(pool));
        let environment = Environment {
            io: io.clone(),
            executor: Arc::new(TokioExecutor::current()),
            clock: Arc::new(MachineClock),
        };
        let root = StoreRoot::claim(&folder.path().join("root"))?;
        let options = StoreOptions { size_bytes_max: 1 << 40 };
        let (store, _) = BlobStore::open(&root, options, environment.clone())?;
        let reaper = Reaper::open(&root, environment.clone())?;
        let cache = open_cache(&root, &store, &reaper, &environment).await?;
        let materializer = HardlinkMaterializer::new(&root, store.clone(), reaper.clone(), None, io.clone())?;
        let rival_path = root.path().join("rivals");
        std::fs::create_dir(&rival_path)?;
        Ok(Self {
            path: root.path().to_owned(),
            cache,
            materializer,
            io,
            store,
            reaper,
            rival_dir: Arc::new(OsDir::open(&rival_path)?),
            rivals: AtomicUsize::new(0),
            root,
            few_threads,
            environment,
            _folder: folder,
        })
    }

    /// A cache that has seen no tree yet. No other one may be at work.
    pub(crate) async fn fresh_cache(&self) -> Result<Arc<DirectoryCache>> {
        open_cache(&self.root, &self.store, &self.reaper, &self.environment).await
    }

    /// Stores all blobs of a tree.
    pub(crate) async fn upload(&self, shape: &Shape) -> Result<Digest> {
        let mut blobs: Vec<(Digest, Bytes)> = Vec::new();
        let root = shape.blobs(&mut |digest, data| blobs.push((digest, data.into())));
        while !blobs.is_empty() {
            let rest = blobs.split_off(UPLOAD_BATCH.min(blobs.len()));
            for outcome in self.store.put_many(std::mem::replace(&mut blobs, rest)).await {
                outcome?;
            }
        }
        Ok(root)
    }

    /// Waits until nothing is being removed or written back.
    pub(crate) async fn settle(&self) -> Result<()> {
        self.reaper.settled().await;
        let folder = std::fs::File::open(self.root.path())?;
        tokio::task::spawn_blocking(move || nix::unistd::syncfs(folder.as_fd())).await??;
        Ok(())
    }

    /// Times baseline (c).
    pub(crate) async fn bare(&self, plan: &Arc<Plan>, source: Source) -> Result<Duration> {
        self.bare_many(plan, source, 1).await
    }

    /// Times baseline (c), several times one after the other.
    pub(crate) async fn bare_many(&self, plan: &Arc<Plan>, source: Source, times: usize) -> Result<Duration> {
        let paths: Vec<_> = (0..times).map(|_| self.rival_path()).collect();
        let (plan, written) = (plan.clone(), paths.clone());
        let write = move || written.iter().try_for_each(|path| plan.write(&source, path));
        let (took, outcome) = timed(self.io.run(write)).await;
        outcome?;
        self.remove(&paths).await?;
        Ok(took)
    }

    /// Times baseline (a) on the threads of `runtime`.
    pub(crate) async fn hops(&self, plan: &Arc<Plan>, runtime: &Handle) -> Result<Duration> {
        let path = self.rival_path();
        let (plan, store, to) = (plan.clone(), self.root.path().to_owned(), path.clone());
        let write = async move { rivals::hops(&plan, &store, &to).await };
        // Inside the future: the clock must start before the task does.
        let (took, outcome) = timed(async { runtime.spawn(write).await }).await;
        outcome??;
        self.remove(&[path]).await?;
        Ok(took)
    }

    /// Times baseline (b).
    pub(crate) async fn copy(&self, from: &Path) -> Result<Duration> {
        let path = self.rival_path();
        let (took, outcome) = timed(rivals::copy(from, &path)).await;
        outcome?;
        self.remove(&[path]).await?;
        Ok(took)
    }

    fn rival_path(&self) -> PathBuf {
        let number = self.rivals.fetch_add(1, Ordering::Relaxed);
        self.root.path().join("rivals").join(number.to_string())
    }

    async fn remove(&self, paths: &[PathBuf]) -> Result<()> {
        for path in paths {
            let name = path.file_name().map(PathBuf::from).unwrap_or_default();
            self.reaper.discard_later(self.rival_dir.clone(), name, || {});
        }
        self.settle().await
    }
}

/// What nobody uses goes at once: every construction builds.
async fn open_cache(
    root: &StoreRoot,
    store: &Arc<BlobStore>,
    reaper: &Arc<Reaper>,
    environment: &Environment,
) -> Result<Arc<DirectoryCache>> {
    let parts = DirectoryCacheParts { store: store.clone(), reaper: reaper.clone() };
    let limits = TreeLimits::default();
    let options = DirectoryCacheOptions { entries_max: 0, size_bytes_max: u64::MAX, limits };
    Ok(DirectoryCache::open(root, parts, options, environment.clone()).await?)
}

/// A tree of blobs that are all here.
pub(crate) async fn get(cache: &DirectoryCache, root: Digest) -> Result<TreePin, TreeError> {
    let nowhere: Arc<dyn BlobSource> = Arc::new(NoSource);
    cache.get(root, &nowhere).await
}

/// Runs something and says how long it took.
pub(crate) async fn timed<T>(work: impl Future<Output = T>) -> (Duration, T) {
    let start = Instant::now();
    let value = work.await;
    (start.elapsed(), value)
}

/// The name of the file system at `path`.
pub(crate) fn file_system(path: &Path) -> Result<String> {
    let path = path.canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?, fields.next()?))
    });
    let mount = mounts.filter(|(place, ..)| path.starts_with(place)).max_by_key(|(place, ..)| place.len());
    Ok(mount.map_or_else(
        || "an unknown file system".to_owned(),
        |(_, kind, options)| format!("{kind} ({options})"),
    ))
}
