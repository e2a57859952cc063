//! The directories that outputs need: made where they are missing, never outside the input root.

use std::path::PathBuf;

use longshore_cas_store::dir::{Dir, OsDir, Owner, PathError};
use longshore_cas_store::name::RelPath;
use nix::errno::Errno;

use super::MaterializeError;

const PARENT_MODE: u32 = 0o755;

/// Makes the directory `path` below `root`, and those above it. Blocks.
///
/// What exists may be reached through symbolic links of the tree, as long as they stay below `root`.
pub(super) fn make_directories(
    root: &OsDir,
    path: &RelPath,
    owner: Option<Owner>,
) -> Result<(), MaterializeError> {
    let mut dir = root.open_sub(".".as_ref())?;
    let mut prefix = PathBuf::new();
    for name in path.components() {
        prefix.push(&name);
        dir = match root.open_beneath(&prefix) {
            Err(error) if error.errno == Errno::ENOENT => {
                dir.make_dir(name.as_ref(), PARENT_MODE).map_err(|error| in_the_way(path, error))?;
                owner.map_or(Ok(()), |owner| dir.set_owner(name.as_ref(), owner))?;
                dir.open_sub(name.as_ref())?
            }
            opened => opened.map_err(|error| in_the_way(path, error))?,
        };
    }
    Ok(())
}

/// What an input of the tree does to a path, as the client should hear it.
fn in_the_way(path: &RelPath, error: PathError) -> MaterializeError {
    let component = error.path.display();
    let reason = match error.errno {
        Errno::ENOTDIR => format!("{component} is not a directory"),
        Errno::EXDEV => format!("{component} is a symbolic link that leaves the input root"),
        Errno::ELOOP => format!("{component} is a symbolic link that leads nowhere"),
        Errno::EEXIST => format!("{component} is a symbolic link to something that does not exist"),
        _ => return error.into(),
    };
    MaterializeError::Parent { path: path.clone(), reason }
}
