//! File-system errors that say operation, path and cause.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// A file-system operation, as it is named in an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Opening a directory or file.
    Open,
    /// Creating a file.
    Create,
    /// Creating a directory.
    MakeDir,
    /// Creating a second name.
    Link,
    /// Creating a symbolic link.
    Symlink,
    /// Renaming.
    Rename,
    /// Removing a file or directory.
    Remove,
    /// Reading metadata.
    Stat,
    /// Reading the target of a symbolic link.
    ReadLink,
    /// Listing a directory.
    List,
    /// Reading bytes.
    Read,
    /// Writing bytes.
    Write,
    /// Copying bytes between files.
    Copy,
    /// Setting permission bits.
    SetMode,
    /// Setting the owner.
    SetOwner,
    /// Setting times.
    SetTime,
    /// Locking a file.
    Lock,
    /// Writing back to the disk.
    Sync,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Create => "create",
            Self::MakeDir => "make directory",
            Self::Link => "link",
            Self::Symlink => "make symbolic link",
            Self::Rename => "rename",
            Self::Remove => "remove",
            Self::Stat => "stat",
            Self::ReadLink => "read link",
            Self::List => "list",
            Self::Read => "read",
            Self::Write => "write",
            Self::Copy => "copy",
            Self::SetMode => "set mode of",
            Self::SetOwner => "set owner of",
            Self::SetTime => "set time of",
            Self::Lock => "lock",
            Self::Sync => "sync",
        })
    }
}

/// A file-system operation that failed.
///
/// The errno and not an `io::Error`, so that one error can be delivered to many waiters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {op} {}: {}", .path.display(), .errno.desc())]
pub struct PathError {
    /// What was attempted.
    pub op: Op,
    /// On what; relative to a directory that the caller knows, or absolute.
    pub path: PathBuf,
    /// Why it failed.
    pub errno: Errno,
}

/// Adds operation and path to a bare error.
pub trait PathErrorExt<T> {
    /// Says what was attempted on what.
    fn at(self, op: Op, path: impl AsRef<Path>) -> Result<T, PathError>;
}

impl<T> PathErrorExt<T> for nix::Result<T> {
    fn at(self, op: Op, path: impl AsRef<Path>) -> Result<T, PathError> {
        self.map_err(|errno| PathError { op, path: path.as_ref().to_owned(), errno })
    }
}

impl<T> PathErrorExt<T> for io::Result<T> {
    fn at(self, op: Op, path: impl AsRef<Path>) -> Result<T, PathError> {
        self.map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            PathError { op, path: path.as_ref().to_owned(), errno }
        })
    }
}
