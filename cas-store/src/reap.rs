//! Removal in the background: a rename into the trash now, the unlinking later.

use std::path::Path;
use std::sync::Arc;

use crate::dir::{Dir, PathError};
use crate::io::Environment;
use crate::root::StoreRoot;

/// Removes folders in the background, whatever an action left in them.
#[derive(Debug)]
pub struct Reaper {
    _private: (),
}

impl Reaper {
    /// Opens the trash of `root` and begins to remove what a crash left in it.
    pub fn open(root: &StoreRoot, environment: Environment) -> Result<Arc<Self>, PathError> {
        todo!("{root:?} {environment:?}")
    }

    /// Renames `name` away at once, removes it in the background, and then runs `after`.
    ///
    /// `after` is where references are given back: bytes count as freed when the last name is gone.
    pub fn discard(
        &self,
        dir: &dyn Dir,
        name: &Path,
        after: impl FnOnce() + Send + 'static,
    ) -> Result<(), PathError> {
        drop(after);
        todo!("{name:?} {:?}", dir.fd())
    }

    /// Completes when everything discarded so far is gone.
    pub async fn settled(&self) {
        todo!()
    }
}
