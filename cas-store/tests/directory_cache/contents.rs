//! What stands on the disk is what the messages say.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use longshore_cas_store::blob::blob_mtime;
use longshore_cas_store::digest::Digest;
use longshore_cas_store::source::NoSource;
use longshore_cas_store::tree_cache::TreeError;
use longshore_proto::{protobuf, reapi};

use crate::kit::{FUNCTION, GatedSource, Kit, Room, Tree, child, file};

fn properties(mtime: Option<i64>, mode: Option<u32>) -> reapi::NodeProperties {
    reapi::NodeProperties {
        mtime: mtime.map(|seconds| protobuf::Timestamp { seconds, nanos: 0 }),
        unix_mode: mode.map(|value| protobuf::UInt32Value { value }),
        ..Default::default()
    }
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o7777
}

fn after_1970(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

// Issue 2, To show 5.
#[tokio::test]
async fn files_of_one_digest_and_different_kinds_are_different_inodes() {
    let folder = tempfile::tempdir().unwrap();
    let kit = Kit::standalone(folder.path()).await;
    let mut tree = Tree::default();
    let digest = tree.blob("the same bytes");
    let mut dated = file("dated", digest, false);
    dated.node_properties = Some(properties(Some(1_234_567_890), None));
    let files =
        vec![file("plain", digest, false), file("again", digest, false), file("run", digest, true), dated];
    tree.directory(&reapi::Directory { files, ..Default::default() });
    kit.upload(&tree).await;

    let pin = kit.get(tree.root()).await.unwrap();
    let stat = |name: &str| pin.path().join(name).metadata().unwrap();
    let (plain, run, dated) = (stat("plain"), stat("run"), stat("dated"));
    assert_eq!(plain.ino(), stat("again").ino());
    assert!(plain.ino() != run.ino() && run.ino() != dated.ino() && plain.ino() != dated.ino());
    assert_eq!((plain.mode() & 0o7777, run.mode() & 0o7777, dated.mode() & 0o7777), (0o444, 0o555, 0o444));
    assert_eq!(plain.modified().unwrap(), blob_mtime());
    assert_eq!(run.modified().unwrap(), blob_mtime());
    assert_eq!(dated.modified().unwrap(), after_1970(1_234_567_890));
    let hash = digest.hash_hex();
    let stored = format!("blobs/sha256/{}/{hash}-{}", &hash[..2], digest.size_bytes());
    let stored = folder.path().join(stored).metadata().unwrap();
    assert_eq!((stored.ino(), stored.mode() & 0o7777), (plain.ino(), 0o444));
    assert_eq!(stored.modified().unwrap(), blob_mtime());
    assert_eq!(pin.size_bytes(), 4 * digest.size_bytes());
}

#[tokio::test]
async fn nodes_are_as_the_messages_say() {
    let folder = tempfile::tempdir().unwrap();
    let kit = Kit::standalone(folder.path()).await;
    let mut tree = Tree::default();
    let digest = tree.blob("content");
    let empty = Digest::empty(FUNCTION);
    let mut writable = file("writable", digest, false);
    writable.node_properties = Some(properties(None, Some(0o640)));
    let mut runs = file("runs", digest, true);
    runs.node_properties = Some(properties(None, Some(0o600)));
    let symlink = |name: &str, target: &str, node_properties| reapi::SymlinkNode {
        name: name.to_owned(),
        target: target.to_owned(),
        node_properties,
    };
    let closed = tree.directory(&reapi::Directory {
        files: vec![file("inside", digest, false)],
        node_properties: Some(properties(Some(1_000_000), Some(0o000))),
        ..Default::default()
    });
    tree.directory(&reapi::Directory {
        files: vec![file("empty", empty, false), file("empty-run", empty, true), writable, runs],
        // An empty directory needs no upload.
        directories: vec![child("closed", closed), child("nothing", empty)],
        symlinks: vec![
            symlink("dangling", "../outside/of//everything/", None),
            symlink("dated", "empty", Some(properties(Some(2_000_000), None))),
        ],
        ..Default::default()
    });
    kit.upload(&tree).await;

    let pin = kit.get(tree.root()).await.unwrap();
    let path = |name: &str| pin.path().join(name);
    assert_eq!((mode(&path("empty")), mode(&path("empty-run"))), (0o444, 0o555));
    assert_eq!(path("empty").metadata().unwrap().modified().unwrap(), blob_mtime());
    assert_eq!((mode(&path("writable")), mode(&path("runs"))), (0o640, 0o711));
    assert_eq!(std::fs::read_link(path("dangling")).unwrap().to_str(), Some("../outside/of//everything/"));
    let link = path("dated").symlink_metadata().unwrap();
    assert_eq!(link.modified().unwrap(), after_1970(2_000_000));
    assert_eq!(mode(&path("closed")), 0o700, "nobody is locked out");
    assert_eq!(path("closed").metadata().unwrap().modified().unwrap(), after_1970(1_000_000));
    assert_eq!(std::fs::read_to_string(path("closed/inside")).unwrap(), "content");
    assert_eq!(std::fs::read_dir(path("nothing")).unwrap().count(), 0);
    assert_eq!(mode(pin.path()), 0o755);
}

#[tokio::test]
async fn the_empty_tree_is_there_without_being_uploaded() {
    let folder = tempfile::tempdir().unwrap();
    let kit = Kit::standalone(folder.path()).await;
    let pin = kit.get(Digest::empty(FUNCTION)).await.unwrap();
    assert_eq!(std::fs::read_dir(pin.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn everything_missing_is_named_once_and_sorted() {
    let folder = tempfile::tempdir().unwrap();
    let kit = Kit::open(folder.path(), Arc::new(NoSource), Room::default()).await;
    let mut tree = Tree::wide("tree", 4, 6);
    let lost_directory = tree.blobs.iter().find(|(_, data)| data.len() > 50).map(|(digest, _)| *digest);
    let lost_directory = lost_directory.filter(|digest| *digest != tree.root()).unwrap_or_else(|| {
        *tree.blobs.iter().find(|(digest, data)| data.len() > 50 && **digest != tree.root()).unwrap().0
    });
    let below_lost: Vec<_> = (0..4)
        .flat_map(|number| {
            (0..6).map(move |file| FUNCTION.digest(format!("tree {number} {file}").as_bytes()))
        })
        .collect();
    tree.blobs.remove(&lost_directory);
    for digest in &below_lost {
        tree.blobs.remove(digest);
    }
    kit.upload(&tree).await;
    let error = kit.get(tree.root()).await.unwrap_err();
    let TreeError::Missing { root, missing } = error else { panic!("{error}") };
    assert_eq!(root, tree.root());
    assert!(missing.is_sorted_by(|left, right| left < right));
    // Whatever is below the lost message cannot be known.
    assert_eq!(missing.len(), 1 + 3 * 6);
    assert!(missing.contains(&lost_directory));
    kit.assert_tidy().await;
}

#[tokio::test]
async fn what_lands_late_is_linked_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut tree = Tree::wide("late", 5, 7);
    let shared = tree.blob("late 0 0");
    let source = GatedSource::new(&tree, usize::MAX >> 4);
    let kit = Kit::open(folder.path(), source.clone(), Room::default()).await;
    // Some of it is here.
    kit.store.put(shared, tree.blobs[&shared].clone()).await.unwrap();
    let pin = kit.get(tree.root()).await.unwrap();
    Tree::assert_wide(pin.path(), "late", 5, 7);
    assert_eq!(source.fetches(), tree.blobs.len() - 1);
    kit.assert_tidy().await;
}

// A hundred levels that double each time would be more files than there are atoms.
#[tokio::test]
async fn a_merkle_bomb_is_refused_before_anything_is_created() {
    let folder = tempfile::tempdir().unwrap();
    let kit = Kit::standalone(folder.path()).await;
    let mut tree = Tree::default();
    let mut below = tree.directory(&reapi::Directory::default());
    for _ in 0..100 {
        let directories = vec![child("a", below), child("b", below)];
        below = tree.directory(&reapi::Directory { directories, ..Default::default() });
    }
    kit.upload(&tree).await;
    let error = kit.get(tree.root()).await.unwrap_err();
    assert!(matches!(error, TreeError::Malformed(_)), "{error}");
    kit.assert_tidy().await;
}

#[tokio::test]
async fn a_message_that_is_none_is_the_clients_error() {
    let folder = tempfile::tempdir().unwrap();
    let kit = Kit::standalone(folder.path()).await;
    let mut tree = Tree::default();
    let digest = tree.blob("content");
    tree.directory(&reapi::Directory { files: vec![file("a/b", digest, false)], ..Default::default() });
    kit.upload(&tree).await;
    let error = kit.get(tree.root()).await.unwrap_err();
    assert!(matches!(error, TreeError::Malformed(_)), "{error}");
    kit.assert_tidy().await;
}

#[tokio::test]
async fn messages_of_a_tree_that_was_seen_lately_are_not_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let kit = Kit::open(folder.path(), Arc::new(NoSource), Room { entries_max: 0, ..Room::default() }).await;
    let mut tree = Tree::default();
    let data = tree.blob("data");
    let files = vec![file("file", data, false)];
    tree.root = Some(tree.directory(&reapi::Directory { files, ..Default::default() }));
    kit.upload(&tree).await;
    drop(kit.get(tree.root()).await.unwrap());
    kit.assert_tidy().await;
    let hash = tree.root().hash_hex();
    let message = format!("blobs/sha256/{}/{hash}-{}", &hash[..2], tree.root().size_bytes());
    std::fs::remove_file(folder.path().join(message)).unwrap();
    let pin = kit.get(tree.root()).await.unwrap();
    assert_eq!(kit.cache.stats().constructions, 2);
    assert_eq!(std::fs::read(pin.path().join("file")).unwrap(), b"data");
}

// What was uploaded a moment ago must outlive trees that nobody uses: somebody is about to ask for it.
#[tokio::test]
async fn idle_trees_leave_uploads_their_time() {
    const LIMIT_BYTES: u64 = 1 << 20;
    let home = tempfile::tempdir().unwrap();
    let limits = Room { store_bytes_max: LIMIT_BYTES, ..Room::default() };
    let kit = Kit::open(home.path(), Arc::new(NoSource), limits).await;
    // Four times what fits.
    for seed in 0..20 {
        let tree = Tree::wide(&format!("seed {seed}"), 2, 20);
        kit.upload(&tree).await;
        drop(kit.get(tree.root()).await.unwrap());
    }
    let upload = async |number: u64| {
        let data = number.to_le_bytes().repeat(100);
        let digest = FUNCTION.digest(&data);
        drop(kit.store.put(digest, data.into()).await.unwrap());
        digest
    };
    let first = upload(0).await;
    // An eighth of what fits.
    for number in 1..32 {
        upload(number).await;
    }
    assert_eq!(kit.store.find_missing(&[first]), []);
}

// A tree of which something vanished is of no use to those who come; those who have it may not need what is missing.
#[tokio::test]
async fn a_lost_tree_is_built_anew_and_goes_with_its_last_pin() {
    let folder = tempfile::tempdir().unwrap();
    let kit = Kit::standalone(folder.path()).await;
    let tree = Tree::wide("lost", 2, 3);
    kit.upload(&tree).await;
    let (pin, other) = (kit.get(tree.root()).await.unwrap(), kit.get(tree.root()).await.unwrap());
    let path = pin.path().to_owned();
    std::fs::remove_file(path.join("directory-1/file-2")).unwrap();
    pin.lose();

    let anew = kit.get(tree.root()).await.unwrap();
    assert_ne!(anew.path(), path);
    Tree::assert_wide(anew.path(), "lost", 2, 3);
    // Whoever finds out late does not lose the new one.
    other.lose();
    assert_eq!(kit.get(tree.root()).await.unwrap().path(), anew.path());
    drop(pin);
    kit.reaper.settled().await;
    assert!(path.join("directory-0/file-0").exists(), "it is still in use");
    drop(other);
    kit.assert_tidy().await;
    assert!(!path.exists());
    let stats = kit.cache.stats();
    assert_eq!((stats.constructions, stats.entries, stats.pinned), (2, 1, 1));
}
