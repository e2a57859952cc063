//! A store and a cache in a folder of their own, a source whose timing the test decides, and trees to ask for.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt as _};
use longshore_cas_store::blob::{BlobStore, StoreOptions};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::io::{Clock, Environment, Executor, IoPool};
use longshore_cas_store::reap::Reaper;
use longshore_cas_store::root::StoreRoot;
use longshore_cas_store::source::{BlobSource, FetchError, Fetched, NoSource, Scope};
use longshore_cas_store::tree::TreeLimits;
use longshore_cas_store::tree_cache::{
    DirectoryCache, DirectoryCacheOptions, DirectoryCacheParts, TreeError, TreePin,
};
use longshore_proto::{Message as _, reapi};
use tokio::sync::Semaphore;

/// SHA-256, as every client speaks it.
pub(crate) const FUNCTION: DigestFunction = DigestFunction::Sha256;

struct Tokio;

impl Executor for Tokio {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }
}

impl Clock for Tokio {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// Threads, tasks and time for a test.
pub(crate) fn environment() -> Environment {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
    Environment { io: IoPool::new(Arc::new(pool)), executor: Arc::new(Tokio), clock: Arc::new(Tokio) }
}

/// How much the cache may keep.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    pub(crate) entries_max: usize,
    pub(crate) store_bytes_max: u64,
}

impl Default for Room {
    fn default() -> Self {
        Self { entries_max: 1_000, store_bytes_max: 1 << 30 }
    }
}

/// A cache over a real folder.
pub(crate) struct Kit {
    pub(crate) cache: Arc<DirectoryCache>,
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) store: Arc<BlobStore>,
    pub(crate) root: StoreRoot,
    /// Where blobs come from, unless a test says otherwise.
    pub(crate) source: Arc<dyn BlobSource>,
}

impl Kit {
    /// Opens everything below `path`.
    pub(crate) async fn open(path: &Path, source: Arc<dyn BlobSource>, limits: Room) -> Self {
        Self::open_in(path, source, limits, environment()).await
    }

    /// Opens everything below `path`, with threads and tasks of the test's own.
    pub(crate) async fn open_in(
        path: &Path,
        source: Arc<dyn BlobSource>,
        limits: Room,
        environment: Environment,
    ) -> Self {
        let root = StoreRoot::claim(path).unwrap();
        let options = StoreOptions { size_bytes_max: limits.store_bytes_max };
        let (store, _) = BlobStore::open(&root, options, environment.clone()).unwrap();
        let reaper = Reaper::open(&root, environment.clone()).unwrap();
        let parts = DirectoryCacheParts { store: store.clone(), reaper: reaper.clone() };
        let options = DirectoryCacheOptions {
            entries_max: limits.entries_max,
            size_bytes_max: u64::MAX,
            limits: TreeLimits::default(),
        };
        let cache = DirectoryCache::open(&root, parts, options, environment).await.unwrap();
        Self { cache, reaper, store, root, source }
    }

    /// Opens with everything in the store that the tests put there, and no other source.
    pub(crate) async fn standalone(path: &Path) -> Self {
        Self::open(path, Arc::new(NoSource), Room::default()).await
    }

    /// A tree, of the blobs of [`Kit::source`].
    pub(crate) async fn get(&self, root: Digest) -> Result<TreePin, TreeError> {
        self.cache.get(root, &self.source).await
    }

    /// Stores all blobs of a tree.
    pub(crate) async fn upload(&self, tree: &Tree) {
        for (digest, data) in &tree.blobs {
            self.store.put(*digest, data.clone()).await.unwrap();
        }
    }

    /// What lies in a folder of the root.
    pub(crate) fn names_in(&self, folder: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.root.path().join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Asserts that nothing is under construction or half removed.
    pub(crate) async fn assert_tidy(&self) {
        self.reaper.settled().await;
        assert_eq!(self.names_in("scratch"), Vec::<PathBuf>::new());
        assert_eq!(self.names_in("trash"), Vec::<PathBuf>::new());
        assert_eq!(self.names_in("trees").len() as u64, self.cache.stats().entries);
    }
}

/// A tree as its messages and blobs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    pub(crate) root: Option<Digest>,
    pub(crate) blobs: HashMap<Digest, Bytes>,
}

impl Tree {
    /// The digest of the root.
    pub(crate) fn root(&self) -> Digest {
        self.root.unwrap()
    }

    /// Adds a blob.
    pub(crate) fn blob(&mut self, data: impl Into<Bytes>) -> Digest {
        let data = data.into();
        let digest = FUNCTION.digest(&data);
        self.blobs.insert(digest, data);
        digest
    }

    /// Adds a message; the last one is the root.
    pub(crate) fn directory(&mut self, directory: &reapi::Directory) -> Digest {
        let digest = self.blob(directory.encode_to_vec());
        self.root = Some(digest);
        digest
    }

    /// The messages, of a tree whose files are no messages.
    pub(crate) fn messages(&self) -> impl Iterator<Item = (Digest, Bytes)> {
        let is_message = |data: &Bytes| reapi::Directory::decode(data.clone()).is_ok();
        let blobs = self.blobs.iter().map(|(digest, data)| (*digest, data.clone()));
        blobs.filter(move |(_, data)| is_message(data))
    }

    /// A tree of `directories` with `files` distinct files each.
    pub(crate) fn wide(seed: &str, directories: usize, files: usize) -> Self {
        let mut tree = Self::default();
        let mut root = reapi::Directory::default();
        for number in 0..directories {
            let mut directory = reapi::Directory::default();
            for file in 0..files {
                let digest = tree.blob(format!("{seed} {number} {file}"));
                directory.files.push(self::file(&format!("file-{file}"), digest, file % 5 == 0));
            }
            let digest = tree.directory(&directory);
            root.directories.push(child(&format!("directory-{number}"), digest));
        }
        tree.directory(&root);
        tree
    }

    /// Asserts that every byte of [`Tree::wide`] is right.
    pub(crate) fn assert_wide(path: &Path, seed: &str, directories: usize, files: usize) {
        for number in 0..directories {
            for file in 0..files {
                let path = path.join(format!("directory-{number}/file-{file}"));
                assert_eq!(std::fs::read_to_string(path).unwrap(), format!("{seed} {number} {file}"));
            }
        }
    }
}

/// A `FileNode`.
pub(crate) fn file(name: &str, digest: Digest, is_executable: bool) -> reapi::FileNode {
    let digest = Some(digest.to_wire());
    reapi::FileNode { name: name.to_owned(), digest, is_executable, node_properties: None }
}

/// A `DirectoryNode`.
pub(crate) fn child(name: &str, digest: Digest) -> reapi::DirectoryNode {
    reapi::DirectoryNode { name: name.to_owned(), digest: Some(digest.to_wire()) }
}

/// Lets other tasks run until `condition` holds.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

/// Permits that never run out.
pub(crate) const OPEN: usize = usize::MAX >> 4;

/// A source that answers only when the test says so.
pub(crate) struct GatedSource {
    pub(crate) blobs: Mutex<HashMap<Digest, Bytes>>,
    /// One permit lets one blob through.
    pub(crate) gate: Arc<Semaphore>,
    fetches: AtomicUsize,
    /// The seed of the outcomes; zero for no faults.
    pub(crate) faults: AtomicU64,
    scope: Scope,
}

impl GatedSource {
    pub(crate) fn new(tree: &Tree, permits: usize) -> Arc<Self> {
        let blobs = Mutex::new(tree.blobs.clone());
        let gate = Arc::new(Semaphore::new(permits));
        let (fetches, faults) = (AtomicUsize::new(0), AtomicU64::new(0));
        Arc::new(Self { blobs, gate, fetches, faults, scope: Scope::of_new_cas() })
    }

    /// Whether the next blob fails, by a generator that one word describes.
    fn fails(&self) -> bool {
        let next =
            |seed: u64| seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(seed != 0));
        let seed = self.faults.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |seed| Some(next(seed)));
        seed.is_ok_and(|seed| seed != 0 && (seed >> 40) % 20 == 0)
    }

    /// Blobs asked for.
    pub(crate) fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }
}

impl BlobSource for GatedSource {
    fn fetch(&self, wanted: Vec<Digest>, store: Arc<BlobStore>) -> BoxStream<'static, Fetched> {
        self.fetches.fetch_add(wanted.len(), Ordering::SeqCst);
        let blobs = self.blobs.lock().unwrap();
        let look_up = |digest| (digest, blobs.get(&digest).cloned(), self.fails());
        let wanted: Vec<_> = wanted.into_iter().map(look_up).collect();
        let gate = self.gate.clone();
        let fetched = futures::stream::iter(wanted).then(move |(digest, data, fails)| {
            let (gate, store) = (gate.clone(), store.clone());
            async move {
                gate.acquire_owned().await.unwrap().forget();
                let outcome = match data {
                    _ if fails => Err(FetchError::Unavailable {
                        origin: "the test".to_owned(),
                        reason: "it says so".to_owned(),
                    }),
                    None => Err(FetchError::Missing),
                    Some(data) => {
                        store.put(digest, data).await.map_err(|error| FetchError::Store(Arc::new(error)))
                    }
                };
                Fetched { digest, outcome }
            }
        });
        Box::pin(fetched)
    }

    fn scope(&self) -> Scope {
        self.scope.clone()
    }
}
