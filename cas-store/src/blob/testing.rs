//! A store in a folder of its own, for the tests of this crate.

mod faults;

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use faults::{Faults, FaultyDir};

use super::{BlobPin, BlobStore, Recovered, StoreOptions};
use crate::digest::{Digest, DigestFunction};
use crate::io::{Clock, Environment, Executor, IoPool};
use crate::root::StoreRoot;

/// Enough for tests that do not care.
const LIMIT_BYTES: u64 = 1 << 30;

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

/// A clock that stands still until it is told to go on.
#[derive(Default)]
pub(crate) struct ManualClock {
    sleepers: Mutex<Vec<oneshot::Sender<()>>>,
    slept: tokio::sync::Notify,
}

impl ManualClock {
    /// Waits until somebody sleeps, and wakes everybody.
    pub(crate) async fn wake_sleepers(&self) {
        self.slept.notified().await;
        for sleeper in self.sleepers.lock().drain(..) {
            let _ = sleeper.send(());
        }
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn sleep(&self, _duration: Duration) -> BoxFuture<'static, ()> {
        let (sender, receiver) = oneshot::channel();
        self.sleepers.lock().push(sender);
        self.slept.notify_one();
        Box::pin(async { receiver.await.unwrap_or(()) })
    }
}

/// The SHA-256 digest of `data`.
pub(crate) fn sha(data: &[u8]) -> Digest {
    DigestFunction::Sha256.digest(data)
}

/// Bytes that look like no others.
pub(crate) fn noise(size_bytes: usize, seed: u64) -> Bytes {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut bytes = vec![0; size_bytes];
    hasher.finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// An environment of tokio and a pool of four threads.
pub(crate) fn environment() -> Environment {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
    Environment { io: IoPool::new(Arc::new(pool)), executor: Arc::new(Tokio), clock: Arc::new(Tokio) }
}

/// A store that is removed with its folder.
pub(crate) struct Fixture {
    pub(crate) limit_bytes: u64,
    pub(crate) recovered: Recovered,
    pub(crate) environment: Environment,
    pub(crate) faults: Arc<Faults>,
    open: Option<(StoreRoot, Arc<BlobStore>)>,
    folder: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with_limit(LIMIT_BYTES)
    }

    pub(crate) fn with_limit(limit_bytes: u64) -> Self {
        Self::with_environment(limit_bytes, environment())
    }

    pub(crate) fn with_environment(limit_bytes: u64, environment: Environment) -> Self {
        let mut fixture = Self {
            limit_bytes,
            recovered: Recovered::default(),
            environment,
            faults: Arc::default(),
            open: None,
            folder: tempfile::tempdir().unwrap(),
        };
        fixture.restart();
        fixture
    }

    /// Ends the owner of the store as a kill would, and starts the next one.
    pub(crate) fn restart(&mut self) {
        self.open = None;
        let root = StoreRoot::claim(&self.path("")).unwrap();
        let options = StoreOptions { size_bytes_max: self.limit_bytes };
        let dir = FaultyDir::new(root.path(), self.faults.clone());
        let (store, recovered) =
            BlobStore::open_in(&dir, root.trust(), options, self.environment.clone()).unwrap();
        self.recovered = recovered;
        self.open = Some((root, store));
    }

    /// Like [`Fixture::restart`], but the machine went down in between.
    pub(crate) fn restart_machine(&mut self) {
        std::fs::write(self.path("boot"), "another boot").unwrap();
        self.restart();
    }

    pub(crate) fn store(&self) -> Arc<BlobStore> {
        self.open.as_ref().expect("open but while it restarts").1.clone()
    }

    pub(crate) fn root(&self) -> &StoreRoot {
        &self.open.as_ref().expect("open but while it restarts").0
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("root").join(name)
    }

    /// The file of a blob (`blobs`) or of its variant (`executables`).
    pub(crate) fn file(&self, folder: &str, digest: &Digest) -> PathBuf {
        let hash = digest.hash_hex();
        let name = format!("{hash}-{}", digest.size_bytes());
        self.path(folder).join(digest.function().name()).join(&hash[..2]).join(name)
    }

    /// A folder on the store's file system.
    pub(crate) fn work(&self) -> PathBuf {
        self.path("work")
    }

    pub(crate) async fn put(&self, data: impl Into<Bytes>) -> BlobPin {
        let data = data.into();
        self.store().put(sha(&data), data).await.unwrap()
    }

    /// Waits until nothing is being written or unlinked, and checks that the ledger knows what is on the disk.
    pub(crate) fn settle(&self) {
        self.store().space.wait_until_quiet();
        assert_eq!(self.store().stats().size_bytes, self.disk_bytes(), "the ledger and the disk agree");
        assert_eq!(std::fs::read_dir(self.path("scratch")).unwrap().count(), 0, "scratch is empty");
    }

    /// What all files of the store take on the disk, each inode once.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.inodes().iter().map(|(_, bytes)| bytes).sum()
    }

    /// The inodes of the store and what they take.
    pub(crate) fn inodes(&self) -> HashSet<(u64, u64)> {
        let folders = ["blobs", "executables", "records", "scratch"];
        folders.iter().flat_map(|folder| inodes(&self.path(folder))).collect()
    }
}

fn inodes(folder: &Path) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => found.extend(inodes(&path)),
            Ok(metadata) => found.push((metadata.ino(), metadata.blocks() * 512)),
            // Evicted meanwhile.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
        }
    }
    found
}
