//! Opening directories that an action left behind: never outside its folder, and whatever their modes.

use std::path::Path;

use longshore_cas_store::dir::{OsDir, PathError};
use nix::errno::Errno;

/// Opens the directory `path` below `root`, giving the owner back what the action took from itself on the way.
pub(super) fn reach(root: &OsDir, path: &Path) -> Result<OsDir, PathError> {
    match root.open_beneath(path) {
        Err(error) if error.errno == Errno::EACCES => {
            root.unlock()?;
            let mut above: Vec<_> = path.ancestors().skip(1).collect();
            above.reverse();
            for prefix in above {
                root.open_beneath(prefix)?.unlock()?;
            }
            root.open_beneath(path)
        }
        opened => opened,
    }
}

/// Does `operation` in `dir`, once more after unlocking it if that is what is in the way.
pub(super) fn unlocking<T, E: Denied>(
    dir: &OsDir,
    operation: impl Fn(&OsDir) -> Result<T, E>,
) -> Result<T, E> {
    match operation(dir) {
        Err(error) if error.is_denied() => {
            dir.unlock()?;
            operation(dir)
        }
        done => done,
    }
}

/// An error that can tell whether permissions are its cause.
pub(super) trait Denied: From<PathError> {
    fn is_denied(&self) -> bool;
}

impl Denied for PathError {
    fn is_denied(&self) -> bool {
        self.errno == Errno::EACCES
    }
}

impl Denied for longshore_cas_store::blob::StoreError {
    fn is_denied(&self) -> bool {
        matches!(self, Self::Path(error) if error.is_denied())
    }
}
