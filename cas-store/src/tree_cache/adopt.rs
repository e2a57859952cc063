//! After a restart: the trees that the last owner published are taken over, those that cannot be are removed.

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt as _;

use super::cache::Shared;
use super::load::Loader;
use super::site::{Held, Standing};
use crate::blob::StoreError;
use crate::root::Trust;
use crate::source::NoSource;

/// Trees whose messages are read at the same time.
const ADOPTIONS_AT_ONCE: usize = 8;

/// Takes over what stands.
///
/// A tree is taken over if its messages and blobs are all in the store, so that it is again what it was; nothing
/// is fetched for it. After a crash of the machine none is: a tree cannot be verified as cheaply as it is built.
pub(super) async fn adopt(shared: &Arc<Shared>, trust: Trust) -> Result<(), StoreError> {
    let mut standing = shared.grounds.survey()?;
    // Of two generations the later one is kept; it comes last.
    let mut seen = HashSet::new();
    let mut kept = Vec::new();
    while let Some(tree) = standing.pop() {
        if trust == Trust::Unverified || !seen.insert(tree.digest) {
            shared.grounds.demolish(&tree)?;
        } else {
            kept.push(tree);
        }
    }
    kept.reverse();
    let loader = &shared.loader;
    let mut held = futures::stream::iter(kept)
        .map(|tree| async move { (hold(loader, &tree).await, tree) })
        .buffered(ADOPTIONS_AT_ONCE);
    while let Some((held, tree)) = held.next().await {
        match held {
            Some((directory, held)) => {
                // Not in use: the oldest are evicted if there are more than may stay.
                drop(shared.admit(shared.grounds.adopt(tree, directory, held)));
            }
            None => shared.grounds.demolish(&tree)?,
        }
    }
    Ok(())
}

/// The plan of a standing tree and what it holds, if all of it is here.
async fn hold(loader: &Loader, tree: &Standing) -> Option<(crate::tree::DirectoryTree, Held)> {
    let (directory, parts) =
        loader.load(tree.digest, &NoSource, (), |tree, parts| (tree, parts)).await.ok()?;
    let pins = parts.pin(&loader.store).await.ok()?;
    let charge = loader.store.charge(directory.totals.own_bytes()).await.ok()?;
    Some((directory, Held::new(pins, charge)))
}
