//! What the last owner published is there again.

use std::sync::Arc;

use longshore_cas_store::source::NoSource;

use crate::kit::{Kit, Room, Tree};

#[tokio::test]
async fn published_trees_are_adopted_and_leftovers_removed() {
    let folder = tempfile::tempdir().unwrap();
    let tree = Tree::wide("kept", 3, 5);
    let path = {
        let kit = Kit::standalone(folder.path()).await;
        kit.upload(&tree).await;
        let pin = kit.get(tree.root()).await.unwrap();
        pin.path().to_owned()
    };
    std::fs::create_dir(folder.path().join("scratch/tree-77")).unwrap();
    std::fs::create_dir(folder.path().join("trees/not-a-tree")).unwrap();
    std::fs::create_dir_all(folder.path().join("work/some-action/root")).unwrap();

    let kit = Kit::standalone(folder.path()).await;
    kit.assert_tidy().await;
    assert_eq!(kit.names_in("work").len(), 0);
    let pin = kit.get(tree.root()).await.unwrap();
    assert_eq!(pin.path(), path);
    Tree::assert_wide(pin.path(), "kept", 3, 5);
    let stats = kit.cache.stats();
    assert_eq!((stats.constructions, stats.hits), (0, 1));
}

// A tree whose references cannot be retaken must not stay: nothing would keep its blobs or count its bytes.
#[tokio::test]
async fn a_tree_without_its_blobs_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let tree = Tree::wide("lost", 2, 2);
    {
        let kit = Kit::standalone(folder.path()).await;
        kit.upload(&tree).await;
        kit.get(tree.root()).await.unwrap();
    }
    let digest = tree.blobs.keys().next().unwrap();
    let hash = digest.hash_hex();
    let blob = format!("blobs/sha256/{}/{hash}-{}", &hash[..2], digest.size_bytes());
    std::fs::remove_file(folder.path().join(blob)).unwrap();
    let kit = Kit::standalone(folder.path()).await;
    assert_eq!(kit.cache.stats().entries, 0);
    kit.assert_tidy().await;
}

#[tokio::test]
async fn after_a_crash_of_the_machine_no_tree_is_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let tree = Tree::wide("torn", 2, 2);
    {
        let kit = Kit::standalone(folder.path()).await;
        kit.upload(&tree).await;
        kit.get(tree.root()).await.unwrap();
    }
    std::fs::write(folder.path().join("boot"), "another boot").unwrap();
    let kit = Kit::standalone(folder.path()).await;
    assert_eq!(kit.cache.stats().entries, 0);
    kit.assert_tidy().await;
    kit.get(tree.root()).await.unwrap();
    assert_eq!(kit.cache.stats().constructions, 1, "its blobs were verified");
}

#[tokio::test]
async fn more_than_may_stay_is_evicted_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let trees: Vec<_> = (0..5).map(|number| Tree::wide(&format!("tree {number}"), 2, 2)).collect();
    {
        let kit = Kit::standalone(folder.path()).await;
        for tree in &trees {
            kit.upload(tree).await;
            kit.get(tree.root()).await.unwrap();
        }
    }
    let room = Room { entries_max: 2, ..Room::default() };
    let kit = Kit::open(folder.path(), Arc::new(NoSource), room).await;
    assert_eq!(kit.cache.stats().entries, 2);
    kit.assert_tidy().await;
    kit.get(trees[4].root()).await.unwrap();
    assert_eq!(kit.cache.stats().hits, 1, "the newest stays");
}
