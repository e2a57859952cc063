//! The `Directory` messages of one tree: read from the store, decoded, linked.
//!
//! Every distinct message is read once, whatever the tree expands to, and a subtree that some ready tree has, or one
//! that was built lately, is not read at all. Limits are checked by arithmetic on the shared nodes, before anything is created.
//!
//! *Locking*: the threads that read share what they found under one lock, held for changes in memory; the lock of
//! the [`Interner`] is taken within it.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use hashbrown::DefaultHashBuilder;
use parking_lot::Mutex;
use rayon::Scope;

use super::TreeError;
use super::load::Loader;
use super::parts::Parts;
use crate::digest::Digest;
use crate::tree::{self, Decoded, Directory, DirectoryTree, MalformedTree, TreeLimits};

/// Digests are hashed once a node: by a fast hasher.
type ByDigest<V> = HashMap<Digest, V, DefaultHashBuilder>;

/// Nodes of trees that stay in memory when nobody uses them: about 200 bytes each.
const RECENT_NODES_MAX: u64 = 1 << 15;

/// Trees that do: each is looked at when another one comes.
const RECENT_TREES_MAX: usize = 256;

/// Linked directories that are in use or were lately, so that equal subtrees are one in memory.
#[derive(Debug, Default)]
pub(super) struct Interner(Mutex<Interned>);

#[derive(Debug, Default)]
struct Interned {
    directories: ByDigest<Weak<Directory>>,
    /// How many there may be before the dead ones are thrown out.
    purge_len: usize,
    recent: Recent,
}

/// The trees that were linked last, whatever became of them: the next one differs little.
#[derive(Debug, Default)]
struct Recent {
    trees: VecDeque<DirectoryTree>,
    /// What they expand to together.
    nodes: u64,
}

impl Recent {
    /// Keeps `tree`; yields what is not kept any more.
    fn keep(&mut self, tree: &DirectoryTree) -> Vec<DirectoryTree> {
        let nodes = tree.totals.nodes();
        if nodes > RECENT_NODES_MAX || self.trees.iter().any(|kept| Arc::ptr_eq(kept, tree)) {
            return Vec::new();
        }
        self.trees.push_back(tree.clone());
        self.nodes += nodes;
        let mut forgotten = Vec::new();
        while self.nodes > RECENT_NODES_MAX || self.trees.len() > RECENT_TREES_MAX {
            let Some(oldest) = self.trees.pop_front() else { break };
            self.nodes -= oldest.totals.nodes();
            forgotten.push(oldest);
        }
        forgotten
    }
}

impl Interner {
    fn get(&self, digest: &Digest) -> Option<Arc<Directory>> {
        self.0.lock().directories.get(digest).and_then(Weak::upgrade)
    }

    /// Adds a tree and everything that was `linked` for it.
    fn extend<'d>(&self, tree: &DirectoryTree, linked: impl Iterator<Item = &'d Arc<Directory>>) {
        let mut interned = self.0.lock();
        for directory in linked {
            interned.directories.insert(directory.digest, Arc::downgrade(directory));
        }
        if interned.directories.len() > interned.purge_len {
            interned.directories.retain(|_, directory| directory.strong_count() > 0);
            interned.purge_len = 2 * interned.directories.len() + 1024;
        }
        let forgotten = interned.recent.keep(tree);
        drop(interned);
        // To free thousands of nodes takes its time.
        drop(forgotten);
    }
}

/// A tree of which some messages are known.
pub(super) struct Loading {
    pub(super) root: Digest,
    /// Every message that somebody reads or has read.
    seen: HashSet<Digest, DefaultHashBuilder>,
    linked: ByDigest<Arc<Directory>>,
    pub(super) decoded: ByDigest<Decoded>,
    /// Messages that are not in the store, and their levels.
    pub(super) absent: Vec<(Digest, u64)>,
    nodes: u64,
    /// Messages that were fetched, each once.
    pub(super) fetched: HashSet<Digest>,
    /// Messages that are nowhere.
    pub(super) missing: BTreeSet<Digest>,
}

/// Reads messages, on as many threads as are free.
struct Reading<'r> {
    root: Digest,
    loader: &'r Loader,
    found: Mutex<Found<'r>>,
}

struct Found<'r> {
    loading: &'r mut Loading,
    first_error: Option<TreeError>,
}

impl Loading {
    pub(super) fn new(root: Digest) -> Self {
        Self {
            root,
            seen: HashSet::default(),
            linked: HashMap::default(),
            decoded: HashMap::default(),
            absent: Vec::new(),
            nodes: 0,
            fetched: HashSet::new(),
            missing: BTreeSet::new(),
        }
    }

    /// Reads and decodes the messages of `level` and below, as far as they are here. Blocks; forks over the pool.
    pub(super) fn read(&mut self, mut level: Vec<(Digest, u64)>, loader: &Loader) -> Result<(), TreeError> {
        let root = self.root;
        level.retain(|(digest, _)| {
            self.seen.insert(*digest);
            !self.take_interned(*digest, &loader.interner)
        });
        let reading = Reading { root, loader, found: Mutex::new(Found { loading: self, first_error: None }) };
        rayon::scope(|scope| {
            // Threads that sleep wake up while the first messages are read, which have the others' names.
            for _ in 1..rayon::current_num_threads() {
                scope.spawn(|_| ());
            }
            reading.fork(scope, level);
        });
        if let Some(error) = reading.found.into_inner().first_error {
            return Err(error);
        }
        self.absent.sort_unstable();
        Ok(())
    }

    /// Takes in what was found of one message; yields the children that nobody has seen.
    fn add(
        &mut self,
        (digest, depth): (Digest, u64),
        directory: Option<Decoded>,
        loader: &Loader,
    ) -> Result<Vec<(Digest, u64)>, TreeError> {
        let Some(directory) = directory else {
            self.absent.push((digest, depth));
            return Ok(Vec::new());
        };
        self.nodes += nodes(&directory);
        check(self.root, "nodes", self.nodes, loader.limits.nodes_max)?;
        let mut children = Vec::with_capacity(directory.directories.len());
        for child in &directory.directories {
            if self.seen.insert(child.digest) && !self.take_interned(child.digest, &loader.interner) {
                children.push((child.digest, depth + 1));
            }
        }
        self.decoded.insert(digest, directory);
        Ok(children)
    }

    fn take_interned(&mut self, digest: Digest, interner: &Interner) -> bool {
        let Some(directory) = interner.get(&digest) else { return false };
        self.linked.insert(digest, directory);
        true
    }

    /// Links the tree, and checks what it expands to, and that the store can hold it.
    pub(super) fn link(&mut self, loader: &Loader) -> Result<(DirectoryTree, Parts), TreeError> {
        let tree = self.link_messages(&loader.limits)?;
        loader.limits.check(&tree)?;
        loader.interner.extend(&tree, self.linked.values());
        let parts = Parts::of(&tree);
        let fits = parts.check_fit(&loader.store, tree.totals.own_bytes());
        fits.map_err(|reason| TreeError::Store { root: self.root, reason })?;
        Ok((tree, parts))
    }

    /// Links all messages, children before parents.
    fn link_messages(&mut self, limits: &TreeLimits) -> Result<DirectoryTree, TreeError> {
        let mut path = vec![self.root];
        let mut expanded: HashSet<Digest, DefaultHashBuilder> = HashSet::default();
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

impl Reading<'_> {
    /// Reads the messages of `level`, each as a job of its own but for one.
    fn fork<'scope>(&'scope self, scope: &Scope<'scope>, level: Vec<(Digest, u64)>) {
        let mut level = level.into_iter();
        let Some(mut next) = level.next() else { return };
        loop {
            for (digest, depth) in level {
                scope.spawn(move |scope| self.fork(scope, self.read(digest, depth)));
            }
            // The way on is taken by this thread: a chain of directories needs no other.
            let mut below = self.read(next.0, next.1).into_iter();
            let Some(first) = below.next() else { return };
            (next, level) = (first, below);
        }
    }

    /// Reads one message; yields the children that are to be read.
    fn read(&self, digest: Digest, depth: u64) -> Vec<(Digest, u64)> {
        if self.found.lock().first_error.is_some() {
            return Vec::new();
        }
        let outcome = self.decode(digest, depth);
        let Found { loading, first_error } = &mut *self.found.lock();
        let children = outcome.and_then(|directory| loading.add((digest, depth), directory, self.loader));
        children.unwrap_or_else(|error| {
            first_error.get_or_insert(error);
            Vec::new()
        })
    }

    /// Reads and decodes one message; nothing if it is not here. Blocks.
    fn decode(&self, digest: Digest, depth: u64) -> Result<Option<Decoded>, TreeError> {
        let (root, Loader { store, limits, .. }) = (self.root, self.loader);
        check(root, "levels of directories", depth, limits.depth_max)?;
        check(root, "bytes in a Directory message", digest.size_bytes(), limits.message_bytes_max)?;
        let message = if digest.is_empty() { Ok(Some(Bytes::new())) } else { store.read_now(&digest) };
        let message = message.map_err(|reason| TreeError::Store { root, reason })?;
        Ok(message.map(|message| tree::decode(digest, &message)).transpose()?)
    }
}

fn check(root: Digest, measure: &'static str, value: u64, value_max: u64) -> Result<(), TreeError> {
    if value <= value_max {
        return Ok(());
    }
    Err(MalformedTree::TooLarge { root, measure, value, value_max }.into())
}

fn nodes(directory: &Decoded) -> u64 {
    (directory.files.len() + directory.directories.len() + directory.symlinks.len()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::DigestFunction;
    use crate::tree::Totals;

    fn tree(name: &str, files: u64) -> DirectoryTree {
        let digest = DigestFunction::Sha256.digest(name.as_bytes());
        let totals = Totals { files, directories: 1, ..Totals::default() };
        let empty: Decoded = tree::decode(digest, b"").unwrap();
        Arc::new(Directory {
            digest,
            files: empty.files.into(),
            directories: Box::default(),
            symlinks: Box::default(),
            properties: empty.properties,
            totals,
        })
    }

    #[test]
    fn the_oldest_trees_are_forgotten_when_there_are_too_many_nodes() {
        let mut recent = Recent::default();
        let trees: Vec<_> = ["a", "b", "c"].map(|name| tree(name, RECENT_NODES_MAX / 2 - 1)).into();
        assert_eq!(recent.keep(&trees[0]).len() + recent.keep(&trees[1]).len(), 0);
        assert_eq!(recent.keep(&trees[1]).len(), 0, "it is there");
        let forgotten = recent.keep(&trees[2]);
        assert!(matches!(forgotten.as_slice(), [oldest] if Arc::ptr_eq(oldest, &trees[0])));
        assert_eq!(recent.nodes, RECENT_NODES_MAX);
    }

    #[test]
    fn small_trees_are_bounded_in_number_and_a_huge_one_drives_nobody_out() {
        let mut recent = Recent::default();
        for number in 0..2 * RECENT_TREES_MAX {
            recent.keep(&tree(&number.to_string(), 1));
        }
        recent.keep(&tree("huge", RECENT_NODES_MAX));
        assert_eq!((recent.trees.len(), recent.nodes), (RECENT_TREES_MAX, 2 * RECENT_TREES_MAX as u64));
    }
}
