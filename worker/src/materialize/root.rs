//! The folder that an action runs in: its input root, and beside it the files for stdout and stderr.
//!
//! `work/<id>` is passable and not listable; `<id>` cannot be guessed, so no action finds another's folder. `root`
//! belongs to the action's user, and so do the two files, which it is started with and can reopen (`/dev/stdout`). In
//! the folder itself it can change nothing, where that user is another than ours.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longshore_cas_store::blob::Charge;
use longshore_cas_store::dir::{Dir, Op, OsDir, Owner, PathError, PathErrorExt};
use longshore_cas_store::reap::Reaper;
use longshore_cas_store::root::StoreRoot;
use longshore_cas_store::tree_cache::TreePin;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

const FOLDER_MODE: u32 = 0o711;
const ROOT_MODE: u32 = 0o755;
const LOG_MODE: u32 = 0o600;

const ROOT_NAME: &str = "root";

/// Where actions' folders are made and removed.
#[derive(Debug)]
pub(super) struct Workspace {
    dir: Arc<OsDir>,
    path: PathBuf,
    reaper: Arc<Reaper>,
    /// The user that actions run as, where that is another than ours.
    owner: Option<Owner>,
}

/// An action's folder: its input root, and beside it the files for stdout and stderr.
///
/// It owns the pin of its tree. When dropped, the folder is handed to the reaper, which removes it in the
/// background and then gives the pin back.
#[derive(Debug)]
pub struct InputRoot {
    folder: Folder,
    /// The folder, open.
    folder_dir: OsDir,
    root: OsDir,
    root_path: PathBuf,
}

/// A folder that exists, and what is given back when it is gone.
#[derive(Debug)]
struct Folder {
    workspace: Arc<Workspace>,
    name: PathBuf,
    held: Option<(TreePin, Charge)>,
}

impl Drop for Folder {
    fn drop(&mut self) {
        let held = self.held.take();
        let name = std::mem::take(&mut self.name);
        self.workspace.reaper.discard_work_later(self.workspace.dir.clone(), name, move || drop(held));
    }
}

impl Workspace {
    pub(super) fn open(
        root: &StoreRoot,
        reaper: Arc<Reaper>,
        owner: Option<Owner>,
    ) -> Result<Self, PathError> {
        let path = root.path().join("work");
        Ok(Self { dir: Arc::new(root.dir().open_sub(Path::new("work"))?), path, reaper, owner })
    }

    /// The user that actions run as, where that is another than ours.
    pub(super) fn owner(&self) -> Option<Owner> {
        self.owner
    }

    /// Makes a folder with an empty input root. Blocks.
    pub(super) fn make(self: &Arc<Self>, tree: TreePin, charge: Charge) -> Result<InputRoot, PathError> {
        let name = PathBuf::from(uuid::Uuid::new_v4().simple().to_string());
        self.dir.make_dir(&name, FOLDER_MODE)?;
        let root_path = self.path.join(&name).join(ROOT_NAME);
        let folder = Folder { workspace: self.clone(), name, held: Some((tree, charge)) };
        let dir = self.dir.open_sub(&folder.name)?;
        let root = Path::new(ROOT_NAME);
        dir.make_dir(root, ROOT_MODE)?;
        self.owner.map_or(Ok(()), |owner| dir.set_owner(root, owner))?;
        let root = dir.open_sub(root)?;
        Ok(InputRoot { folder, folder_dir: dir, root, root_path })
    }
}

impl InputRoot {
    /// The input root, an absolute path.
    pub fn path(&self) -> &Path {
        &self.root_path
    }

    /// The input root, open.
    pub fn dir(&self) -> &OsDir {
        &self.root
    }

    /// The folder around the input root, open: the place of `stdout` and `stderr`.
    pub fn folder(&self) -> &OsDir {
        &self.folder_dir
    }

    /// The tree that it was made of.
    pub fn tree(&self) -> Option<&TreePin> {
        self.folder.held.as_ref().map(|(tree, _)| tree)
    }

    /// Creates the file for one of the action's streams in the folder, open for writing and reading.
    pub fn create_log(&self, name: &str) -> Result<File, PathError> {
        // Who opens `/dev/stdout` again has a position of its own: neither writes over what the other one wrote.
        let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(LOG_MODE);
        let file = nix::fcntl::openat(self.folder_dir.fd(), name, flags, mode).at(Op::Create, name)?;
        if let Some(owner) = self.folder.workspace.owner {
            // Reopening by `/dev/stdout` asks for the right to write the file, not to reach its name.
            self.folder_dir.set_owner(Path::new(name), owner)?;
        }
        Ok(file.into())
    }

    /// Where the folder stands.
    pub fn folder_path(&self) -> PathBuf {
        self.folder.workspace.path.join(&self.folder.name)
    }
}
