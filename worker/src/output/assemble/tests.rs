use std::path::PathBuf;
use std::time::SystemTime;

use longshore_cas_store::dir::{FileKind, Owner};
use proptest::prelude::*;

use super::super::find::FoundFile;
use super::*;

const FUNCTION: DigestFunction = DigestFunction::Sha256;

fn stat(kind: FileKind, mode: u32) -> Stat {
    Stat {
        kind,
        mode,
        size_bytes: 0,
        disk_bytes: 0,
        links: 1,
        inode: 0,
        device: 0,
        owner: Owner { uid: 0, gid: 0 },
        mtime: SystemTime::UNIX_EPOCH,
    }
}

/// An inventory with the files' modes and the directories' entries.
fn inventory(modes: &[u32], directories: Vec<Vec<(&str, Node)>>) -> Inventory {
    let file = |mode: &u32| FoundFile {
        parent: PathBuf::new(),
        name: "f".into(),
        stat: stat(FileKind::File, *mode),
    };
    let directory = |entries: Vec<(&str, Node)>| FoundDirectory {
        stat: stat(FileKind::Directory, 0o755),
        parent: None,
        entries: entries.into_iter().map(|(name, node)| (name.to_owned(), node)).collect(),
    };
    let mut inventory = Inventory {
        files: modes.iter().map(file).collect(),
        directories: directories.into_iter().map(directory).collect(),
        ..Inventory::default()
    };
    for index in 0..inventory.directories.len() {
        for (_, node) in inventory.directories[index].entries.clone() {
            if let Node::Directory(child) = node {
                inventory.directories[child].parent = Some(index);
            }
        }
    }
    inventory
}

fn link(target: &str) -> Link {
    Link { target: target.to_owned(), mtime: SystemTime::UNIX_EPOCH }
}

fn tree_of(inventory: &Inventory, root: usize) -> (Blob, reapi::Tree) {
    let digests: Vec<_> =
        (0..inventory.files.len()).map(|index| FUNCTION.digest(&index.to_le_bytes())).collect();
    let mut assembler = Assembler::new(inventory, &digests, FUNCTION, ReportedProperties::default());
    let blob = assembler.tree(root);
    let tree = reapi::Tree::decode(blob.data.clone()).unwrap();
    (blob, tree)
}

// ODR-02: the bytes and the digest are what every other implementation gives.
#[test]
fn an_empty_directory_is_two_bytes() {
    let (blob, _) = tree_of(&inventory(&[], vec![vec![]]), 0);
    assert_eq!(&blob.data[..], [0x0a, 0]);
    let expected = "102b51b9765a56a3e899f7cf0ee38e5251f9c503b357b330a49183eb7b155604";
    assert_eq!(blob.digest.hash_hex(), expected);
}

// OUT-23: any execute bit counts.
#[test]
fn executables_are_marked() {
    let modes = [0o644, 0o010, 0o001, 0o755];
    let entries = vec![
        ("a", Node::File(0)),
        ("b", Node::File(1)),
        ("c", Node::File(2)),
        ("d", Node::File(3)),
        ("e", Node::Link(link("../x"))),
    ];
    let (_, tree) = tree_of(&inventory(&modes, vec![entries]), 0);
    let root = tree.root.unwrap();
    let executable: Vec<_> = root.files.iter().map(|file| file.is_executable).collect();
    assert_eq!(executable, [false, true, true, true]);
    assert_eq!(root.symlinks[0].target, "../x");
}

// A link that is reported as what it leads to must not make a tree endless.
#[test]
fn a_link_upwards_stays_a_link() {
    let directories = vec![
        vec![("sub", Node::Directory(1))],
        vec![
            ("up", Node::DirectoryLink(0, link("/root/d"))),
            ("side", Node::DirectoryLink(2, link("/root/e"))),
        ],
        vec![("back", Node::DirectoryLink(1, link("/root/d/sub")))],
    ];
    let inventory = inventory(&[], directories);
    // From every end: from above, from the link's own directory, and from beside.
    for root in 0..3 {
        let (_, tree) = tree_of(&inventory, root);
        let all: Vec<_> = tree.root.iter().chain(&tree.children).collect();
        assert!(all.iter().any(|directory| !directory.symlinks.is_empty()), "from {root}: {tree:?}");
        assert!(all.iter().any(|directory| !directory.directories.is_empty()), "from {root}: {tree:?}");
    }
}

/// Checks REAPI's conditions on a sorted `Tree`, and yields the digests of its directories in order.
fn check_tree(tree: &reapi::Tree) -> Vec<Digest> {
    let directories: Vec<_> = tree.root.iter().chain(&tree.children).collect();
    let digests: Vec<_> =
        directories.iter().map(|directory| FUNCTION.digest(&directory.encode_to_vec())).collect();
    let distinct: HashSet<_> = digests.iter().collect();
    assert_eq!(distinct.len(), digests.len(), "a directory twice");
    let mut mentioned = HashSet::from([digests[0]]);
    for (position, directory) in directories.iter().enumerate() {
        assert!(mentioned.contains(&digests[position]), "a directory that nothing before it names");
        let names: Vec<_> = directory.directories.iter().map(|node| &node.name).collect();
        assert!(names.is_sorted(), "{names:?}");
        for node in &directory.directories {
            let child = Digest::from_wire(FUNCTION, node.digest.as_ref()).unwrap();
            let at = digests.iter().position(|digest| *digest == child).expect("every child is in the tree");
            assert!(at > position, "a child before one of its parents");
            mentioned.insert(child);
        }
    }
    digests
}

/// Directories where each one names only later ones, so that there is no cycle; content repeats a lot.
fn any_directories() -> impl Strategy<Value = Vec<Vec<(String, usize)>>> {
    let names = proptest::collection::btree_map("[ab.é-]{1,2}", 1_usize..4, 0..4);
    proptest::collection::vec(names, 1..9).prop_map(|directories| {
        let count = directories.len();
        let resolve = |(index, entries): (usize, std::collections::BTreeMap<String, usize>)| {
            entries
                .into_iter()
                .map(|(name, step)| (name, index + step))
                .filter(|(_, child)| *child < count)
                .collect()
        };
        directories.into_iter().enumerate().map(resolve).collect()
    })
}

/// The naive model: unfolds everything, and counts what is distinct.
fn unfold(directories: &[Vec<(String, usize)>], index: usize, all: &mut HashSet<Digest>) -> Digest {
    let nodes = directories[index].iter().map(|(name, child)| reapi::DirectoryNode {
        name: name.clone(),
        digest: Some(unfold(directories, *child, all).to_wire()),
    });
    let message = reapi::Directory { directories: nodes.collect(), ..Default::default() };
    let digest = FUNCTION.digest(&message.encode_to_vec());
    all.insert(digest);
    digest
}

proptest! {
    // ODR-01, ODR-03, ODR-04, DIR-10.
    #[test]
    fn trees_are_sorted_and_have_every_directory_once(directories in any_directories()) {
        let build = || {
            let entries = directories.iter().map(|entries| {
                entries
                    .iter()
                    .map(|(name, child)| (name.as_str(), Node::DirectoryLink(*child, link("/x"))))
                    .collect()
            });
            tree_of(&inventory(&[], entries.collect()), 0)
        };
        let (blob, tree) = build();
        let digests = check_tree(&tree);
        prop_assert_eq!(&build().0.data, &blob.data);

        let mut all = HashSet::new();
        let root = unfold(&directories, 0, &mut all);
        prop_assert_eq!(root, digests[0]);
        prop_assert_eq!(all, digests.into_iter().collect::<HashSet<_>>());
    }
}
