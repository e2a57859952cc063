//! From a cached tree to the action's own, writable input root.
//!
//! One trait, an implementation a technique: [`hardlink`] works on any file system and with any privileges. What
//! they share: [`root`], the folder that an action runs in and that is undone by being dropped, and [`parents`],
//! the directories that outputs need.
//!
//! The module does not know what runs in an input root, nor how outputs are found in it.

mod hardlink;
mod parents;
mod root;

use futures::future::BoxFuture;
use longshore_cas_store::blob::StoreError;
use longshore_cas_store::dir::PathError;
use longshore_cas_store::name::RelPath;
use longshore_cas_store::tree_cache::TreePin;

pub use hardlink::HardlinkMaterializer;
pub use root::InputRoot;

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
    /// Something is missing in the cached tree, which its cache has forgotten: another attempt gets another tree.
    #[error("the input tree is damaged: {0}")]
    Damaged(PathError),
    /// The disk failed or is full.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file operation failed.
    #[error(transparent)]
    Path(#[from] PathError),
}
