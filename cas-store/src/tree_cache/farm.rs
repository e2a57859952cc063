//! A plan written out as directories and links, fork-join by directory.
//!
//! Every call names one component below an open directory, so nothing is ever created outside. Modes are set at
//! creation; only properties of directories wait for the end, because what is created in a directory changes
//! its time.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use super::site::Site;
use crate::blob::{BlobStore, StoreError};
use crate::digest::Digest;
use crate::dir::Dir;
use crate::tree::{Directory, DirectoryEntry, FileEntry, NodeProperties, Visitor, visit};

/// The mode of a directory while it is written out.
const MODE_WHILE_BUILT: u32 = 0o755;

/// Writes trees out; files of blobs that are `absent` are left for later.
pub(super) struct Farm<'a> {
    store: &'a BlobStore,
    absent: &'a HashSet<Digest>,
    rest: Mutex<Rest>,
}

/// What is still to be done when every directory is there.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// The files of blobs that were absent.
    files: HashMap<Digest, Vec<(Arc<Path>, FileEntry)>>,
    /// Directories with properties of their own, by their paths.
    directories: Vec<(PathBuf, u32, NodeProperties)>,
}

/// An open directory, and its path from the root of the tree.
pub(super) struct Place {
    dir: Box<dyn Dir>,
    path: PathBuf,
}

impl<'a> Farm<'a> {
    pub(super) fn new(store: &'a BlobStore, absent: &'a HashSet<Digest>) -> Self {
        Self { store, absent, rest: Mutex::default() }
    }

    /// Writes `tree` out in the empty directory `dir`. Blocks; call on the pool.
    pub(super) fn write(
        self,
        tree: &Directory,
        dir: Box<dyn Dir>,
        is_stopped: &AtomicBool,
    ) -> Result<Rest, StoreError> {
        let place = Place { dir, path: PathBuf::from(".") };
        self.fill(&place, tree)?;
        visit(&self, tree, place, is_stopped)?;
        Ok(self.rest.into_inner())
    }

    fn fill(&self, place: &Place, directory: &Directory) -> Result<(), StoreError> {
        let mut absent = Vec::new();
        for file in &directory.files {
            if self.absent.is_empty() || !self.absent.contains(&file.key.digest) {
                plant(self.store, file, &*place.dir)?;
            } else {
                absent.push(file);
            }
        }
        for link in &directory.symlinks {
            let name = link.name.as_ref();
            place.dir.symlink(&link.target, name)?;
            if let Some(mtime) = link.properties.mtime {
                place.dir.set_mtime(name, mtime)?;
            }
        }
        if !absent.is_empty() || !directory.properties.is_empty() {
            self.postpone(place, directory, &absent);
        }
        Ok(())
    }

    fn postpone(&self, place: &Place, directory: &Directory, absent: &[&FileEntry]) {
        let path: Arc<Path> = place.path.as_path().into();
        let mut rest = self.rest.lock();
        for file in absent {
            rest.files.entry(file.key.digest).or_default().push((path.clone(), (*file).clone()));
        }
        if !directory.properties.is_empty() {
            rest.directories.push((place.path.clone(), directory.mode(), directory.properties));
        }
    }
}

impl Visitor for Farm<'_> {
    type Place = Place;
    type Error = StoreError;

    fn enter(&self, parent: &Place, child: &DirectoryEntry) -> Result<Place, StoreError> {
        let name: &Path = child.name.as_ref();
        parent.dir.make_dir(name, MODE_WHILE_BUILT)?;
        let place = Place { dir: parent.dir.open_dir(name)?, path: parent.path.join(name) };
        self.fill(&place, &child.directory)?;
        Ok(place)
    }
}

impl Rest {
    /// Writes the files of blobs that are here by now, in the tree that stands in `dir`. Blocks.
    pub(super) fn plant(
        &mut self,
        store: &BlobStore,
        landed: &[Digest],
        dir: &dyn Dir,
    ) -> Result<(), StoreError> {
        let files: Vec<_> = landed.iter().filter_map(|digest| self.files.remove(digest)).flatten().collect();
        files.into_par_iter().try_for_each(|(path, file)| plant(store, &file, &*dir.open_dir(&path)?))
    }

    /// Gives directories their properties, when all that belongs in them is there. Blocks.
    pub(super) fn finish(self, site: &Site) -> Result<(), StoreError> {
        debug_assert!(self.files.is_empty(), "files are still absent");
        if self.directories.is_empty() {
            return Ok(());
        }
        let dir = site.open()?;
        for (path, mode, properties) in self.directories {
            if mode != MODE_WHILE_BUILT {
                dir.set_mode(&path, mode)?;
            }
            if let Some(mtime) = properties.mtime {
                dir.set_mtime(&path, mtime)?;
            }
        }
        Ok(())
    }
}

/// Writes one file of a tree: a name for a shared inode, or an inode of its own.
fn plant(store: &BlobStore, file: &FileEntry, dir: &dyn Dir) -> Result<(), StoreError> {
    if file.is_shared() {
        store.link(&file.key, dir, file.name.as_ref())
    } else {
        write_private(store, file, dir)
    }
}

/// Writes `file` as an inode that nothing else has a name for. Blocks; the blob must be pinned.
pub fn write_private(store: &BlobStore, file: &FileEntry, dir: &dyn Dir) -> Result<(), StoreError> {
    let name = file.name.as_ref();
    store.copy(&file.key.digest, dir, name, file.mode())?;
    Ok(dir.set_mtime(name, file.mtime())?)
}
