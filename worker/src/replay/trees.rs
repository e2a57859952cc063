//! What lies in output folders: two servers may write the same `Tree` in different ways, and a person wants to know
//! which file of a folder differs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::tree;
use longshore_proto::Message as _;
use longshore_proto::raw::RawTree;

use super::outcome::{Outcome, Output};

/// The most entries that a tree is spelled out to.
const ENTRIES_MAX: usize = 100_000;

/// What is in a folder, by path from there.
pub(crate) type Entries = BTreeMap<String, Output>;

/// The trees at each path at which `outcomes` do not all have the same one.
pub(crate) fn differing(outcomes: &[&Outcome]) -> BTreeMap<String, BTreeSet<Digest>> {
    let mut trees: BTreeMap<String, BTreeSet<Digest>> = BTreeMap::new();
    for (path, output) in outcomes.iter().flat_map(|outcome| &outcome.outputs) {
        if let Output::Tree(digest) = output {
            trees.entry(path.clone()).or_default().insert(*digest);
        }
    }
    trees.retain(|path, _| {
        let mut there = outcomes.iter().map(|outcome| outcome.outputs.get(path));
        let first = there.next();
        there.any(|other| Some(other) != first)
    });
    trees
}

/// Replaces the folder at `path` by what differs in it: what all `outcomes` have there is left out.
pub(crate) fn spell_out(path: &str, contents: &HashMap<Digest, Entries>, outcomes: &mut [&mut Outcome]) {
    let folder = |outcome: &Outcome| match outcome.outputs.get(path) {
        Some(Output::Tree(digest)) => contents.get(digest),
        _ => None,
    };
    let folders: Vec<_> = outcomes.iter().map(|outcome| folder(outcome)).collect();
    let is_common = |name: &String, output: &Output| {
        folders.iter().all(|entries| entries.is_some_and(|entries| entries.get(name) == Some(output)))
    };
    for (outcome, entries) in outcomes.iter_mut().zip(&folders) {
        let Some(entries) = entries else { continue };
        outcome.outputs.remove(path);
        let differing = entries.iter().filter(|(name, output)| !is_common(name, output));
        outcome.outputs.extend(differing.map(|(name, output)| (format!("{path}/{name}"), output.clone())));
    }
}

/// The files, symlinks and empty folders of a `Tree`, by path; nothing if it is none, or too large.
pub(crate) fn flatten(function: DigestFunction, message: &[u8]) -> Option<Entries> {
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

    fn outcome(outputs: &[(&str, Output)]) -> Outcome {
        let outputs = outputs.iter().map(|(path, output)| ((*path).to_owned(), output.clone())).collect();
        Outcome { status: tonic::Code::Ok, exit_code: 0, outputs }
    }

    // What takes memory is what differs, however large the folders are.
    #[test]
    fn only_what_differs_is_spelled_out() {
        let [one, other, same] = [&b"one"[..], b"other", b"same"].map(|data| FUNCTION.digest(data));
        let file = |digest| Output::File { digest, executable: false };
        let with = |tree| outcome(&[("d", Output::Tree(tree)), ("e", Output::Tree(same)), ("f", file(tree))]);
        let mut outcomes = [with(one), with(other), outcome(&[("e", Output::Tree(same))])];
        let wanted = differing(&outcomes.each_ref());
        assert_eq!(wanted, BTreeMap::from([("d".to_owned(), BTreeSet::from([one, other]))]));
        assert_eq!(differing(&[&outcomes[0], &outcomes[0].clone()]), BTreeMap::new());

        let entries = |own| {
            let entries = [("own".to_owned(), file(own)), ("same".to_owned(), file(same))];
            (own, BTreeMap::from(entries))
        };
        let contents = HashMap::from([one, other].map(entries));
        let [first, second, third] = &mut outcomes;
        spell_out("d", &contents, &mut [first, second]);
        assert_eq!(first.outputs.keys().collect::<Vec<_>>(), ["d/own", "e", "f"]);
        assert_eq!(second.outputs["d/own"], file(other));
        let mut whole = with(one);
        spell_out("d", &contents, &mut [&mut whole, third]);
        assert_eq!(whole.outputs.keys().collect::<Vec<_>>(), ["d/own", "d/same", "e", "f"]);
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
