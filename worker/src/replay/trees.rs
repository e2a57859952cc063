//! What lies in output folders: two servers may write the same `Tree` in different ways, and a person wants to know
//! which file of a folder differs.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use futures::StreamExt as _;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::tree;
use longshore_proto::Message as _;
use longshore_proto::raw::RawTree;

use super::blobs::LocalBlobs;
use super::outcome::{Outcome, Output};
use super::server::Server;

/// The most entries that a tree is spelled out to.
const ENTRIES_MAX: usize = 100_000;
/// The most trees that are read at once.
const TREES_MAX: usize = 10_000;

/// Replaces folders by what is in them, wherever that can be read for all of `outcomes`.
pub(crate) async fn spell_out<'a>(
    server: &Server,
    blobs: &LocalBlobs,
    outcomes: impl Iterator<Item = &'a mut Outcome>,
) {
    let mut outcomes: Vec<_> = outcomes.collect();
    let trees = |outcome: &&mut Outcome| -> Vec<(String, Digest)> {
        let outputs = outcome.outputs.iter();
        let trees = outputs.filter_map(|(path, output)| match output {
            Output::Tree(digest) => Some((path.clone(), *digest)),
            _ => None,
        });
        trees.collect()
    };
    let named: Vec<_> = outcomes.iter().flat_map(trees).collect();
    let wanted: HashSet<_> = named.iter().map(|(_, digest)| *digest).take(TREES_MAX).collect();
    let contents = read(server, blobs, wanted).await;
    let unread = named.iter().filter(|(_, digest)| !contents.contains_key(digest));
    let unread: HashSet<_> = unread.map(|(path, _)| path.clone()).collect();
    for outcome in &mut outcomes {
        for (path, digest) in trees(outcome) {
            let Some(entries) = contents.get(&digest).filter(|_| !unread.contains(&path)) else { continue };
            outcome.outputs.remove(&path);
            let below = entries.iter().map(|(name, output)| (format!("{path}/{name}"), output.clone()));
            outcome.outputs.extend(below);
        }
    }
}

/// The entries of each tree that can be read.
async fn read(
    server: &Server,
    blobs: &LocalBlobs,
    mut wanted: HashSet<Digest>,
) -> HashMap<Digest, BTreeMap<String, Output>> {
    let mut contents = HashMap::new();
    let mut take = |digest: Digest, message: &Bytes| {
        if let Some(entries) = flatten(digest.function(), message) {
            contents.insert(digest, entries);
        }
    };
    wanted.retain(|digest| match blobs.read(digest) {
        Ok(message) => {
            take(*digest, &message);
            false
        }
        Err(_) => true,
    });
    let mut fetches = server.fetch(wanted.into_iter().collect());
    while let Some(fetched) = fetches.next().await {
        if let Ok(pin) = fetched.outcome
            && let Ok(message) = server.read(&pin).await
        {
            take(fetched.digest, &message);
        }
    }
    contents
}

/// The files, symlinks and empty folders of a `Tree`, by path; nothing if it is none, or too large.
fn flatten(function: DigestFunction, message: &[u8]) -> Option<BTreeMap<String, Output>> {
    let raw = RawTree::decode(message).ok()?;
    let mut directories = HashMap::new();
    let root = function.digest(&raw.root);
    for directory in raw.children.iter().chain([&raw.root]) {
        let digest = function.digest(directory);
        directories.insert(digest, tree::decode(digest, directory).ok()?);
    }
    let mut entries = BTreeMap::new();
    let mut folders = 0;
    let mut pending = vec![(String::new(), root)];
    while let Some((prefix, digest)) = pending.pop() {
        let directory = directories.get(&digest)?;
        folders += 1;
        let below = |name: &longshore_cas_store::name::NodeName| format!("{prefix}{}", name.as_str());
        for file in &directory.files {
            let output = Output::File { digest: file.key.digest, executable: file.key.executable };
            entries.insert(below(&file.name), output);
        }
        for symlink in &directory.symlinks {
            entries.insert(below(&symlink.name), Output::Symlink(symlink.target.to_string()));
        }
        for child in &directory.directories {
            pending.push((format!("{}/", below(&child.name)), child.digest));
        }
        let is_empty = directory.files.is_empty() && directory.symlinks.is_empty();
        if is_empty && directory.directories.is_empty() {
            entries.insert(prefix, Output::Directory(digest));
        }
        if entries.len() + pending.len() + folders > ENTRIES_MAX {
            return None;
        }
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use longshore_proto::reapi;

    use super::*;

    const FUNCTION: DigestFunction = DigestFunction::Sha256;

    fn child(name: &str, directory: &reapi::Directory) -> reapi::DirectoryNode {
        let digest = FUNCTION.digest(&directory.encode_to_vec());
        reapi::DirectoryNode { name: name.to_owned(), digest: Some(digest.to_wire()) }
    }

    // The order of a tree's children is the server's own.
    #[test]
    fn the_order_of_children_does_not_matter() {
        let file = reapi::FileNode {
            name: "f".to_owned(),
            digest: Some(FUNCTION.digest(b"f").to_wire()),
            is_executable: true,
            ..Default::default()
        };
        let inner = reapi::Directory { files: vec![file], ..Default::default() };
        let empty = reapi::Directory::default();
        let root = reapi::Directory {
            directories: vec![child("a", &inner), child("b", &empty)],
            symlinks: vec![reapi::SymlinkNode {
                name: "s".to_owned(),
                target: "a/f".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let tree = |children| reapi::Tree { root: Some(root.clone()), children }.encode_to_vec();
        let one = tree(vec![inner.clone(), empty.clone()]);
        let other = tree(vec![empty.clone(), inner.clone(), inner]);
        let entries = flatten(FUNCTION, &one).unwrap();
        assert_eq!(entries.keys().collect::<Vec<_>>(), ["a/f", "b/", "s"]);
        assert_eq!(entries["a/f"], Output::File { digest: FUNCTION.digest(b"f"), executable: true });
        assert_ne!(one, other);
        assert_eq!(flatten(FUNCTION, &other), Some(entries));
        assert_eq!(flatten(FUNCTION, &tree(vec![empty])), None, "a child is missing");
        assert_eq!(flatten(FUNCTION, b"\xff"), None);
    }

    // A small message can name more files than there are atoms.
    #[test]
    fn a_tree_that_is_too_large_is_left_as_it_is() {
        let mut children = vec![reapi::Directory::default()];
        for _ in 0..40 {
            let last = children.last().unwrap();
            let directories = vec![child("a", last), child("b", last)];
            children.push(reapi::Directory { directories, ..Default::default() });
        }
        let root = children.pop();
        assert_eq!(flatten(FUNCTION, &reapi::Tree { root, children }.encode_to_vec()), None);
    }
}
