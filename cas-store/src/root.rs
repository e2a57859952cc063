//! Who owns a folder of data, and whether what lies there can be trusted.

use std::path::{Path, PathBuf};

use crate::dir::{OsDir, PathError};

/// A folder of data that this process alone uses, until it is dropped.
#[derive(Debug)]
pub struct StoreRoot {
    path: PathBuf,
    dir: OsDir,
    trust: Trust,
}

/// What the last owner left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Nothing: the folder is new.
    Fresh,
    /// It stopped cleanly, or was killed since this boot: all that was published is whole.
    Trusted,
    /// The machine went down under it: verify before first use.
    Unverified,
}

/// Why a folder cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RootError {
    /// Another process uses it.
    #[error("{} is in use by another longshore{}", .path.display(), .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Held {
        /// The folder.
        path: PathBuf,
        /// Who uses it, where it said so.
        pid: Option<u32>,
    },
    /// It was written by a version with another layout.
    #[error("{} has format {found:?}, this longshore reads {expected:?}", .path.display())]
    Format {
        /// The folder.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What we write.
        expected: String,
    },
    /// A file operation failed.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl StoreRoot {
    /// Creates the folder if need be, and takes it for this process.
    pub fn claim(path: &Path) -> Result<Self, RootError> {
        todo!("{path:?}")
    }

    /// Where it is: an absolute path without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder itself.
    pub fn dir(&self) -> &OsDir {
        &self.dir
    }

    /// What the last owner left behind.
    pub fn trust(&self) -> Trust {
        self.trust
    }

    /// Marks a clean stop: everything is written back first. Blocks.
    pub fn release(self) -> Result<(), RootError> {
        todo!()
    }
}
