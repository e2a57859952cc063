//! Directory-relative file operations: the only file-system system calls of the crate.
//!
//! A [`Dir`] is an open directory. Every operation takes a path relative to it and never follows a symbolic
//! link in the last component; callers that pass single names ([`NodeName`](crate::name::NodeName)) therefore
//! cannot leave it, whatever an action or a client put there. [`OsDir`] is the real one; tests wrap it to
//! inject faults.

mod error;
pub(crate) mod file;
mod os;

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::SystemTime;

use nix::errno::Errno;

pub use error::{Op, PathError, PathErrorExt};
pub use os::OsDir;

/// An open directory.
///
/// Object safe, so that a store holds `Box<dyn Dir>`: a virtual call is nothing beside a system call.
pub trait Dir: Send + Sync + 'static {
    /// The descriptor, for calls that take two directories. It may be opened with `O_PATH`.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Opens the directory `path`. Refuses a symbolic link (`ENOTDIR`).
    fn open_dir(&self, path: &Path) -> Result<Box<dyn Dir>, PathError>;

    /// Creates a directory with exactly `mode`, whatever the umask.
    fn make_dir(&self, path: &Path, mode: u32) -> Result<(), PathError>;

    /// Opens a file for reading. Refuses a symbolic link (`ELOOP`) and never blocks on a FIFO.
    fn open_file(&self, path: &Path) -> Result<File, PathError>;

    /// Creates a file that must not exist, opened for writing, with exactly `mode`, whatever the umask.
    fn create_file(&self, path: &Path, mode: u32) -> Result<File, PathError>;

    /// Creates a file without a name, opened for reading and writing, with exactly `mode`, whatever the umask.
    ///
    /// [`Dir::link_file`] names it; unnamed, it is gone when it is closed. `EOPNOTSUPP` where the file system has
    /// no such files.
    fn create_unnamed(&self, _mode: u32) -> Result<File, PathError> {
        Err(PathError { op: Op::Create, path: ".".into(), errno: Errno::EOPNOTSUPP })
    }

    /// Gives the inode at `path` a second name in `to`. Does not follow a symbolic link.
    fn link(&self, path: &Path, to: &dyn Dir, to_path: &Path) -> Result<(), PathError>;

    /// Gives an open file (also one that has no name) a name here. `EEXIST` if the name is taken.
    fn link_file(&self, file: &File, path: &Path) -> Result<(), PathError>;

    /// Creates a symbolic link.
    fn symlink(&self, target: &str, path: &Path) -> Result<(), PathError>;

    /// Renames within and between directories of one file system, replacing what is there.
    fn rename(&self, path: &Path, to: &dyn Dir, to_path: &Path) -> Result<(), PathError>;

    /// Like [`Dir::rename`], but `EEXIST` if the new name is taken.
    fn rename_new(&self, path: &Path, to: &dyn Dir, to_path: &Path) -> Result<(), PathError>;

    /// Removes a file or a symbolic link.
    fn remove_file(&self, path: &Path) -> Result<(), PathError>;

    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> Result<(), PathError>;

    /// What is at `path`, a symbolic link itself included.
    fn stat(&self, path: &Path) -> Result<Stat, PathError>;

    /// The target of a symbolic link.
    fn read_link(&self, path: &Path) -> Result<std::ffi::OsString, PathError>;

    /// The names in the directory with their kinds, `.` and `..` left out, in no order.
    fn entries(&self) -> Result<Vec<DirEntry>, PathError>;

    /// Sets the permission bits of a file or directory; not for symbolic links.
    fn set_mode(&self, path: &Path, mode: u32) -> Result<(), PathError>;

    /// Sets the owner, of a symbolic link itself too.
    fn set_owner(&self, path: &Path, owner: Owner) -> Result<(), PathError>;

    /// Sets the modification time, of a symbolic link itself too; the access time with it.
    fn set_mtime(&self, path: &Path, mtime: SystemTime) -> Result<(), PathError>;
}

/// Who owns a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What kind of thing a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO, socket or device.
    Special,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name as the kernel has it: any bytes.
    pub name: std::ffi::OsString,
    /// What it names.
    pub kind: FileKind,
}

/// What `fstatat` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What kind of thing it is.
    pub kind: FileKind,
    /// Permission bits, within 0o7777.
    pub mode: u32,
    /// Length in bytes.
    pub size_bytes: u64,
    /// What it occupies on the disk, in bytes.
    pub disk_bytes: u64,
    /// Number of names.
    pub links: u64,
    /// Inode number.
    pub inode: u64,
    /// Device number.
    pub device: u64,
    /// Who owns it.
    pub owner: Owner,
    /// Modification time.
    pub mtime: SystemTime,
}
