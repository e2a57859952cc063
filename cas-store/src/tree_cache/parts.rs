//! What a tree is made of: each of its distinct directories once, with all their files.

use std::collections::HashSet as Digests;

use hashbrown::HashSet;

use crate::blob::{BlobPins, BlobStore, Holding, PinTreeError, StoreError};
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

    /// Fails if `store` can never hold a tree of these parts with `own_bytes` of its own.
    pub(super) fn check_fit(&self, store: &BlobStore, own_bytes: u64) -> Result<(), StoreError> {
        let disk_bytes = |digest: &Digest| store.space.layout.disk_bytes(digest.size_bytes());
        let inodes = |key: &FileKey| 1 + u64::from(key.executable);
        let files = self.keys.iter().map(|key| disk_bytes(&key.digest).saturating_mul(inodes(key)));
        let directories = self.directories.iter().map(disk_bytes);
        let bytes_max = directories.chain(files).fold(own_bytes, u64::saturating_add);
        // What fits with all its doubles need not have them sorted out.
        let with_doubles = Holding::new(store, bytes_max).check(0);
        with_doubles.or_else(|_| self.holding(store, own_bytes).check(0))
    }

    /// What a tree of these parts holds of `store` with `own_bytes` of its own.
    pub(super) fn holding(&self, store: &BlobStore, own_bytes: u64) -> Holding {
        let mut holding = Holding::new(store, own_bytes);
        self.directories.iter().for_each(|digest| holding.add(digest));
        self.keys.iter().for_each(|key| holding.add_file(key));
        holding
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
