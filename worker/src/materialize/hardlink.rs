//! Input roots as farms of hard links: any file system, any privileges.
//!
//! A cached tree is linked file by file into fresh directories, fork-join by directory. What an action could write
//! through a link is not linked but copied; so are empty files, of which there are more than one inode has
//! links. A tree of which something is missing is lost to its cache, so that the next attempt gets another one.
//!
//! Known differences from private inputs: two inputs with one digest are one inode, so that `cp a b` between them
//! says "same file" and `rename` does nothing; and where actions run as the worker's own user, nothing but
//! their good manners keeps them from changing the mode of an input.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::dir::{Dir, OsDir, Owner, PathError};
use longshore_cas_store::io::IoPool;
use longshore_cas_store::name::RelPath;
use longshore_cas_store::reap::Reaper;
use longshore_cas_store::root::StoreRoot;
use longshore_cas_store::tree::{Directory, DirectoryEntry, FileEntry, Visitor, visit};
use longshore_cas_store::tree_cache::{TreePin, write_private};
use nix::errno::Errno;
use parking_lot::Mutex;

use super::parents::make_directories;
use super::root::Workspace;
use super::{InputRoot, MaterializeError, Materializer};

/// The rights to write, of anybody.
const WRITE_BITS: u32 = 0o222;
/// The rights to read, of everybody.
const READ_BITS: u32 = 0o444;

/// Makes input roots of hard links.
#[derive(Clone, Debug)]
pub struct HardlinkMaterializer {
    workspace: Arc<Workspace>,
    store: Arc<BlobStore>,
    io: IoPool,
}

impl HardlinkMaterializer {
    /// Makes input roots below `root`; they belong to `owner`, where that is another user than ours.
    pub fn new(
        root: &StoreRoot,
        store: Arc<BlobStore>,
        reaper: Arc<Reaper>,
        owner: Option<Owner>,
        io: IoPool,
    ) -> Result<Self, PathError> {
        Ok(Self { workspace: Arc::new(Workspace::open(root, reaper, owner)?), store, io })
    }

    async fn make(&self, tree: TreePin, parents: Vec<RelPath>) -> Result<InputRoot, MaterializeError> {
        let charge = self.store.charge(tree.tree().totals.own_bytes()).await;
        let charge = charge.map_err(|error| tree.holding().judge(error))?;
        let (workspace, store) = (self.workspace.clone(), self.store.clone());
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stops = is_stopped.clone();
        // A caller that leaves does not want the rest.
        let _stop_on_drop = scopeguard::guard(stops, |stops| stops.store(true, Ordering::Relaxed));
        let pin = tree.clone();
        let make = move || {
            let root = workspace.make(tree.clone(), charge)?;
            let planting = Planting { store: &store, owner: workspace.owner(), mtimes: Mutex::default() };
            planting.plant(&tree, root.dir(), &is_stopped)?;
            for parent in &parents {
                make_directories(root.dir(), parent, workspace.owner())?;
            }
            planting.set_mtimes(root.dir())?;
            Ok(root)
        };
        let root = self.io.run(make).await;
        if let Err(MaterializeError::Damaged(_)) = &root {
            pin.lose();
        }
        root
    }
}

impl Materializer for HardlinkMaterializer {
    fn name(&self) -> &'static str {
        "hardlink"
    }

    fn materialize(
        &self,
        tree: TreePin,
        parents: Vec<RelPath>,
    ) -> BoxFuture<'_, Result<InputRoot, MaterializeError>> {
        self.make(tree, parents).boxed()
    }
}

/// One input root being filled.
struct Planting<'a> {
    store: &'a BlobStore,
    owner: Option<Owner>,
    /// Times of directories, which are set when everything is in them.
    mtimes: Mutex<Vec<(PathBuf, SystemTime)>>,
}

/// The same directory in the cached tree and in the input root.
struct Place {
    from: OsDir,
    to: OsDir,
    path: PathBuf,
}

impl Planting<'_> {
    fn plant(&self, tree: &TreePin, to: &OsDir, is_stopped: &AtomicBool) -> Result<(), MaterializeError> {
        // An absolute path, from an open directory: that knows the umask already.
        let from = to.open_sub(tree.path()).map_err(in_tree)?;
        let place = Place { from, to: to.open_sub(Path::new("."))?, path: PathBuf::from(".") };
        let mode = tree.tree().mode();
        if tree.tree().properties.unix_mode.is_some() {
            to.set_mode(Path::new("."), mode)?;
        }
        self.fill(&place, tree.tree())?;
        visit(self, tree.tree(), place, is_stopped)
    }

    fn fill(&self, place: &Place, directory: &Directory) -> Result<(), MaterializeError> {
        for file in &directory.files {
            if is_linkable(file) {
                self.link(place, file)?;
            } else {
                self.copy(place, file)?;
            }
        }
        for link in &directory.symlinks {
            let name = link.name.as_ref();
            place.to.symlink(&link.target, name)?;
            if let Some(mtime) = link.properties.mtime {
                place.to.set_mtime(name, mtime)?;
            }
        }
        if let Some(mtime) = directory.properties.mtime {
            self.mtimes.lock().push((place.path.clone(), mtime));
        }
        Ok(())
    }

    fn link(&self, place: &Place, file: &FileEntry) -> Result<(), MaterializeError> {
        let name = file.name.as_ref();
        match place.from.link(name, &place.to, name) {
            // The inode has no link left; the store's, which it renews, is counted and serves the next ones.
            Err(error) if error.errno == Errno::EMLINK && file.is_shared() => {
                Ok(self.store.link(&file.key, &place.to, name)?)
            }
            Err(error) if error.errno == Errno::ENOENT && place.from.stat(name).is_err() => {
                Err(in_tree(error))
            }
            // Nor has a private one, or the file system has none at all.
            Err(error) if matches!(error.errno, Errno::EMLINK | Errno::EXDEV | Errno::EPERM) => {
                Ok(write_private(self.store, file, &place.to)?)
            }
            linked => Ok(linked?),
        }
    }

    fn copy(&self, place: &Place, file: &FileEntry) -> Result<(), MaterializeError> {
        write_private(self.store, file, &place.to)?;
        match self.owner.filter(|_| file.properties.unix_mode.is_some()) {
            Some(owner) => Ok(place.to.set_owner(file.name.as_ref(), owner)?),
            None => Ok(()),
        }
    }

    fn set_mtimes(self, root: &OsDir) -> Result<(), PathError> {
        self.mtimes.into_inner().iter().try_for_each(|(path, mtime)| root.set_mtime(path, *mtime))
    }
}

impl Visitor for Planting<'_> {
    type Place = Place;
    type Error = MaterializeError;

    fn enter(&self, parent: &Place, child: &DirectoryEntry) -> Result<Place, MaterializeError> {
        let name: &Path = child.name.as_ref();
        parent.to.make_dir(name, child.directory.mode())?;
        if let Some(owner) = self.owner {
            parent.to.set_owner(name, owner)?;
        }
        let (from, to) = (parent.from.open_sub(name).map_err(in_tree)?, parent.to.open_sub(name)?);
        let place = Place { from, to, path: parent.path.join(name) };
        self.fill(&place, &child.directory)?;
        Ok(place)
    }
}

/// What an error on a name of the cached tree means.
fn in_tree(error: PathError) -> MaterializeError {
    if error.errno == Errno::ENOENT { MaterializeError::Damaged(error) } else { error.into() }
}

/// Whether an action can be given a link: it must be able to read the file, and not to write it.
fn is_linkable(file: &FileEntry) -> bool {
    let mode = file.mode();
    file.key.digest.size_bytes() > 0 && mode & WRITE_BITS == 0 && mode & READ_BITS == READ_BITS
}

#[cfg(test)]
mod tests;
