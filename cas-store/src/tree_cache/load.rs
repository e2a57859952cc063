//! From the digest of a root to a linked tree: `Directory` messages level by level, one hop to the disk a level.
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
use crate::blob::{BlobStore, StoreError};
use crate::digest::Digest;
use crate::io::IoPool;
use crate::source::{BlobSource, FetchError};
use crate::tree::{self, Decoded, Directory, DirectoryTree, MalformedTree, TreeLimits};

/// What is read into memory at once, in bytes; a larger message is read alone.
const READ_BYTES_MAX: u64 = 32 << 20;

/// What is decoded without a hop to the pool, in bytes.
const DECODE_INLINE_BYTES_MAX: u64 = 16 << 10;

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
    nodes: u64,
    missing: BTreeSet<Digest>,
}

impl Loader {
    /// Loads the tree of `root`.
    pub(super) async fn load(&self, root: Digest) -> Result<DirectoryTree, TreeError> {
        let mut loading = Loading {
            root,
            linked: HashMap::new(),
            decoded: HashMap::new(),
            nodes: 0,
            missing: BTreeSet::new(),
        };
        let mut level = vec![root];
        let mut levels: u64 = 0;
        while !level.is_empty() {
            levels += 1;
            check(root, "levels of directories", levels, self.limits.depth_max)?;
            level.retain(|digest| !loading.take_interned(*digest, &self.interner));
            for digest in &level {
                let message_bytes_max = self.limits.message_bytes_max;
                check(root, "bytes in a Directory message", digest.size_bytes(), message_bytes_max)?;
            }
            let mut next = Vec::new();
            for batch in batches(level) {
                let decoded = self.read(batch, &mut loading).await?;
                for directory in decoded {
                    loading.nodes += nodes(&directory);
                    next.extend(directory.directories.iter().map(|child| child.digest));
                    loading.decoded.insert(directory.digest, directory);
                }
                check(root, "nodes", loading.nodes, self.limits.nodes_max)?;
            }
            next.sort_unstable();
            next.dedup();
            next.retain(|digest| loading.is_new(digest));
            level = next;
        }
        if !loading.missing.is_empty() {
            return Err(self.missing(loading).await);
        }
        let tree = loading.link(&self.limits)?;
        self.limits.check(&tree)?;
        self.interner.extend(loading.linked.values());
        Ok(tree)
    }

    /// Reads and decodes messages, fetching those that are not here.
    async fn read(&self, batch: Vec<Digest>, loading: &mut Loading) -> Result<Vec<Decoded>, TreeError> {
        let root = loading.root;
        let store_error = |reason: StoreError| TreeError::Store { root, reason };
        let mut messages = self.messages(batch.clone()).await.map_err(store_error)?;
        let absent: Vec<Digest> = batch.into_iter().filter(|digest| !messages.contains_key(digest)).collect();
        if !absent.is_empty() {
            let mut fetching = Fetching::new(root);
            let mut stream = self.source.fetch(absent.clone(), self.store.clone());
            let mut pins = Vec::new();
            while let Some(fetched) = stream.next().await {
                match fetched.outcome {
                    Ok(pin) => pins.push(pin),
                    Err(error) => fetching.failed(fetched.digest, error)?,
                }
            }
            fetching.check_answered()?;
            loading.missing.extend(&fetching.missing);
            let fetched = pins.iter().map(|pin| *pin.digest()).collect();
            messages.extend(self.messages(fetched).await.map_err(store_error)?);
            for digest in absent.iter().filter(|digest| !loading.missing.contains(digest)) {
                if !messages.contains_key(digest) {
                    return Err(store_error(StoreError::NotFound(*digest)));
                }
            }
        }
        self.decode(messages).await
    }

    /// Those of the messages that are here.
    async fn messages(&self, digests: Vec<Digest>) -> Result<HashMap<Digest, Bytes>, StoreError> {
        let (empty, stored): (Vec<_>, Vec<_>) = digests.into_iter().partition(Digest::is_empty);
        let mut messages: HashMap<_, _> = empty.into_iter().map(|digest| (digest, Bytes::new())).collect();
        if !stored.is_empty() {
            let read = self.store.read_many(stored.clone()).await?;
            let found = stored.into_iter().zip(read).filter_map(|(digest, data)| Some((digest, data?)));
            messages.extend(found);
        }
        Ok(messages)
    }

    async fn decode(&self, messages: HashMap<Digest, Bytes>) -> Result<Vec<Decoded>, TreeError> {
        let total_bytes: u64 = messages.values().map(|message| message.len() as u64).sum();
        if total_bytes <= DECODE_INLINE_BYTES_MAX {
            let decoded = messages.iter().map(|(digest, message)| tree::decode(*digest, message));
            return Ok(decoded.collect::<Result<_, _>>()?);
        }
        let decode = move || {
            messages.into_par_iter().map(|(digest, message)| tree::decode(digest, &message)).collect()
        };
        let decoded: Result<Vec<Decoded>, MalformedTree> = self.io.run(decode).await;
        Ok(decoded?)
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

    /// Links all messages, children before parents.
    fn link(&mut self, limits: &TreeLimits) -> Result<DirectoryTree, TreeError> {
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

/// Cuts a level into parts that may be in memory at once.
fn batches(level: Vec<Digest>) -> Vec<Vec<Digest>> {
    let mut batches: Vec<Vec<Digest>> = Vec::new();
    let mut batch_bytes = 0;
    for digest in level {
        batch_bytes += digest.size_bytes();
        match batches.last_mut() {
            Some(batch) if batch_bytes <= READ_BYTES_MAX => batch.push(digest),
            _ => {
                batch_bytes = digest.size_bytes();
                batches.push(vec![digest]);
            }
        }
    }
    batches
}
