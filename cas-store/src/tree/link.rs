//! Decoded messages to one linked tree.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use super::{Decoded, Directory, DirectoryEntry, Totals};
use crate::digest::Digest;

/// Links `decoded` with its children, which must be linked already.
///
/// # Errors
/// The digest of the first child that `linked` lacks.
pub fn link<S: BuildHasher>(
    decoded: Decoded,
    linked: &HashMap<Digest, Arc<Directory>, S>,
) -> Result<Arc<Directory>, Digest> {
    let directories = decoded
        .directories
        .into_iter()
        .map(|child| match linked.get(&child.digest) {
            Some(directory) => Ok(DirectoryEntry { name: child.name, directory: directory.clone() }),
            None => Err(child.digest),
        })
        .collect::<Result<Box<[_]>, _>>()?;
    let totals = Totals::of(&decoded.files, &directories, &decoded.symlinks);
    Ok(Arc::new(Directory {
        digest: decoded.digest,
        files: decoded.files.into(),
        directories,
        symlinks: decoded.symlinks.into(),
        properties: decoded.properties,
        totals,
    }))
}
