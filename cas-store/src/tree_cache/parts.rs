//! What a tree is made of: each of its distinct directories once, with all their files.

use std::collections::HashSet as Digests;

use hashbrown::HashSet;

use crate::blob::{BlobPins, BlobStore, PinTreeError};
use crate::digest::{Digest, FileKey};
use crate::tree::Directory;

/// The blobs that a tree needs: its messages and its files. The empty blob is not among them.
///
/// A file may be there more than once: references are counted, and sorting the doubles out costs more than taking
/// some twice.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) directories: Vec<Digest>,
    pub(super) keys: Vec<FileKey>,
}

impl Parts {
    /// Collects the parts of `tree`, visiting shared nodes once.
    pub(super) fn of(tree: &Directory) -> Self {
        let mut directories = HashSet::<Digest>::new();
        let mut keys = Vec::new();
        directories.insert(tree.digest);
        let mut left = vec![tree];
        while let Some(directory) = left.pop() {
            for file in directory.files.iter().filter(|file| !file.key.digest.is_empty()) {
                // A private copy is made of the plain blob.
                let executable = file.key.executable && file.is_shared();
                keys.push(FileKey { executable, ..file.key });
            }
            let children = directory.directories.iter().map(|child| &*child.directory);
            left.extend(children.filter(|child| directories.insert(child.digest)));
        }
        directories.retain(|digest| !digest.is_empty());
        Self { directories: directories.into_iter().collect(), keys }
    }

    /// The parts whose blobs are (or are not) among `digests`.
    pub(super) fn select(&self, digests: &Digests<Digest>, are_among: bool) -> Self {
        let is_selected = |digest: &Digest| digests.contains(digest) == are_among;
        Self {
            directories: self.directories.iter().copied().filter(is_selected).collect(),
            keys: self.keys.iter().copied().filter(|key| is_selected(&key.digest)).collect(),
        }
    }

    /// Pins all of them, if they are here.
    pub(super) fn pin_now(&self, store: &BlobStore) -> Option<BlobPins> {
        store.pin_tree_now(&self.directories, &self.keys)
    }

    /// Pins all of them.
    pub(super) async fn pin(&self, store: &BlobStore) -> Result<BlobPins, PinTreeError> {
        store.pin_tree(&self.directories, &self.keys).await
    }
}
