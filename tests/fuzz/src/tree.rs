//! `Tree` messages: what is linked has the size that it would have if it were written out.

use std::collections::HashMap;
use std::iter;
use std::sync::Arc;

use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::tree::{Decoded, Directory, TreeLimits, decode, link};
use longshore_proto::raw::RawTree;
use longshore_proto::{Message as _, reapi};

const FUNCTION: DigestFunction = DigestFunction::Sha256;

/// Checks one input.
pub fn check(data: &[u8]) {
    let Ok(raw) = RawTree::decode(data) else {
        assert!(reapi::Tree::decode(data).is_err(), "as a Tree it is fine");
        return;
    };
    assert_eq!(RawTree::decode(&raw.encode_to_vec()[..]).as_ref(), Ok(&raw));
    let decode = |message: &Vec<u8>| {
        let digest = FUNCTION.digest(message);
        decode(digest, message).ok().map(|decoded| (digest, decoded))
    };
    let directories: Option<HashMap<Digest, Decoded>> =
        iter::once(&raw.root).chain(&raw.children).map(decode).collect();
    let Some(directories) = directories else { return };
    let linked = link_all(directories.clone());
    // What lacks a child is not linked, and neither is what lies above it.
    for (digest, decoded) in &directories {
        let is_whole = decoded.directories.iter().all(|child| linked.contains_key(&child.digest));
        assert_eq!(linked.contains_key(digest), is_whole);
    }
    if let Some(root) = linked.get(&FUNCTION.digest(&raw.root)) {
        has_the_size_it_expands_to(root);
    }
}

/// Links every directory whose children are there, in whatever order that takes.
fn link_all(mut rest: HashMap<Digest, Decoded>) -> HashMap<Digest, Arc<Directory>> {
    let mut linked = HashMap::new();
    loop {
        let before = linked.len();
        rest.retain(|digest, decoded| match link(decoded.clone(), &linked) {
            Ok(directory) => {
                linked.insert(*digest, directory);
                false
            }
            Err(absent) => {
                assert!(!linked.contains_key(&absent), "{absent} is there");
                true
            }
        });
        if linked.len() == before {
            return linked;
        }
    }
}

/// What a tree has when every directory is counted as often as it is named.
#[derive(Clone, Copy, Default)]
struct Expanded {
    files: u128,
    directories: u128,
    symlinks: u128,
    size_bytes: u128,
    depth: u128,
}

fn has_the_size_it_expands_to(root: &Arc<Directory>) {
    let expanded = expand(root, &mut HashMap::new());
    let totals = &root.totals;
    let saturated = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
    assert_eq!(totals.files, saturated(expanded.files));
    assert_eq!(totals.directories, saturated(expanded.directories));
    assert_eq!(totals.symlinks, saturated(expanded.symlinks));
    assert_eq!(totals.size_bytes, saturated(expanded.size_bytes));
    assert_eq!(totals.depth, saturated(expanded.depth));
    let limits = TreeLimits::default();
    let fits = totals.nodes() <= limits.nodes_max
        && totals.size_bytes <= limits.size_bytes_max
        && totals.depth <= limits.depth_max
        && totals.path_len <= limits.path_len_max;
    assert_eq!(limits.check(root).is_ok(), fits);
}

fn expand(directory: &Arc<Directory>, known: &mut HashMap<Digest, Expanded>) -> Expanded {
    if let Some(expanded) = known.get(&directory.digest) {
        return *expanded;
    }
    let sizes = directory.files.iter().map(|file| u128::from(file.key.digest.size_bytes()));
    let mut expanded = Expanded {
        files: directory.files.len() as u128,
        directories: 1,
        symlinks: directory.symlinks.len() as u128,
        size_bytes: sizes.sum(),
        depth: 1,
    };
    for child in &directory.directories {
        let below = expand(&child.directory, known);
        expanded.files = expanded.files.saturating_add(below.files);
        expanded.directories = expanded.directories.saturating_add(below.directories);
        expanded.symlinks = expanded.symlinks.saturating_add(below.symlinks);
        expanded.size_bytes = expanded.size_bytes.saturating_add(below.size_bytes);
        expanded.depth = expanded.depth.max(below.depth + 1);
    }
    known.insert(directory.digest, expanded);
    expanded
}
