//! A directory whose operations fail on demand.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use nix::errno::Errno;
use parking_lot::Mutex;

use crate::dir::{Dir, DirEntry, Op, OsDir, Owner, PathError, Stat};

/// What is to fail.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Plan>);

#[derive(Debug, Default)]
struct Plan {
    /// The next operations of a kind, so many of them.
    next: Option<(Op, Errno, usize)>,
    /// The operation after so many others, of whatever kind.
    countdown: Option<usize>,
    has_no_unnamed_files: bool,
}

impl Faults {
    /// Lets the next `op` fail.
    pub(crate) fn fail_next(&self, op: Op, errno: Errno) {
        self.0.lock().next = Some((op, errno, 1));
    }

    /// Lets the next two `op` fail.
    pub(crate) fn fail_twice(&self, op: Op, errno: Errno) {
        self.0.lock().next = Some((op, errno, 2));
    }

    /// Lets one operation fail with `EIO`, after `count` others.
    pub(crate) fn fail_after(&self, count: usize) {
        self.0.lock().countdown = Some(count);
    }

    /// Lets nothing fail; whether a fault was still to come.
    pub(crate) fn clear(&self) -> bool {
        let mut plan = self.0.lock();
        plan.next.take().is_some() | plan.countdown.take().is_some()
    }

    /// Becomes a file system without unnamed files.
    pub(crate) fn refuse_unnamed_files(&self) {
        self.0.lock().has_no_unnamed_files = true;
    }

    fn check(&self, op: Op, path: &Path) -> Result<(), PathError> {
        let mut plan = self.0.lock();
        let error = |errno| Err(PathError { op, path: path.to_owned(), errno });
        match plan.countdown {
            Some(0) => {
                plan.countdown = None;
                return error(Errno::EIO);
            }
            Some(count) => plan.countdown = Some(count - 1),
            None => {}
        }
        match plan.next {
            Some((next, errno, count)) if next == op => {
                plan.next = (count > 1).then_some((next, errno, count - 1));
                error(errno)
            }
            _ => Ok(()),
        }
    }
}

/// A directory of the operating system with [`Faults`].
pub(crate) struct FaultyDir {
    dir: Box<dyn Dir>,
    faults: Arc<Faults>,
}

impl FaultyDir {
    pub(crate) fn new(path: &Path, faults: Arc<Faults>) -> Self {
        Self { dir: Box::new(OsDir::open(path).unwrap()), faults }
    }
}

impl Dir for FaultyDir {
    fn fd(&self) -> BorrowedFd<'_> {
        self.dir.fd()
    }

    fn open_dir(&self, path: &Path) -> Result<Box<dyn Dir>, PathError> {
        self.faults.check(Op::Open, path)?;
        Ok(Box::new(Self { dir: self.dir.open_dir(path)?, faults: self.faults.clone() }))
    }

    fn make_dir(&self, path: &Path, mode: u32) -> Result<(), PathError> {
        self.faults.check(Op::MakeDir, path)?;
        self.dir.make_dir(path, mode)
    }

    fn open_file(&self, path: &Path) -> Result<File, PathError> {
        self.faults.check(Op::Open, path)?;
        self.dir.open_file(path)
    }

    fn create_file(&self, path: &Path, mode: u32) -> Result<File, PathError> {
        self.faults.check(Op::Create, path)?;
        self.dir.create_file(path, mode)
    }

    fn create_unnamed(&self, mode: u32) -> Result<File, PathError> {
        let path = Path::new(".");
        if self.faults.0.lock().has_no_unnamed_files {
            return Err(PathError { op: Op::Create, path: path.to_owned(), errno: Errno::EOPNOTSUPP });
        }
        self.faults.check(Op::Create, path)?;
        self.dir.create_unnamed(mode)
    }

    fn link(&self, path: &Path, to: &dyn Dir, to_path: &Path) -> Result<(), PathError> {
        self.faults.check(Op::Link, to_path)?;
        self.dir.link(path, to, to_path)
    }

    fn link_file(&self, file: &File, path: &Path) -> Result<(), PathError> {
        self.faults.check(Op::Link, path)?;
        self.dir.link_file(file, path)
    }

    fn symlink(&self, target: &str, path: &Path) -> Result<(), PathError> {
        self.faults.check(Op::Symlink, path)?;
        self.dir.symlink(target, path)
    }

    fn rename(&self, path: &Path, to: &dyn Dir, to_path: &Path) -> Result<(), PathError> {
        self.faults.check(Op::Rename, to_path)?;
        self.dir.rename(path, to, to_path)
    }

    fn rename_new(&self, path: &Path, to: &dyn Dir, to_path: &Path) -> Result<(), PathError> {
        self.faults.check(Op::Rename, to_path)?;
        self.dir.rename_new(path, to, to_path)
    }

    fn remove_file(&self, path: &Path) -> Result<(), PathError> {
        self.faults.check(Op::Remove, path)?;
        self.dir.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> Result<(), PathError> {
        self.faults.check(Op::Remove, path)?;
        self.dir.remove_dir(path)
    }

    fn stat(&self, path: &Path) -> Result<Stat, PathError> {
        self.faults.check(Op::Stat, path)?;
        self.dir.stat(path)
    }

    fn read_link(&self, path: &Path) -> Result<OsString, PathError> {
        self.faults.check(Op::ReadLink, path)?;
        self.dir.read_link(path)
    }

    fn entries(&self) -> Result<Vec<DirEntry>, PathError> {
        self.faults.check(Op::List, Path::new("."))?;
        self.dir.entries()
    }

    fn set_mode(&self, path: &Path, mode: u32) -> Result<(), PathError> {
        self.faults.check(Op::SetMode, path)?;
        self.dir.set_mode(path, mode)
    }

    fn set_owner(&self, path: &Path, owner: Owner) -> Result<(), PathError> {
        self.faults.check(Op::SetOwner, path)?;
        self.dir.set_owner(path, owner)
    }

    fn set_mtime(&self, path: &Path, mtime: SystemTime) -> Result<(), PathError> {
        self.faults.check(Op::SetTime, path)?;
        self.dir.set_mtime(path, mtime)
    }
}
