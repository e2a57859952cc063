use std::collections::HashMap;

use longshore_proto::{Message as _, reapi};
use proptest::prelude::*;

use super::*;
use crate::digest::DigestFunction;

const FUNCTION: DigestFunction = DigestFunction::Sha256;

/// A directory by the sizes of its files and the numbers of its children, which are lower than its own.
#[derive(Clone, Debug)]
struct Plan {
    files: Vec<u16>,
    children: Vec<prop::sample::Index>,
    symlinks: usize,
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let children = prop::collection::vec(any::<prop::sample::Index>(), 0..3);
    let plan = (prop::collection::vec(any::<u16>(), 0..3), children, 0..2usize)
        .prop_map(|(files, children, symlinks)| Plan { files, children, symlinks });
    prop::collection::vec(plan, 1..7)
}

fn message(plan: &Plan, digests: &[Digest]) -> Vec<u8> {
    let files = plan.files.iter().enumerate().map(|(number, size)| reapi::FileNode {
        name: format!("file-{number}"),
        digest: Some(FUNCTION.digest(&vec![0; usize::from(*size)]).to_wire()),
        ..Default::default()
    });
    let children = plan.children.iter().filter(|_| !digests.is_empty()).enumerate();
    let directories = children.map(|(number, child)| reapi::DirectoryNode {
        name: format!("directory-{number}"),
        digest: Some(child.get(digests).to_wire()),
    });
    let symlinks = (0..plan.symlinks).map(|number| reapi::SymlinkNode {
        name: format!("link-{number}"),
        target: "file-0".to_owned(),
        ..Default::default()
    });
    reapi::Directory {
        files: files.collect(),
        directories: directories.collect(),
        symlinks: symlinks.collect(),
        node_properties: None,
    }
    .encode_to_vec()
}

/// Links every plan; the last one is the root.
fn build(plans: &[Plan]) -> DirectoryTree {
    let mut linked = HashMap::new();
    let mut digests = Vec::new();
    for plan in plans {
        let message = message(plan, &digests);
        let digest = FUNCTION.digest(&message);
        let directory = link(decode(digest, &message).unwrap(), &linked).unwrap();
        linked.insert(digest, directory);
        digests.push(digest);
    }
    linked[digests.last().unwrap()].clone()
}

/// Walks the tree as if nothing in it were shared.
fn expand(directory: &Directory, prefix: &str, levels: u64, totals: &mut Totals) {
    totals.directories += 1;
    totals.depth = totals.depth.max(levels);
    let mut see =
        |name: &NodeName| totals.path_len = totals.path_len.max((prefix.len() + name.as_str().len()) as u64);
    directory.files.iter().for_each(|file| see(&file.name));
    directory.symlinks.iter().for_each(|link| see(&link.name));
    directory.directories.iter().for_each(|child| see(&child.name));
    totals.files += directory.files.len() as u64;
    totals.symlinks += directory.symlinks.len() as u64;
    totals.size_bytes += directory.files.iter().map(|file| file.key.digest.size_bytes()).sum::<u64>();
    for child in &directory.directories {
        expand(&child.directory, &format!("{prefix}{}/", child.name), levels + 1, totals);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    // What a tree expands to is known without expanding it.
    #[test]
    fn totals_are_those_of_the_expanded_tree(plans in plans()) {
        let tree = build(&plans);
        let mut expected = Totals::default();
        expand(&tree, "", 1, &mut expected);
        prop_assert_eq!(tree.totals, expected);
    }

    // A limit that is exactly met is kept; one less is exceeded.
    #[test]
    fn limits_bound_what_they_name(plans in plans()) {
        let tree = build(&plans);
        let totals = tree.totals;
        let exact = TreeLimits {
            nodes_max: totals.nodes(),
            size_bytes_max: totals.size_bytes,
            depth_max: totals.depth,
            path_len_max: totals.path_len,
            ..TreeLimits::default()
        };
        prop_assert_eq!(exact.check(&tree), Ok(()));
        let tighter = [
            TreeLimits { nodes_max: totals.nodes() - 1, ..exact },
            TreeLimits { depth_max: totals.depth - 1, ..exact },
        ];
        for limits in tighter {
            prop_assert!(limits.check(&tree).is_err());
        }
    }

    // Bytes from outside are refused or parsed, never more.
    #[test]
    fn any_bytes_are_a_directory_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let digest = FUNCTION.digest(&bytes);
        if let Ok(decoded) = decode(digest, &bytes) {
            prop_assert_eq!(decoded.digest, digest);
        }
    }

    // However a good message is damaged, no name that leaves its directory comes through.
    #[test]
    fn a_damaged_message_has_no_dangerous_names(
        plans in plans(),
        at in any::<prop::sample::Index>(),
        byte in prop::sample::select(b"/.\0a\xff".to_vec()),
    ) {
        let mut bytes = message(plans.last().unwrap(), &[]);
        if bytes.is_empty() {
            return Ok(());
        }
        *at.get_mut(&mut bytes) = byte;
        if let Ok(decoded) = decode(FUNCTION.digest(&bytes), &bytes) {
            let names = decoded.files.iter().map(|file| &file.name);
            let names = names.chain(decoded.symlinks.iter().map(|link| &link.name));
            for name in names {
                let text = name.as_str();
                prop_assert!(!text.contains(['/', '\0']) && !matches!(text, "" | "." | ".."));
            }
        }
    }
}

// A tree that doubles a hundred times has more nodes than fit in any number; they saturate.
#[test]
fn a_merkle_bomb_is_refused_by_arithmetic() {
    let mut linked = HashMap::new();
    let mut digest = Digest::empty(FUNCTION);
    linked.insert(digest, link(decode(digest, &[]).unwrap(), &linked).unwrap());
    for _ in 0..100 {
        let child = |name: &str| reapi::DirectoryNode { name: name.into(), digest: Some(digest.to_wire()) };
        let directories = vec![child("a"), child("b")];
        let message = reapi::Directory { directories, ..Default::default() }.encode_to_vec();
        digest = FUNCTION.digest(&message);
        linked.insert(digest, link(decode(digest, &message).unwrap(), &linked).unwrap());
    }
    let error = TreeLimits::default().check(&linked[&digest]).unwrap_err();
    let MalformedTree::TooLarge { root, measure, value, .. } = error else { panic!("{error}") };
    assert_eq!((root, measure, value), (digest, "nodes", u64::MAX));
}

#[test]
fn what_reapi_calls_executable_is_whatever_its_mode_says() {
    let mode = |executable, unix_mode| {
        let key = FileKey { digest: FUNCTION.digest(b"x"), executable };
        let properties = NodeProperties { mtime: None, unix_mode };
        FileEntry { name: NodeName::parse("x").unwrap(), key, properties }.mode()
    };
    assert_eq!((mode(false, None), mode(true, None)), (0o444, 0o555));
    assert_eq!((mode(false, Some(0o640)), mode(true, Some(0o640))), (0o640, 0o751));
}
