//! The removal of one part of the trash, slice by slice, whatever is in it.
//!
//! Depth does not matter: the levels are a list, not a recursion, and a directory below [`LEVELS_MAX`] of them
//! is moved to the top of the trash as a part of its own. So neither the stack nor the number of descriptors
//! grows with a tree, and no path is ever longer than a name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

use super::{OPEN_MODE, Part, Shared, Whole};
use crate::dir::{Dir, DirEntry, FileKind, PathError};

/// Levels of directories that are open at once.
const LEVELS_MAX: usize = 32;

/// Levels whose directories may be given to another thread.
const FORK_LEVELS_MAX: usize = 2;

/// What a directory has at most that is removed where it is. An action's folder has its root and its two logs.
const SHALLOW_ENTRIES_MAX: usize = 8;

/// A removal under way. It never gives up halfway: what cannot go is counted and passed over.
pub(super) struct Removal {
    name: PathBuf,
    whole: Arc<Whole>,
    is_begun: bool,
    /// The open directories, outermost first.
    levels: Vec<Level>,
    first_error: Option<PathError>,
    failures: u64,
}

struct Level {
    dir: Box<dyn Dir>,
    /// Its name in the level above, or in the trash.
    name: PathBuf,
    /// What is still in it.
    entries: Vec<DirEntry>,
}

impl Removal {
    pub(super) fn new(part: Part) -> Self {
        let Part { name, whole } = part;
        Self { name, whole, is_begun: false, levels: Vec::new(), first_error: None, failures: 0 }
    }

    /// Removes up to `names_max` names; whether that was the last of them.
    pub(super) fn remove_slice(&mut self, shared: &Arc<Shared>, names_max: usize) -> bool {
        for _ in 0..names_max {
            let outcome = if self.is_begun {
                match self.levels.last_mut().map(|level| level.entries.pop()) {
                    None => return true,
                    Some(None) => self.leave(shared),
                    Some(Some(entry)) => self.remove_entry(shared, &entry),
                }
            } else {
                self.is_begun = true;
                self.begin(shared)
            };
            if let Err(error) = outcome {
                self.failures += 1;
                self.first_error.get_or_insert(error);
            }
        }
        false
    }

    /// Reports what could not go.
    pub(super) fn finish(self) {
        if let Some(error) = self.first_error {
            let failures = self.failures;
            tracing::warn!(%error, failures, "something in the trash cannot be removed; it stays there");
        }
    }

    fn begin(&mut self, shared: &Shared) -> Result<(), PathError> {
        let name = self.name.clone();
        match self.enter(shared, &name) {
            Err(error) if error.errno == Errno::ENOTDIR => unless_gone(shared.trash.remove_file(&name)),
            outcome => outcome,
        }
    }

    fn remove_entry(&mut self, shared: &Arc<Shared>, entry: &DirEntry) -> Result<(), PathError> {
        let name = Path::new(&entry.name);
        if entry.kind != FileKind::Directory {
            return self.with_access(shared, |dir| unless_gone(dir.remove_file(name)));
        }
        let is_deep = self.levels.len() == LEVELS_MAX;
        if is_deep || self.levels.len() <= FORK_LEVELS_MAX && shared.has_idle_job() {
            let name = self.with_access(shared, |dir| shared.bury(dir, name))?;
            shared.enqueue(Part { name, whole: self.whole.clone() });
            return Ok(());
        }
        self.enter(shared, name)
    }

    /// Opens the directory `name` of the innermost level.
    fn enter(&mut self, shared: &Shared, name: &Path) -> Result<(), PathError> {
        let dir = self.with_access(shared, |parent| parent.open_dir(name))?;
        let entries = match dir.entries() {
            Err(error) if error.errno == Errno::EACCES => {
                self.with_access(shared, |parent| parent.set_mode(name, OPEN_MODE))?;
                dir.entries()?
            }
            entries => entries?,
        };
        self.levels.push(Level { dir, name: name.to_owned(), entries });
        Ok(())
    }

    /// Removes the innermost level, which was emptied as far as it could be.
    fn leave(&mut self, shared: &Shared) -> Result<(), PathError> {
        let Some(Level { dir, name, .. }) = self.levels.pop() else { return Ok(()) };
        drop(dir);
        self.with_access(shared, |parent| unless_gone(parent.remove_dir(&name)))
    }

    /// Does something in the innermost level, if need be after giving ourselves the right to.
    fn with_access<T>(
        &self,
        shared: &Shared,
        operation: impl Fn(&dyn Dir) -> Result<T, PathError>,
    ) -> Result<T, PathError> {
        let (parents, Some(level)) = (self.levels.iter().rev().nth(1), self.levels.last()) else {
            return operation(&*shared.trash);
        };
        match operation(&*level.dir) {
            Err(error) if error.errno == Errno::EACCES => {
                let parent = parents.map_or(&*shared.trash, |parent| &*parent.dir);
                parent.set_mode(&level.name, OPEN_MODE)?;
                operation(&*level.dir)
            }
            outcome => outcome,
        }
    }
}

/// Removes a directory with a few files and empty directories; whether it was one. Of another, some may be gone.
pub(super) fn remove_shallow(parent: &dyn Dir, name: &Path) -> Result<bool, PathError> {
    let dir = parent.open_dir(name)?;
    let entries = dir.entries()?;
    if entries.len() > SHALLOW_ENTRIES_MAX {
        return Ok(false);
    }
    for entry in entries {
        let name = Path::new(&entry.name);
        match entry.kind {
            FileKind::Directory => dir.remove_dir(name)?,
            _ => dir.remove_file(name)?,
        }
    }
    drop(dir);
    parent.remove_dir(name).map(|()| true)
}

/// What is gone already needs no removal.
fn unless_gone(outcome: Result<(), PathError>) -> Result<(), PathError> {
    match outcome {
        Err(error) if error.errno == Errno::ENOENT => Ok(()),
        outcome => outcome,
    }
}
