//! From a cached tree to the action's own, writable input root.

use std::fs::File;
use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use longshore_cas_store::blob::StoreError;
use longshore_cas_store::dir::{OsDir, PathError};
use longshore_cas_store::name::RelPath;
use longshore_cas_store::tree_cache::TreePin;

/// Makes input roots.
///
/// Invariants that every implementation keeps:
/// 1. the action finds exactly the tree, and may create, replace and delete anything in it;
/// 2. nothing that the action does there changes the store or another action's root;
/// 3. every directory is writable by the action, whatever user it runs as.
pub trait Materializer: Send + Sync + 'static {
    /// Its name in logs: `hardlink`, `overlay` or `image`.
    fn name(&self) -> &'static str;

    /// Makes a root for one action out of `tree`, with the directories `parents` in it as well.
    fn materialize(
        &self,
        tree: TreePin,
        parents: Vec<RelPath>,
    ) -> BoxFuture<'_, Result<InputRoot, MaterializeError>>;
}

/// Why there is no input root.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MaterializeError {
    /// A directory that outputs need cannot be created: the client's error.
    #[error("cannot create {path:?}: {reason}")]
    Parent {
        /// The directory, relative to the input root.
        path: RelPath,
        /// What is in the way.
        reason: String,
    },
    /// The disk failed or is full.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file operation failed.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// An action's folder: its input root, and beside it the files for stdout and stderr.
///
/// It owns the pin of its tree. When dropped, the folder is handed to the reaper, which removes it in the
/// background and then gives the pin back.
#[derive(Debug)]
pub struct InputRoot {
    _private: (),
}

impl InputRoot {
    /// The input root, an absolute path.
    pub fn path(&self) -> &Path {
        todo!()
    }

    /// The input root, open.
    pub fn dir(&self) -> &OsDir {
        todo!()
    }

    /// The action's folder, which holds the input root and the logs: the place of `stdout` and `stderr`.
    pub fn folder(&self) -> &OsDir {
        todo!()
    }

    /// Creates the file for one of the action's streams in the folder, open for writing and reading.
    pub fn create_log(&self, name: &str) -> Result<File, PathError> {
        todo!("{name}")
    }

    /// Where the folder stands.
    pub fn folder_path(&self) -> PathBuf {
        todo!()
    }
}
