//! Trees, and the room that the store has for them.

use longshore_cas_store::blob::StoreError;
use longshore_cas_store::tree_cache::TreeError;
use longshore_proto::reapi;

use crate::kit::{GatedSource, Kit, OPEN, Room, Tree, child, file};

/// Files that it has more than once, some of them to be executed.
fn tree() -> Tree {
    let mut tree = Tree::default();
    let (plain, program) = (tree.blob(vec![1; 300_000]), tree.blob(vec![2; 200_000]));
    let files = vec![file("a", plain, false), file("b", plain, false), file("c", program, true)];
    let below = tree.directory(&reapi::Directory { files: files.clone(), ..Default::default() });
    let files = vec![file("d", plain, false), file("e", program, true)];
    let directories = vec![child("f", below), child("g", below)];
    tree.directory(&reapi::Directory { files, directories, ..Default::default() });
    tree
}

/// What the store holds where the tree stands and nothing else.
async fn held_bytes(tree: &Tree) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let kit = Kit::open(folder.path(), GatedSource::new(tree, OPEN), Room::default()).await;
    let _pin = kit.get(tree.root()).await.unwrap();
    kit.store.stats().size_bytes
}

fn room(store_bytes_max: u64) -> Room {
    Room { store_bytes_max, ..Room::default() }
}

fn reason(error: TreeError) -> StoreError {
    let TreeError::Store { reason, .. } = error else { panic!("{error}") };
    reason
}

// No retry can help where the tree alone is too much, and nothing is fetched for it.
#[tokio::test]
async fn a_tree_may_fill_the_store_and_one_byte_less_is_refused_for_good() {
    let tree = tree();
    let needed_bytes = held_bytes(&tree).await;
    let folder = tempfile::tempdir().unwrap();
    let kit = Kit::open(folder.path(), GatedSource::new(&tree, OPEN), room(needed_bytes)).await;
    let pin = kit.get(tree.root()).await.unwrap();
    assert!(pin.holding().check(0).is_ok() && pin.holding().check(1).is_err());

    let folder = tempfile::tempdir().unwrap();
    let source = GatedSource::new(&tree, OPEN);
    let kit = Kit::open(folder.path(), source.clone(), room(needed_bytes - 1)).await;
    let StoreError::NeverFits { needed_bytes: needed, limit_bytes } =
        reason(kit.get(tree.root()).await.unwrap_err())
    else {
        panic!("another error")
    };
    assert_eq!((needed, limit_bytes), (needed_bytes, needed_bytes - 1));
    assert_eq!(source.fetches(), 2, "its messages alone");
    kit.assert_tidy().await;
}

// What others hold comes back some day.
#[tokio::test]
async fn a_tree_that_others_leave_no_room_for_can_be_tried_again() {
    let tree = tree();
    let folder = tempfile::tempdir().unwrap();
    let room = room(held_bytes(&tree).await);
    let kit = Kit::open(folder.path(), GatedSource::new(&tree, OPEN), room).await;
    let mut others = Tree::default();
    let digest = others.blob(vec![3; 100_000]);
    kit.upload(&others).await;
    let pin = kit.store.pin(&digest).unwrap();
    let reason = reason(kit.get(tree.root()).await.unwrap_err());
    assert!(matches!(reason, StoreError::NoSpace { .. }), "{reason}");
    drop(pin);
    kit.get(tree.root()).await.unwrap();
}
