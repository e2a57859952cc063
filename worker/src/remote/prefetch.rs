//! Prefetch: the inputs of an action that is not assigned yet are fetched, and its tree is prepared.
//!
//! It is speculation: it gives way to every fetch that an action waits for, an action that comes to want the same lifts
//! it, and it is capped, a directory and in all. What it skips is fetched when the action comes. What is named as a
//! directory may be anything: it is not even fetched where it is too large for one.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt as _;
use longshore_cas_store::blob::BlobPin;
use longshore_cas_store::digest::Digest;
use longshore_cas_store::source::BlobSource;
use longshore_cas_store::tree::{self, Decoded};
use longshore_cas_store::tree_cache::{DirectoryCache, TreePin};

use super::Remote;

/// Messages that are in memory at once.
const MESSAGES_AT_ONCE: usize = 16;
/// Prefetches hold at most that part of the store: actions that run need room, too.
const STORE_PART: u64 = 8;

/// How much may be fetched that nobody has asked for.
#[derive(Clone, Copy, Debug)]
pub struct SpeculationLimits {
    /// Files of one directory, in bytes.
    pub directory_bytes_max: u64,
    /// Directory messages of one tree.
    pub directories_max: usize,
    /// One directory message, in bytes.
    pub message_bytes_max: u64,
    /// Everything that all prefetches hold at once, in bytes; or an eighth of the store, where that is less.
    pub bytes_max: u64,
}

impl Default for SpeculationLimits {
    fn default() -> Self {
        Self {
            directory_bytes_max: 256 << 20,
            directories_max: 20_000,
            message_bytes_max: 4 << 20,
            bytes_max: 2 << 30,
        }
    }
}

/// Fetches ahead of the actions. Clones are cheap, and share the cap over all.
#[derive(Clone)]
pub struct Prefetcher {
    remote: Remote,
    /// Where an action that wants the same tree has it from.
    source: Arc<dyn BlobSource>,
    cache: Arc<DirectoryCache>,
    limits: SpeculationLimits,
    held_bytes: Arc<AtomicU64>,
}

/// What was prefetched; it is kept from eviction while this lives.
#[derive(Debug)]
pub struct Prefetched {
    /// The tree, ready, if nothing of it was skipped or missing.
    pub tree: Option<TreePin>,
    /// Files that the caps left out.
    pub skipped_files: u64,
    _pins: Vec<BlobPin>,
    _share: Share,
}

/// What a prefetch takes of the cap over all.
#[derive(Debug)]
struct Share {
    held_bytes: Arc<AtomicU64>,
    bytes: u64,
}

impl Share {
    /// Takes that many bytes more, if they are left below `bytes_max`.
    fn take(&mut self, bytes: u64, bytes_max: u64) -> bool {
        let add = |held: u64| held.checked_add(bytes).filter(|held| *held <= bytes_max);
        let is_taken = self.held_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok();
        self.bytes += if is_taken { bytes } else { 0 };
        is_taken
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.held_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Prefetcher {
    /// Fetches through `remote`, for trees of `cache`, which has the same store.
    pub fn new(remote: &Remote, cache: Arc<DirectoryCache>, limits: SpeculationLimits) -> Self {
        let store_bytes = remote.shared.store.blob_size_bytes_max();
        let limits =
            SpeculationLimits { bytes_max: limits.bytes_max.min(store_bytes / STORE_PART), ..limits };
        let source = Arc::new(remote.clone());
        Self { remote: remote.speculative(), source, cache, limits, held_bytes: Arc::default() }
    }

    /// The same within the same caps, through `remote`, which uses the same store; the trees of actions that want them come
    /// from `source`.
    #[must_use]
    pub fn through(&self, remote: &Remote, source: Arc<dyn BlobSource>) -> Self {
        let Self { cache, limits, held_bytes, .. } = self.clone();
        Self { remote: remote.speculative(), source, cache, limits, held_bytes }
    }

    /// Fetches the inputs below `root` as far as the caps allow, and prepares the tree if that was all of it.
    ///
    /// It never fails: what cannot be had is for the action to report. Dropping the future stops it.
    pub async fn prefetch(&self, root: Digest) -> Prefetched {
        let share = Share { held_bytes: self.held_bytes.clone(), bytes: 0 };
        let mut walk = Walk { pins: Vec::new(), share, files: HashSet::new(), skipped_files: 0 };
        let mut is_whole = self.walk(root, &mut walk).await && walk.skipped_files == 0;
        let store = &self.remote.shared.store;
        let files = std::mem::take(&mut walk.files);
        let (here, absent): (Vec<_>, Vec<_>) =
            files.into_iter().map(|digest| (digest, store.pin(&digest))).partition(|(_, pin)| pin.is_some());
        walk.pins.extend(here.into_iter().filter_map(|(_, pin)| pin));
        let absent = absent.into_iter().map(|(digest, _)| digest).collect();
        let mut fates = self.remote.fetch(absent, store.clone());
        while let Some(fetched) = fates.next().await {
            match fetched.outcome {
                Ok(pin) => walk.pins.push(pin),
                Err(error) => {
                    tracing::debug!("prefetch of {}: {error}", fetched.digest);
                    is_whole = false;
                }
            }
        }
        let tree = if is_whole { self.cache.get(root, &self.source).await.ok() } else { None };
        Prefetched { tree, skipped_files: walk.skipped_files, _pins: walk.pins, _share: walk.share }
    }

    /// Reads the messages, level by level. Whether all of them could be read.
    async fn walk(&self, root: Digest, walk: &mut Walk) -> bool {
        let store = &self.remote.shared.store;
        if !self.fits(&[root], walk) {
            return false;
        }
        if store.pin(&root).is_none() {
            let mut messages = self.remote.fetch_tree(root, store.clone());
            while let Some(fetched) = messages.next().await {
                walk.pins.extend(fetched.outcome.ok());
            }
        }
        let mut seen = HashSet::from([root]);
        let mut level = vec![root];
        while !level.is_empty() {
            let absent = level.iter().filter(|digest| store.pin(digest).is_none()).copied().collect();
            let mut fates = self.remote.fetch(absent, store.clone());
            while let Some(fetched) = fates.next().await {
                walk.pins.extend(fetched.outcome.ok());
            }
            let mut next = Vec::new();
            for part in level.chunks(MESSAGES_AT_ONCE) {
                let Ok(messages) = store.read_many(part.to_vec()).await else { return false };
                for (digest, message) in part.iter().zip(messages) {
                    let decoded = message.and_then(|message| tree::decode(*digest, &message).ok());
                    let Some(decoded) = decoded else { return false };
                    self.visit(&decoded, walk);
                    let children = decoded.directories.iter().map(|child| child.digest);
                    next.extend(children.filter(|child| seen.insert(*child)));
                }
            }
            if seen.len() > self.limits.directories_max || !self.fits(&next, walk) {
                return false;
            }
            level = next;
        }
        true
    }

    /// Takes messages, if all of them are within the caps.
    fn fits(&self, messages: &[Digest], walk: &mut Walk) -> bool {
        messages.iter().map(Digest::size_bytes).all(|size_bytes| {
            size_bytes <= self.limits.message_bytes_max && walk.share.take(size_bytes, self.limits.bytes_max)
        })
    }

    /// Takes the files of a directory, as far as the caps allow.
    fn visit(&self, directory: &Decoded, walk: &mut Walk) {
        let mut directory_bytes: u64 = 0;
        for file in &directory.files {
            let digest = file.key.digest;
            if digest.is_empty() || walk.files.contains(&digest) {
                continue;
            }
            let size_bytes = digest.size_bytes();
            let bytes = directory_bytes.saturating_add(size_bytes);
            let fits = bytes <= self.limits.directory_bytes_max;
            if fits && walk.share.take(size_bytes, self.limits.bytes_max) {
                directory_bytes = bytes;
                walk.files.insert(digest);
            } else {
                walk.skipped_files += 1;
            }
        }
    }
}

/// What a walk has found.
struct Walk {
    pins: Vec<BlobPin>,
    share: Share,
    files: HashSet<Digest>,
    skipped_files: u64,
}

impl fmt::Debug for Prefetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prefetcher").field("limits", &self.limits).finish_non_exhaustive()
    }
}
