//! The remote CAS as the store sees it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::BoxStream;

use crate::blob::{BlobPin, BlobStore};
use crate::digest::Digest;

/// Where blobs come from that are not here.
///
/// Invariants that every implementation keeps:
/// 1. every wanted digest is yielded exactly once, in any order, as soon as its fate is known;
/// 2. content reaches the store through its ingest, so that a wrong byte is never stored;
/// 3. dropping the stream stops the fetch; what was complete by then stays in the store.
pub trait BlobSource: Send + Sync + 'static {
    /// Fetches `wanted`, which are distinct, into `store`.
    fn fetch(&self, wanted: Vec<Digest>, store: Arc<BlobStore>) -> BoxStream<'static, Fetched>;

    /// Fetches into `store` what one question brings of the `Directory` messages below `root`, itself included.
    ///
    /// A help for a tree that is not here: what it does not yield, for whatever reason, is asked for by
    /// [`BlobSource::fetch`], level by level. A source that has no such question yields nothing.
    fn fetch_tree(&self, _root: Digest, _store: Arc<BlobStore>) -> BoxStream<'static, Fetched> {
        Box::pin(futures::stream::empty())
    }

    /// Which CASes it reaches: sources of one scope have the same blobs.
    fn scope(&self) -> Scope;
}

/// The CASes that a [`BlobSource`] reaches, whatever the order and whoever it says that it asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope(BTreeSet<u64>);

impl Scope {
    /// One CAS, which is in no other scope but those that come of this one.
    pub fn of_new_cas() -> Self {
        static CASES: AtomicU64 = AtomicU64::new(0);
        Self(BTreeSet::from([CASES.fetch_add(1, Ordering::Relaxed)]))
    }
}

/// All of what those reach.
impl FromIterator<Scope> for Scope {
    fn from_iter<I: IntoIterator<Item = Self>>(scopes: I) -> Self {
        Self(scopes.into_iter().flat_map(|scope| scope.0).collect())
    }
}

/// The fate of one wanted blob.
#[derive(Debug)]
pub struct Fetched {
    /// Which blob.
    pub digest: Digest,
    /// The blob, kept from eviction, or why it is not here.
    pub outcome: Result<BlobPin, FetchError>,
}

/// Why a blob could not be fetched.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody has it: the client's error (REAPI, `MISSING`).
    #[error("blob is missing")]
    Missing,
    /// The remote could not be reached or answered with a fault of its own; a retry can help.
    #[error("{origin} is unavailable: {reason}")]
    Unavailable {
        /// Who did not answer.
        origin: String,
        /// What happened.
        reason: String,
    },
    /// The remote sent other bytes than the digest names.
    #[error("{origin} sent wrong content: {reason}")]
    Corrupt {
        /// Who sent it.
        origin: String,
        /// What differs.
        reason: String,
    },
    /// The store could not take it.
    #[error("cannot store blob: {0}")]
    Store(Arc<crate::blob::StoreError>),
}

/// A source that has nothing: the store is the CAS (standalone mode).
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSource;

impl BlobSource for NoSource {
    fn fetch(&self, wanted: Vec<Digest>, _store: Arc<BlobStore>) -> BoxStream<'static, Fetched> {
        let fates = wanted.into_iter().map(|digest| Fetched { digest, outcome: Err(FetchError::Missing) });
        Box::pin(futures::stream::iter(fates))
    }

    fn scope(&self) -> Scope {
        Scope::default()
    }
}
