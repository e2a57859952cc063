//! From the digest of a root to a linked tree: what is here of its `Directory` messages is read by one job of the
//! pool, level by level, and what is not is fetched.
//!
//! Every distinct message is read once, whatever the tree expands to, and a subtree that some ready tree has is
//! not read at all. Limits are checked by arithmetic on the shared nodes, before anything is created.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use super::TreeError;
use super::parts::Parts;
use crate::blob::{BlobPin, BlobStore, StoreError};
use crate::digest::Digest;
use crate::io::IoPool;
use crate::source::{BlobSource, FetchError};
use crate::tree::{self, Decoded, Directory, DirectoryTree, MalformedTree, TreeLimits};

/// Linked directories that are still in use, so that equal subtrees are one in memory.
#[derive(Debug, Default)]
pub(super) struct Interner(Mutex<Interned>);

#[derive(Debug, Default)]
struct Interned {
    directories: HashMap<Digest, Weak<Directory>>,
    /// How many there may be before the dead ones are thrown out.
    purge_len: usize,
}

impl Interner {
    fn get(&self, digest: &Digest) -> Option<Arc<Directory>> {
        self.0.lock().directories.get(digest).and_then(Weak::upgrade)
    }

    fn extend<'d>(&self, linked: impl Iterator<Item = &'d Arc<Directory>>) {
        let mut interned = self.0.lock();
        for directory in linked {
            interned.directories.insert(directory.digest, Arc::downgrade(directory));
        }
        if interned.directories.len() > interned.purge_len {
            interned.directories.retain(|_, directory| directory.strong_count() > 0);
            interned.purge_len = 2 * interned.directories.len() + 1024;
        }
    }
}

/// Loads trees.
#[derive(Clone)]
pub(super) struct Loader {
    pub(super) store: Arc<BlobStore>,
    pub(super) source: Arc<dyn BlobSource>,
    pub(super) io: IoPool,
    pub(super) limits: TreeLimits,
    pub(super) interner: Arc<Interner>,
}

/// A tree of which some messages are known.
struct Loading {
    root: Digest,
    linked: HashMap<Digest, Arc<Directory>>,
    decoded: HashMap<Digest, Decoded>,
    /// Messages that are not in the store, and their levels.
    absent: Vec<(Digest, u64)>,
    nodes: u64,
    /// Messages that were fetched, each once.
    fetched: HashSet<Digest>,
    /// Messages that are nowhere.
    missing: BTreeSet<Digest>,
}

/// How far a job of the pool came.
enum Progress<T, F> {
    /// All messages were here, and what followed was done.
    Whole(T),
    /// Messages are absent.
    Partial(Box<Loading>, F),
}

impl Loader {
    /// Loads the tree of `root`, collects what it is made of, and goes on with `then` in the same job of the pool:
    /// the way to another thread is a good part of a small construction. Each job holds a clone of `guard`.
    pub(super) async fn load<T: Send + 'static>(
        &self,
        root: Digest,
        guard: impl Clone + Send + 'static,
        mut then: impl FnOnce(DirectoryTree, Parts) -> T + Send + 'static,
    ) -> Result<T, TreeError> {
        let mut loading = Loading {
            root,
            linked: HashMap::new(),
            decoded: HashMap::new(),
            absent: Vec::new(),
            nodes: 0,
            fetched: HashSet::new(),
            missing: BTreeSet::new(),
        };
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
                return Err(self.missing(loading).await);
            }
            level = std::mem::take(&mut loading.absent);
            if pins.is_empty() && level == [(root, 1)] {
                pins = self.fetch_tree(root).await;
                if !pins.is_empty() {
                    continue;
                }
            }
            pins.extend(self.fetch(&mut loading, &mut level).await?);
        }
    }

    /// Fetches what one question brings of a tree whose root is not here. What it does not bring is no error yet.
    async fn fetch_tree(&self, root: Digest) -> Vec<BlobPin> {
        let stream = self.source.fetch_tree(root, self.store.clone());
        stream.filter_map(async |fetched| fetched.outcome.ok()).collect().await
    }

    /// Fetches the messages of a level; those that are nowhere are taken out of it.
    async fn fetch(
        &self,
        loading: &mut Loading,
        level: &mut Vec<(Digest, u64)>,
    ) -> Result<Vec<BlobPin>, TreeError> {
        let root = loading.root;
        if let Some((lost, _)) = level.iter().find(|(digest, _)| !loading.fetched.insert(*digest)) {
            return Err(TreeError::Store { root, reason: StoreError::NotFound(*lost) });
        }
        let mut fetching = Fetching::new(root);
        let absent = level.iter().map(|(digest, _)| *digest).collect();
        let mut stream = self.source.fetch(absent, self.store.clone());
        let mut pins = Vec::new();
        while let Some(fetched) = stream.next().await {
            match fetched.outcome {
                Ok(pin) => pins.push(pin),
                Err(error) => fetching.failed(fetched.digest, error)?,
            }
        }
        fetching.check_answered()?;
        level.retain(|(digest, _)| !fetching.missing.contains(digest));
        loading.missing.append(&mut fetching.missing);
        Ok(pins)
    }

    /// Reads and decodes one message; nothing if it is not here. Blocks.
    fn decode(&self, root: Digest, digest: Digest, depth: u64) -> Result<Option<Decoded>, TreeError> {
        check(root, "levels of directories", depth, self.limits.depth_max)?;
        let message_bytes_max = self.limits.message_bytes_max;
        check(root, "bytes in a Directory message", digest.size_bytes(), message_bytes_max)?;
        let message = if digest.is_empty() { Ok(Some(Bytes::new())) } else { self.store.read_now(&digest) };
        let message = message.map_err(|reason| TreeError::Store { root, reason })?;
        Ok(message.map(|message| tree::decode(digest, &message)).transpose()?)
    }

    /// Completes the list of missing blobs by the files of the messages that are known.
    async fn missing(&self, loading: Loading) -> TreeError {
        let root = loading.root;
        let files = loading.decoded.values().flat_map(|directory| &directory.files);
        let files: BTreeSet<Digest> = files.map(|file| file.key.digest).collect();
        let absent = self.store.find_missing(&files.into_iter().collect::<Vec<_>>());
        let mut fetching = Fetching { missing: loading.missing, ..Fetching::new(root) };
        let mut stream = self.source.fetch(absent, self.store.clone());
        while let Some(fetched) = stream.next().await {
            if let Err(error) = fetched.outcome
                && let Err(error) = fetching.failed(fetched.digest, error)
            {
                return error;
            }
        }
        fetching.into_error()
    }
}

impl Loading {
    /// Reads and decodes the messages of `level` and below, as far as they are here. Blocks; forks over the pool.
    fn read(&mut self, mut level: Vec<(Digest, u64)>, loader: &Loader) -> Result<(), TreeError> {
        let root = self.root;
        while !level.is_empty() {
            level.retain(|(digest, _)| !self.take_interned(*digest, &loader.interner));
            let decode = |(digest, depth): (Digest, u64)| {
                let outcome = loader.decode(root, digest, depth)?;
                Ok((digest, depth, outcome))
            };
            let decoded: Vec<_> = level.into_par_iter().map(decode).collect::<Result<_, TreeError>>()?;
            let mut next = Vec::new();
            for (digest, depth, outcome) in decoded {
                let Some(directory) = outcome else {
                    self.absent.push((digest, depth));
                    continue;
                };
                self.nodes += nodes(&directory);
                next.extend(directory.directories.iter().map(|child| (child.digest, depth + 1)));
                self.decoded.insert(digest, directory);
            }
            check(root, "nodes", self.nodes, loader.limits.nodes_max)?;
            next.sort_unstable();
            next.dedup_by_key(|(digest, _)| *digest);
            next.retain(|(digest, _)| self.is_new(digest));
            level = next;
        }
        self.absent.sort_unstable();
        self.absent.dedup_by_key(|(digest, _)| *digest);
        Ok(())
    }

    fn is_new(&self, digest: &Digest) -> bool {
        !self.linked.contains_key(digest)
            && !self.decoded.contains_key(digest)
            && !self.missing.contains(digest)
    }

    fn take_interned(&mut self, digest: Digest, interner: &Interner) -> bool {
        let Some(directory) = interner.get(&digest) else { return false };
        self.linked.insert(digest, directory);
        true
    }

    /// Links the tree, and checks what it expands to.
    fn link(&mut self, loader: &Loader) -> Result<(DirectoryTree, Parts), TreeError> {
        let tree = self.link_messages(&loader.limits)?;
        loader.limits.check(&tree)?;
        loader.interner.extend(self.linked.values());
        let parts = Parts::of(&tree);
        Ok((tree, parts))
    }

    /// Links all messages, children before parents.
    fn link_messages(&mut self, limits: &TreeLimits) -> Result<DirectoryTree, TreeError> {
        let mut path = vec![self.root];
        let mut expanded = HashSet::new();
        while let Some(digest) = path.last().copied() {
            if self.linked.contains_key(&digest) {
                path.pop();
                continue;
            }
            if expanded.insert(digest) {
                let children =
                    self.decoded.get(&digest).into_iter().flat_map(|directory| &directory.directories);
                path.extend(
                    children.map(|child| child.digest).filter(|child| !self.linked.contains_key(child)),
                );
                continue;
            }
            let decoded = self.decoded.remove(&digest);
            let linked = decoded.and_then(|decoded| tree::link(decoded, &self.linked).ok());
            let Some(directory) = linked else {
                let (field, reason) = ("directories".to_owned(), "contains itself".to_owned());
                return Err(MalformedTree::Directory { digest, field, reason }.into());
            };
            // Depth is bounded at once: shared nodes can be linked in an order that hides it from the path.
            check(self.root, "levels of directories", directory.totals.depth, limits.depth_max)?;
            self.linked.insert(digest, directory);
            path.pop();
        }
        Ok(self.linked[&self.root].clone())
    }
}

fn check(root: Digest, measure: &'static str, value: u64, value_max: u64) -> Result<(), TreeError> {
    if value <= value_max {
        return Ok(());
    }
    Err(MalformedTree::TooLarge { root, measure, value, value_max }.into())
}

/// What came of fetching the blobs of one tree.
pub(super) struct Fetching {
    root: Digest,
    missing: BTreeSet<Digest>,
    first_error: Option<FetchError>,
}

impl Fetching {
    pub(super) fn new(root: Digest) -> Self {
        Self { root, missing: BTreeSet::new(), first_error: None }
    }

    /// Notes a failure. A full or broken disk ends the fetch at once; the rest is waited for, so that all that
    /// is missing is named.
    pub(super) fn failed(&mut self, digest: Digest, error: FetchError) -> Result<(), TreeError> {
        match error {
            FetchError::Missing => {
                self.missing.insert(digest);
            }
            FetchError::Store(reason) => {
                return Err(TreeError::Store { root: self.root, reason: (*reason).clone() });
            }
            error => {
                self.first_error.get_or_insert(error);
            }
        }
        Ok(())
    }

    /// Whether anything failed.
    pub(super) fn has_failed(&self) -> bool {
        !self.missing.is_empty() || self.first_error.is_some()
    }

    /// Fails if the source did not answer; what is missing is another matter.
    fn check_answered(&mut self) -> Result<(), TreeError> {
        let root = self.root;
        self.first_error.take().map_or(Ok(()), |reason| Err(TreeError::Fetch { root, reason }))
    }

    /// What to tell those who wait. What is missing comes first: no retry can help there.
    pub(super) fn into_error(self) -> TreeError {
        let Self { root, missing, first_error } = self;
        match first_error {
            Some(reason) if missing.is_empty() => TreeError::Fetch { root, reason },
            _ => TreeError::Missing { root, missing: missing.into_iter().collect() },
        }
    }
}

fn nodes(directory: &Decoded) -> u64 {
    (directory.files.len() + directory.directories.len() + directory.symlinks.len()) as u64
}
