//! A tree on the disk that is not in the index yet: undone unless it becomes an entry.
//!
//! *Crash safety*: a tree is built in scratch and published by one rename, when it is complete, to a path of its
//! own that is never used again. What lies in scratch after a crash is removed at the next start.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::blob::{BlobPins, Charge, Moment};
use crate::digest::{Digest, DigestFunction};
use crate::dir::{Dir, PathError};
use crate::reap::Reaper;
use crate::root::StoreRoot;
use crate::tree::DirectoryTree;

/// What the folders of trees under construction are called, followed by a generation.
const SCRATCH_PREFIX: &str = "tree-";

/// Trees are read by actions of any user.
const ROOT_MODE: u32 = 0o755;

/// Where trees are built and where they stand.
pub(super) struct Grounds {
    scratch: Arc<dyn Dir>,
    trees: Arc<dyn Dir>,
    trees_path: PathBuf,
    reaper: Arc<Reaper>,
    generations: AtomicU64,
}

/// What keeps the blobs of a tree and counts its directories; given back when the last name is gone.
#[derive(Debug)]
pub(super) struct Held {
    pins: Vec<BlobPins>,
    charge: Charge,
}

impl Held {
    pub(super) fn new(pins: BlobPins, charge: Charge) -> Self {
        Self { pins: vec![pins], charge }
    }

    /// Tells the store that all of it will be given back soon, and was last used at `moment`.
    fn leave(&self, moment: Moment) {
        self.pins.iter().for_each(|pins| pins.leave(moment));
        self.charge.leave();
    }
}

/// A ready tree.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) tree: DirectoryTree,
    pub(super) path: PathBuf,
    name: PathBuf,
    held: Held,
}

/// A tree under construction.
pub(super) struct Site {
    grounds: Arc<Grounds>,
    name: PathBuf,
    is_published: bool,
    /// Nothing once it has become an entry.
    held: Option<Held>,
}

/// A published tree that was found on the disk.
pub(super) struct Standing {
    pub(super) digest: Digest,
    pub(super) generation: u64,
    name: PathBuf,
}

impl Grounds {
    /// Opens the folders of `root` and removes what a crash left in scratch.
    pub(super) fn open(root: &StoreRoot, reaper: Arc<Reaper>) -> Result<Self, PathError> {
        let grounds = Self {
            scratch: root.dir().open_dir(Path::new("scratch"))?.into(),
            trees: root.dir().open_dir(Path::new("trees"))?.into(),
            trees_path: root.path().join("trees"),
            reaper,
            generations: AtomicU64::new(0),
        };
        for leftover in grounds.scratch.entries()? {
            if leftover.name.to_str().is_some_and(|name| name.starts_with(SCRATCH_PREFIX)) {
                grounds.reaper.discard(&*grounds.scratch, Path::new(&leftover.name), || {})?;
            }
        }
        Ok(grounds)
    }

    /// What was published and still stands, oldest first; anything else in the folder is removed.
    pub(super) fn survey(&self) -> Result<Vec<Standing>, PathError> {
        let mut standing = Vec::new();
        for entry in self.trees.entries()? {
            match entry.name.to_str().and_then(parse_name) {
                Some((digest, generation)) => {
                    standing.push(Standing { digest, generation, name: entry.name.into() });
                }
                None => self.reaper.discard(&*self.trees, Path::new(&entry.name), || {})?,
            }
        }
        standing.sort_unstable_by_key(|tree| tree.generation);
        let next = standing.last().map_or(0, |tree| tree.generation.saturating_add(1));
        self.generations.fetch_max(next, Ordering::Relaxed);
        Ok(standing)
    }

    /// Makes an empty directory to build a tree in, and opens it.
    pub(super) fn break_ground(self: &Arc<Self>, held: Held) -> Result<(Site, Box<dyn Dir>), PathError> {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        let name = PathBuf::from(format!("{SCRATCH_PREFIX}{generation}"));
        self.scratch.make_dir(&name, ROOT_MODE)?;
        let site = Site { grounds: self.clone(), name, is_published: false, held: Some(held) };
        let dir = self.scratch.open_dir(&site.name)?;
        Ok((site, dir))
    }

    /// Takes a standing tree over.
    pub(super) fn adopt(&self, standing: Standing, tree: DirectoryTree, held: Held) -> Entry {
        let path = self.trees_path.join(&standing.name);
        Entry { tree, path, name: standing.name, held }
    }

    /// Removes a standing tree that cannot be taken over. It is out of sight at once: the root may be vouched for next.
    pub(super) fn demolish(&self, standing: &Standing) -> Result<(), PathError> {
        self.reaper.discard(&*self.trees, &standing.name, || {})
    }

    /// Removes an entry in the background that was last used at `moment`; when it is gone, what it held is given back.
    pub(super) fn retire(&self, entry: Arc<Entry>, moment: Moment) {
        entry.held.leave(moment);
        let name = entry.name.clone();
        self.reaper.discard_later(self.trees.clone(), name, move || drop(entry));
    }
}

impl Site {
    /// The directory of the tree, opened anew.
    pub(super) fn open(&self) -> Result<Box<dyn Dir>, PathError> {
        self.grounds.scratch.open_dir(&self.name)
    }

    /// Adds references that the tree needs.
    pub(super) fn hold(&mut self, pins: BlobPins) {
        if let Some(held) = &mut self.held {
            held.pins.push(pins);
        }
    }

    /// Moves the complete tree to where it is found after a restart.
    pub(super) fn publish(&mut self, root: &Digest) -> Result<(), PathError> {
        let generation = self.grounds.generations.fetch_add(1, Ordering::Relaxed);
        let name = PathBuf::from(published_name(root, generation));
        self.grounds.scratch.rename_new(&self.name, &*self.grounds.trees, &name)?;
        self.name = name;
        self.is_published = true;
        Ok(())
    }

    /// Makes an entry of a published tree; one that was not published is undone.
    pub(super) fn into_entry(mut self, tree: DirectoryTree) -> Option<Entry> {
        if !self.is_published {
            return None;
        }
        let held = self.held.take()?;
        let name = std::mem::take(&mut self.name);
        Some(Entry { tree, path: self.grounds.trees_path.join(&name), name, held })
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        let folder = if self.is_published { &self.grounds.trees } else { &self.grounds.scratch };
        let name = std::mem::take(&mut self.name);
        self.grounds.reaper.discard_later(folder.clone(), name, move || drop(held));
    }
}

fn published_name(root: &Digest, generation: u64) -> String {
    format!("{}-{}-{}-{generation}", root.function(), root.hash_hex(), root.size_bytes())
}

fn parse_name(name: &str) -> Option<(Digest, u64)> {
    let mut parts = name.split('-');
    let function = DigestFunction::from_name(parts.next()?)?;
    let (hash, size_bytes) = (parts.next()?, parts.next()?.parse().ok()?);
    let digest = Digest::parse(function, hash, size_bytes).ok()?;
    let generation = parts.next()?.parse().ok()?;
    // A second spelling of the same numbers is none of ours.
    (name == published_name(&digest, generation)).then_some((digest, generation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_trees_lead_back_to_their_digests() {
        for function in DigestFunction::ALL {
            let digest = function.digest(b"tree");
            assert_eq!(parse_name(&published_name(&digest, 12)), Some((digest, 12)));
        }
    }

    #[test]
    fn other_names_are_no_trees() {
        let name = published_name(&DigestFunction::Sha256.digest(b"tree"), 7);
        for other in [format!("{name}-1"), format!("{name}x"), name.replace("-7", "-07"), "tree-1".to_owned()]
        {
            assert_eq!(parse_name(&other), None, "{other}");
        }
    }
}
