//! The directory cache: input trees that are ready on the disk, built once, shared, pinned, evicted.
//!
//! The rooms: [`load`] and [`messages`] turn a digest into a plan, [`farm`] writes a plan out, [`site`] is a tree on the disk that
//! is not ready yet, and [`construct`] takes one through all of that. [`index`] knows which trees are ready and
//! which have to go, [`flight`] who waits for which build; both are pure, and [`cache`] holds them under
//! one lock. [`adopt`] finds the trees again after a restart.
//!
//! Invariants: a tree is at its path, complete, from before anybody gets a pin until after the last pin is gone;
//! what it links to stays in the store as long; one digest has one builder at a time; what a tree holds is given
//! back when its last name is gone from the disk.
//!
//! The module does not know who uses a tree, nor how it becomes an action's input root.

mod adopt;
mod cache;
mod construct;
mod farm;
mod flight;
mod index;
mod load;
mod messages;
mod parts;
mod site;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

pub use farm::write_private;

use crate::blob::{BlobStore, Holding, StoreError};
use crate::digest::Digest;
use crate::io::Environment;
use crate::reap::Reaper;
use crate::root::StoreRoot;
use crate::source::BlobSource;
use crate::tree::{DirectoryTree, MalformedTree, TreeLimits};
use cache::{Counts, IdleTrees, Pinned, Shared};
use index::IdleLimits;
use load::Loader;
use parts::Parts;
use site::Grounds;

/// What the cache works with.
#[derive(Clone)]
pub struct DirectoryCacheParts {
    /// Where blobs are.
    pub store: Arc<BlobStore>,
    /// Removes what is evicted.
    pub reaper: Arc<Reaper>,
}

/// How the cache may behave.
#[derive(Clone, Debug)]
pub struct DirectoryCacheOptions {
    /// Entries that stay when nobody uses them.
    pub entries_max: usize,
    /// The sum of the sizes of entries that stay when nobody uses them, in bytes, by their digests.
    pub size_bytes_max: u64,
    /// How large one tree may be.
    pub limits: TreeLimits,
}

/// Why a tree is not ready. One error is delivered to every caller of the flight.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TreeError {
    /// The client's messages make no tree.
    #[error(transparent)]
    Malformed(#[from] MalformedTree),
    /// Blobs of the tree are nowhere: all that were found missing.
    #[error("{} blobs of input root {root} are missing, {} among them", .missing.len(), .missing.first().map(ToString::to_string).unwrap_or_default())]
    Missing {
        /// The root's digest.
        root: Digest,
        /// Every missing blob, sorted, each once.
        missing: Arc<[Digest]>,
    },
    /// The remote CAS failed; a retry can help.
    #[error("cannot fetch input root {root}: {reason}")]
    Fetch {
        /// The root's digest.
        root: Digest,
        /// The first error.
        reason: crate::source::FetchError,
    },
    /// The disk failed or is full.
    #[error("cannot build input root {root}: {reason}")]
    Store {
        /// The root's digest.
        root: Digest,
        /// The first error.
        reason: StoreError,
    },
    /// The build was lost to a bug: its task ended without a result.
    #[error("construction of input root {root} was aborted")]
    Aborted {
        /// The root's digest.
        root: Digest,
    },
}

/// Figures for the status line and for tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectoryCacheStats {
    /// Builds started since the start.
    pub constructions: u64,
    /// Callers that joined a build under way.
    pub shares: u64,
    /// Callers that found a ready entry.
    pub hits: u64,
    /// Entries evicted since the start.
    pub evictions: u64,
    /// Entries now.
    pub entries: u64,
    /// Entries now pinned.
    pub pinned: u64,
    /// The sum of the entries' sizes, by their digests.
    pub size_bytes: u64,
}

/// The cache.
pub struct DirectoryCache {
    shared: Arc<Shared>,
    _idle: Arc<IdleTrees>,
}

/// A ready tree that is kept from eviction while this lives.
#[derive(Clone)]
pub struct TreePin {
    pinned: Arc<Pinned>,
}

impl TreePin {
    /// The plan of the tree.
    pub fn tree(&self) -> &DirectoryTree {
        &self.pinned.entry.tree
    }

    /// Where the tree stands: an absolute path. Nobody may write there.
    pub fn path(&self) -> &Path {
        &self.pinned.entry.path
    }

    /// The sum of the sizes of its files by their digests.
    pub fn size_bytes(&self) -> u64 {
        self.tree().totals.size_bytes
    }

    /// What the tree holds of the store.
    pub fn holding(&self) -> Holding {
        let store = &self.pinned.shared.loader.store;
        Parts::of(self.tree()).holding(store, self.tree().totals.own_bytes())
    }

    /// Forgets the tree, of which something is missing on the disk: whoever asks for it next gets another one. What is
    /// left of this one is removed when nobody has it pinned any more.
    pub fn lose(&self) {
        tracing::warn!(path = %self.path().display(), "an input tree is damaged and is dropped");
        self.pinned.lose();
    }
}

impl DirectoryCache {
    /// Opens the cache in `root`, adopting the trees that the last owner published.
    ///
    /// `reaper` removes what is evicted; it must have been opened in the same root.
    pub async fn open(
        root: &StoreRoot,
        parts: DirectoryCacheParts,
        options: DirectoryCacheOptions,
        environment: Environment,
    ) -> Result<Arc<Self>, StoreError> {
        let DirectoryCacheParts { store, reaper } = parts;
        let Environment { io, executor, .. } = environment;
        let DirectoryCacheOptions { entries_max, size_bytes_max, limits } = options;
        let loader = Loader { store: store.clone(), io, limits, interner: Arc::default() };
        let shared = Arc::new(Shared {
            loader,
            grounds: Arc::new(Grounds::open(root, reaper)?),
            executor,
            limits: IdleLimits { entries_max, size_bytes_max },
            state: Mutex::default(),
            counts: Counts::default(),
        });
        let idle = Arc::new(IdleTrees(Arc::downgrade(&shared)));
        let weak: Weak<IdleTrees> = Arc::downgrade(&idle);
        store.on_idle(weak);
        adopt::adopt(&shared, root.trust()).await?;
        Ok(Arc::new(Self { shared, _idle: idle }))
    }

    /// The tree with that root, built if need be, pinned; what is not in the store comes from `source`.
    ///
    /// A hit does no I/O. Dropping the future gives up this caller's share of a build; the last share that is given
    /// up cancels it. A build that another one began fetches from that one's source: if it fails where ours may not, it is
    /// tried again with ours.
    pub async fn get(&self, root: Digest, source: &Arc<dyn BlobSource>) -> Result<TreePin, TreeError> {
        self.shared.get(root, source).await
    }

    /// Figures.
    pub fn stats(&self) -> DirectoryCacheStats {
        self.shared.stats()
    }
}

impl fmt::Debug for DirectoryCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectoryCache").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl fmt::Debug for TreePin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TreePin").field(&self.path()).finish()
    }
}
