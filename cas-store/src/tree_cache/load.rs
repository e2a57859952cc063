//! From the digest of a root to a linked tree: what is here of its `Directory` messages is read by one job of the
//! pool ([`super::messages`]), and what is not is fetched, as many at once as are known of.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::ready;

use super::TreeError;
use super::messages::{Interner, Loading};
use super::parts::Parts;
use crate::blob::{BlobPin, BlobStore, StoreError};
use crate::digest::Digest;
use crate::io::IoPool;
use crate::source::{BlobSource, FetchError, Fetched};
use crate::tree::{DirectoryTree, TreeLimits};

/// Loads trees.
#[derive(Clone)]
pub(super) struct Loader {
    pub(super) store: Arc<BlobStore>,
    pub(super) io: IoPool,
    pub(super) limits: TreeLimits,
    pub(super) interner: Arc<Interner>,
}

/// How far a job of the pool came.
enum Progress<T, F> {
    /// All messages were here, and what followed was done.
    Whole(T),
    /// Messages are absent.
    Partial(Box<Loading>, F),
}

impl Loader {
    /// Loads the tree of `root`, what is not here from `source`, collects what it is made of, and goes on with `then` in the
    /// same job of the pool: the way to another thread is a good part of a small construction. Each job holds a clone of
    /// `guard`.
    pub(super) async fn load<T: Send + 'static>(
        &self,
        root: Digest,
        source: &dyn BlobSource,
        guard: impl Clone + Send + 'static,
        mut then: impl FnOnce(DirectoryTree, Parts) -> T + Send + 'static,
    ) -> Result<T, TreeError> {
        let mut loading = Loading::new(root);
        let mut level = vec![(root, 1)];
        // Until a fetched message is read, its blob must not be evicted again.
        let mut pins = Vec::new();
        loop {
            let (loader, guard) = (self.clone(), guard.clone());
            let read = move || {
                loading.read(level, &loader)?;
                if !loading.absent.is_empty() || !loading.missing.is_empty() {
                    return Ok(Progress::Partial(Box::new(loading), then));
                }
                let (tree, parts) = loading.link(&loader)?;
                Ok::<_, TreeError>(Progress::Whole(then(tree, parts)))
            };
            // The outcome comes first: where nobody takes it, what it holds is undone before the guard goes.
            let (progress, _guard) = self.io.run(move || (read(), guard)).await;
            (loading, then) = match progress? {
                Progress::Whole(value) => return Ok(value),
                Progress::Partial(partial, then) => (*partial, then),
            };
            if loading.absent.is_empty() {
                return Err(self.missing(source, loading).await);
            }
            level = std::mem::take(&mut loading.absent);
            if pins.is_empty() && level == [(root, 1)] {
                pins = self.fetch_tree(source, root).await;
                if !pins.is_empty() {
                    continue;
                }
            }
            pins.extend(self.fetch(source, &mut loading, &mut level).await?);
        }
    }

    /// Fetches what one question brings of a tree whose root is not here. What it does not bring is no error yet.
    async fn fetch_tree(&self, source: &dyn BlobSource, root: Digest) -> Vec<BlobPin> {
        let stream = source.fetch_tree(root, self.store.clone());
        stream.filter_map(|fetched| ready(fetched.outcome.ok())).collect().await
    }

    /// Fetches the messages of a level; those that are nowhere are taken out of it.
    async fn fetch(
        &self,
        source: &dyn BlobSource,
        loading: &mut Loading,
        level: &mut Vec<(Digest, u64)>,
    ) -> Result<Vec<BlobPin>, TreeError> {
        let root = loading.root;
        if let Some((lost, _)) = level.iter().find(|(digest, _)| !loading.fetched.insert(*digest)) {
            return Err(TreeError::Store { root, reason: StoreError::NotFound(*lost) });
        }
        let mut fetching = Fetching::new(root, level.len());
        let absent = level.iter().map(|(digest, _)| *digest).collect();
        let mut stream = source.fetch(absent, self.store.clone());
        let mut pins = Vec::new();
        while let Some(fetched) = stream.next().await {
            pins.extend(fetching.take(fetched)?);
        }
        fetching.check_answered()?;
        level.retain(|(digest, _)| !fetching.missing.contains(digest));
        loading.missing.append(&mut fetching.missing);
        Ok(pins)
    }

    /// Completes the list of missing blobs by the files of the messages that are known.
    async fn missing(&self, source: &dyn BlobSource, loading: Loading) -> TreeError {
        let root = loading.root;
        let files = loading.decoded.values().flat_map(|directory| &directory.files);
        let files: BTreeSet<Digest> = files.map(|file| file.key.digest).collect();
        let absent = self.store.find_missing(&files.into_iter().collect::<Vec<_>>());
        let mut fetching = Fetching { missing: loading.missing, ..Fetching::new(root, absent.len()) };
        let mut stream = source.fetch(absent, self.store.clone());
        while let Some(fetched) = stream.next().await {
            // That there is no room for the rest changes nothing about what is missing.
            if fetching.take(fetched).is_err() {
                break;
            }
        }
        fetching.into_error()
    }
}

/// What came of fetching the blobs of one tree.
pub(super) struct Fetching {
    root: Digest,
    /// How many have no fate yet.
    left: usize,
    missing: BTreeSet<Digest>,
    first_error: Option<FetchError>,
}

impl Fetching {
    pub(super) fn new(root: Digest, wanted: usize) -> Self {
        Self { root, left: wanted, missing: BTreeSet::new(), first_error: None }
    }

    /// Takes in a fate; the blob, if it is here. A full or broken disk ends the fetch at once; the rest is waited for, so
    /// that all that is missing is named.
    pub(super) fn take(&mut self, fetched: Fetched) -> Result<Option<BlobPin>, TreeError> {
        self.left = self.left.saturating_sub(1);
        match fetched.outcome {
            Ok(pin) => return Ok(Some(pin)),
            Err(FetchError::Missing) => {
                self.missing.insert(fetched.digest);
            }
            Err(FetchError::Store(reason)) => {
                return Err(TreeError::Store { root: self.root, reason: (*reason).clone() });
            }
            Err(error) => {
                self.first_error.get_or_insert(error);
            }
        }
        Ok(None)
    }

    /// Nothing more comes: what was not answered has failed.
    pub(super) fn end(&mut self) {
        if self.left > 0 {
            let (origin, reason) = ("the source".to_owned(), "it ended without an answer".to_owned());
            self.first_error.get_or_insert(FetchError::Unavailable { origin, reason });
        }
    }

    /// Whether anything failed.
    pub(super) fn has_failed(&self) -> bool {
        !self.missing.is_empty() || self.first_error.is_some()
    }

    /// Fails if the source did not answer; what is missing is another matter.
    fn check_answered(&mut self) -> Result<(), TreeError> {
        self.end();
        let root = self.root;
        self.first_error.take().map_or(Ok(()), |reason| Err(TreeError::Fetch { root, reason }))
    }

    /// What to tell those who wait. What is missing comes first: no retry can help there.
    pub(super) fn into_error(self) -> TreeError {
        let Self { root, missing, first_error, .. } = self;
        match first_error {
            Some(reason) if missing.is_empty() => TreeError::Fetch { root, reason },
            _ => TreeError::Missing { root, missing: missing.into_iter().collect() },
        }
    }
}
