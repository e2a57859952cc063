//! Where a symbolic link leads, as long as that is inside the action's folder.
//!
//! The kernel follows the links in the middle of a path, and only while they are relative and stay below the
//! root. The last component is followed here, because an absolute link names the root by the path under which
//! the action knew it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use longshore_cas_store::dir::{Dir as _, FileKind, Stat};

use super::ActionFolder;
use super::reach::{reach, unlocking};

/// The most links that are followed one after another, as the kernel has it.
const LINKS_MAX: usize = 40;

/// What a chain of links ends at: no link itself.
#[derive(Debug)]
pub(super) struct LinkEnd {
    /// Where it is, relative to the root.
    pub(super) path: PathBuf,
    /// What it is.
    pub(super) stat: Stat,
}

/// Follows the link in the directory `from` with that target; nothing if it dangles or leads out.
pub(super) fn follow(folder: &ActionFolder, from: &Path, target: &OsStr) -> Option<LinkEnd> {
    let mut path = inside(folder, from, target)?;
    for _ in 0..LINKS_MAX {
        let Some(name) = path.file_name().map(OsString::from) else {
            let dir = reach(&folder.root, &path).ok()?;
            let stat = unlocking(&dir, |dir| dir.stat(Path::new("."))).ok()?;
            return Some(LinkEnd { path, stat });
        };
        let parent = path.parent().unwrap_or(Path::new("")).to_owned();
        let dir = reach(&folder.root, &parent).ok()?;
        let stat = unlocking(&dir, |dir| dir.stat(Path::new(&name))).ok()?;
        if stat.kind != FileKind::Symlink {
            return Some(LinkEnd { path, stat });
        }
        path = inside(folder, &parent, &dir.read_link(Path::new(&name)).ok()?)?;
    }
    None
}

/// The path that a target names, relative to the root; it may still climb out, which opening it refuses.
fn inside(folder: &ActionFolder, from: &Path, target: &OsStr) -> Option<PathBuf> {
    let target = Path::new(target);
    if target.is_absolute() {
        return target.strip_prefix(&folder.path).ok().map(Path::to_owned);
    }
    Some(from.join(target))
}
