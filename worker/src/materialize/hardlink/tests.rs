use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::Duration;

use bytes::Bytes;
use longshore_cas_store::blob::StoreOptions;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::io::Environment;
use longshore_cas_store::source::{BlobSource, NoSource};
use longshore_cas_store::tree::TreeLimits;
use longshore_cas_store::tree_cache::{
    DirectoryCache, DirectoryCacheOptions, DirectoryCacheParts, TreeError, TreePin,
};
use longshore_proto::{Message as _, protobuf, reapi};

use super::*;
use crate::environment::{MachineClock, TokioExecutor};

const FUNCTION: DigestFunction = DigestFunction::Sha256;

struct Fixture {
    folder: tempfile::TempDir,
    store: Arc<BlobStore>,
    reaper: Arc<Reaper>,
    cache: Arc<DirectoryCache>,
    materializer: HardlinkMaterializer,
    _root: StoreRoot,
}

async fn fixture(owner: Option<Owner>) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
    let io = IoPool::new(Arc::new(pool));
    let environment = Environment {
        io: io.clone(),
        executor: Arc::new(TokioExecutor::current()),
        clock: Arc::new(MachineClock),
    };
    let root = StoreRoot::claim(folder.path()).unwrap();
    let options = StoreOptions { size_bytes_max: 1 << 30 };
    let (store, _) = BlobStore::open(&root, options, environment.clone()).unwrap();
    let reaper = Reaper::open(&root, environment.clone()).unwrap();
    let parts = DirectoryCacheParts { store: store.clone(), reaper: reaper.clone() };
    let limits = TreeLimits::default();
    let options = DirectoryCacheOptions { entries_max: 0, size_bytes_max: u64::MAX, limits };
    let cache = DirectoryCache::open(&root, parts, options, environment).await.unwrap();
    let materializer = HardlinkMaterializer::new(&root, store.clone(), reaper.clone(), owner, io).unwrap();
    Fixture { folder, store, reaper, cache, materializer, _root: root }
}

impl Fixture {
    async fn get(&self, root: Digest) -> Result<TreePin, TreeError> {
        let nowhere: Arc<dyn BlobSource> = Arc::new(NoSource);
        self.cache.get(root, &nowhere).await
    }

    async fn put(&self, data: impl Into<Bytes>) -> Digest {
        let data = data.into();
        let digest = FUNCTION.digest(&data);
        self.store.put(digest, data).await.unwrap();
        digest
    }

    async fn put_directory(&self, directory: reapi::Directory) -> Digest {
        self.put(directory.encode_to_vec()).await
    }

    async fn materialize(&self, root: Digest, parents: &[&str]) -> Result<InputRoot, MaterializeError> {
        let tree = self.get(root).await.unwrap();
        let parents = parents.iter().map(|path| RelPath::parse(path).unwrap()).collect();
        self.materializer.materialize(tree, parents).await
    }
}

fn file(name: &str, digest: Digest, mode: Option<u32>) -> reapi::FileNode {
    let node_properties = mode.map(|value| reapi::NodeProperties {
        unix_mode: Some(protobuf::UInt32Value { value }),
        ..Default::default()
    });
    let (name, digest) = (name.to_owned(), Some(digest.to_wire()));
    reapi::FileNode { name, digest, is_executable: false, node_properties }
}

fn symlink(name: &str, target: &str) -> reapi::SymlinkNode {
    reapi::SymlinkNode { name: name.to_owned(), target: target.to_owned(), node_properties: None }
}

/// A tree of everything that is handled in a way of its own; its digest.
async fn sample(fixture: &Fixture) -> Digest {
    let content = fixture.put("content").await;
    let inner = fixture
        .put_directory(reapi::Directory { files: vec![file("deep", content, None)], ..Default::default() })
        .await;
    let files = vec![
        file("plain", content, None),
        file("writable", content, Some(0o644)),
        file("secret", content, Some(0o400)),
        file("empty", Digest::empty(FUNCTION), None),
    ];
    let directories = vec![reapi::DirectoryNode { name: "inner".to_owned(), digest: Some(inner.to_wire()) }];
    let symlinks =
        vec![symlink("to-inner", "inner"), symlink("out", "../.."), symlink("dangling", "nowhere")];
    let mtime = Some(protobuf::Timestamp { seconds: 1_000_000, nanos: 0 });
    let node_properties = Some(reapi::NodeProperties { mtime, ..Default::default() });
    fixture.put_directory(reapi::Directory { files, directories, symlinks, node_properties }).await
}

#[tokio::test]
async fn an_action_finds_the_tree_and_shares_only_what_it_cannot_write() {
    let fixture = fixture(None).await;
    let digest = sample(&fixture).await;
    let root = fixture.materialize(digest, &[]).await.unwrap();
    let tree = fixture.get(digest).await.unwrap();
    let inode = |folder: &Path, name: &str| folder.join(name).metadata().unwrap().ino();
    for (name, is_shared) in
        [("plain", true), ("inner/deep", true), ("writable", false), ("secret", false), ("empty", false)]
    {
        assert_eq!(inode(root.path(), name) == inode(tree.path(), name), is_shared, "{name}");
        assert_eq!(
            std::fs::read(root.path().join(name)).unwrap(),
            std::fs::read(tree.path().join(name)).unwrap()
        );
    }
    assert_eq!(std::fs::read_link(root.path().join("out")).unwrap(), Path::new("../.."));
    let modified = root.path().metadata().unwrap().modified().unwrap();
    assert_eq!(modified, SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000));
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(root.path()), mode(&root.folder_path())), (0o755, 0o711));
    assert_eq!(mode(&root.path().join("writable")), 0o644);
}

// Whatever vanished, the attempt after the one that finds out gets a whole tree.
#[tokio::test]
async fn a_damaged_tree_is_replaced() {
    let fixture = fixture(None).await;
    let digest = sample(&fixture).await;
    for lost in ["plain", "inner/deep", "inner", ""] {
        // Without a pin, the tree would be gone before it is asked for.
        let tree = fixture.get(digest).await.unwrap();
        let path = tree.path().join(lost);
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        } else {
            std::fs::remove_file(path).unwrap();
        }
        let error = fixture.materialize(digest, &[]).await.unwrap_err();
        assert!(matches!(error, MaterializeError::Damaged(_)), "{lost:?}: {error}");
        let root = fixture.materialize(digest, &[]).await.unwrap();
        assert_eq!(std::fs::read_to_string(root.path().join("inner/deep")).unwrap(), "content");
        assert_eq!(std::fs::read_to_string(root.path().join("plain")).unwrap(), "content");
    }
    // A folder's tree is given back, and discarded, when the folder is gone.
    fixture.reaper.settled().await;
    fixture.reaper.settled().await;
    assert_eq!(std::fs::read_dir(fixture.folder.path().join("trees")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_an_action_does_to_its_root_stays_there() {
    let fixture = fixture(None).await;
    let digest = sample(&fixture).await;
    let root = fixture.materialize(digest, &[]).await.unwrap();
    std::fs::remove_file(root.path().join("plain")).unwrap();
    std::fs::write(root.path().join("plain"), "other").unwrap();
    std::fs::write(root.path().join("writable"), "other").unwrap();
    std::fs::write(root.path().join("inner/new"), "new").unwrap();
    let again = fixture.materialize(digest, &[]).await.unwrap();
    assert_eq!(std::fs::read_to_string(again.path().join("plain")).unwrap(), "content");
    assert_eq!(std::fs::read_to_string(again.path().join("writable")).unwrap(), "content");
    assert!(!again.path().join("inner/new").exists());
}

#[tokio::test]
async fn everything_belongs_to_the_actions_user_that_it_may_change() {
    let owner = Owner { uid: 12_345, gid: 23_456 };
    let file = tempfile::NamedTempFile::new().unwrap();
    // An ordinary user may not, and root may not either where a user namespace knows no other.
    if std::os::unix::fs::chown(file.path(), Some(owner.uid), Some(owner.gid)).is_err() {
        return;
    }
    let fixture = fixture(Some(owner)).await;
    let digest = sample(&fixture).await;
    let root = fixture.materialize(digest, &["out-dir/deep"]).await.unwrap();
    let owner_of = |path: &Path| {
        let stat = path.symlink_metadata().unwrap();
        Owner { uid: stat.uid(), gid: stat.gid() }
    };
    for name in ["", "inner", "out-dir", "out-dir/deep", "writable", "secret"] {
        assert_eq!(owner_of(&root.path().join(name)), owner, "{name}");
    }
    assert_eq!(owner_of(&root.path().join("plain")).uid, 0, "what is shared is not the action's");
    assert_eq!(owner_of(&root.folder_path()).uid, 0);
    drop(root.create_log("stdout").unwrap());
    assert_eq!(owner_of(&root.folder_path().join("stdout")), owner);
}

#[tokio::test]
async fn parents_of_outputs_are_made_inside_the_root_or_not_at_all() {
    let fixture = fixture(None).await;
    let digest = sample(&fixture).await;
    let root = fixture.materialize(digest, &["", "a/b/c", "a/b", "inner/x", "to-inner/y"]).await.unwrap();
    for name in ["a/b/c", "inner/x", "inner/y"] {
        assert!(root.path().join(name).is_dir(), "{name}");
    }
    let modified = root.path().metadata().unwrap().modified().unwrap();
    assert_eq!(
        modified,
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000),
        "though parents were added"
    );
    for parent in ["plain", "plain/below", "out/x", "dangling", "dangling/x"] {
        let error = fixture.materialize(digest, &[parent]).await.unwrap_err();
        assert!(
            matches!(&error, MaterializeError::Parent { path, .. } if path.as_str() == parent),
            "{parent}: {error}"
        );
    }
}

// The tree must not be evicted under a running action, nor kept when it is over.
#[tokio::test]
async fn a_root_holds_its_tree_until_its_folder_is_gone() {
    let fixture = fixture(None).await;
    let digest = sample(&fixture).await;
    let root = fixture.materialize(digest, &[]).await.unwrap();
    assert_eq!(fixture.cache.stats().pinned, 1);
    let folder = root.folder_path();
    drop(root);
    fixture.reaper.settled().await;
    assert!(!folder.exists());
    assert_eq!(fixture.cache.stats().entries, 0);
    let left = std::fs::read_dir(fixture.folder.path().join("work")).unwrap().count();
    assert_eq!(left, 0);
}

// A caller that leaves in the middle leaves nothing behind.
#[tokio::test]
async fn a_materialization_that_is_dropped_is_undone() {
    let fixture = fixture(None).await;
    let digest = sample(&fixture).await;
    for polls in 0..4 {
        let tree = fixture.get(digest).await.unwrap();
        let mut future = fixture.materializer.materialize(tree, Vec::new());
        for _ in 0..polls {
            if futures::poll!(&mut future).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    // What was under way has been undone when the pins are gone.
    while fixture.cache.stats().pinned > 0 {
        tokio::task::yield_now().await;
    }
    fixture.reaper.settled().await;
    assert_eq!(std::fs::read_dir(fixture.folder.path().join("work")).unwrap().count(), 0);
}

// Where the tree's inode has no link left (65,000 on ext4), the action's file is another shared one, made once.
#[tokio::test]
async fn an_inode_without_a_link_left_is_renewed_in_the_store() {
    const LINKS_MAX: usize = 65_536;
    let fixture = fixture(None).await;
    let content = fixture.put("licence").await;
    let files = vec![file("a", content, None), file("b", content, None)];
    let digest = fixture.put_directory(reapi::Directory { files, ..Default::default() }).await;
    let tree = fixture.get(digest).await.unwrap();
    let names = fixture.folder.path().join("names");
    std::fs::create_dir(&names).unwrap();
    let link = |number: usize| std::fs::hard_link(tree.path().join("a"), names.join(number.to_string()));
    if (0..LINKS_MAX).all(|number| link(number).is_ok()) {
        println!("this file system has links without end");
        return;
    }
    let root = fixture.materialize(digest, &[]).await.unwrap();
    let inode = |path: &Path| path.metadata().unwrap().ino();
    let (a, b) = (root.path().join("a"), root.path().join("b"));
    // The renewal took the store's name from the full inode, which may serve `b` once more.
    assert_ne!(inode(&a), inode(&tree.path().join("a")));
    assert!(a.metadata().unwrap().nlink() > 1, "a copy that nobody counts");
    assert!(b.metadata().unwrap().nlink() > 1, "a copy that nobody counts");
    assert_eq!(std::fs::read_to_string(a).unwrap(), "licence");
    assert_eq!(b.metadata().unwrap().permissions().mode() & 0o7777, 0o444);
}
