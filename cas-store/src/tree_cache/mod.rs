//! The directory cache: input trees that are ready on the disk, built once, shared, pinned, evicted.

use std::path::Path;
use std::sync::Arc;

use crate::blob::{BlobStore, StoreError};
use crate::digest::Digest;
use crate::io::Environment;
use crate::root::StoreRoot;
use crate::source::BlobSource;
use crate::tree::{DirectoryTree, MalformedTree, TreeLimits};

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
#[derive(Debug)]
pub struct DirectoryCache {
    _private: (),
}

/// A ready tree that is kept from eviction while this lives.
#[derive(Clone, Debug)]
pub struct TreePin {
    tree: DirectoryTree,
}

impl TreePin {
    /// The plan of the tree.
    pub fn tree(&self) -> &DirectoryTree {
        &self.tree
    }

    /// Where the tree stands: an absolute path. Nobody may write there.
    pub fn path(&self) -> &Path {
        todo!()
    }

    /// The sum of the sizes of its files by their digests.
    pub fn size_bytes(&self) -> u64 {
        self.tree.totals.size_bytes
    }
}

impl DirectoryCache {
    /// Opens the cache in `root`, adopting the trees that the last owner published.
    pub async fn open(
        root: &StoreRoot,
        store: Arc<BlobStore>,
        source: Arc<dyn BlobSource>,
        options: DirectoryCacheOptions,
        environment: Environment,
    ) -> Result<Arc<Self>, StoreError> {
        todo!("{root:?} {store:?} {options:?} {environment:?} {}", Arc::strong_count(&source))
    }

    /// The tree with that root, built if need be, pinned.
    pub async fn get(self: &Arc<Self>, root: Digest) -> Result<TreePin, TreeError> {
        todo!("{root}")
    }

    /// Figures.
    pub fn stats(&self) -> DirectoryCacheStats {
        todo!()
    }
}
