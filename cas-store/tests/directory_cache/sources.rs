//! Where a tree's blobs come from, when those who want it reach different CASes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::{self, BoxStream};
use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::Digest;
use longshore_cas_store::io::IoPool;
use longshore_cas_store::source::{BlobSource, Fetched, NoSource, Scope};
use longshore_cas_store::tree_cache::TreeError;

use crate::kit::{FUNCTION, GatedSource, Kit, OPEN, Room, Tree, environment, until};

/// A tree, and a source of it that lacks one of its files.
fn incomplete(seed: &str, permits: usize) -> (Tree, Digest, Arc<GatedSource>) {
    let tree = Tree::wide(seed, 3, 4);
    let lost = FUNCTION.digest(format!("{seed} 1 2").as_bytes());
    let source = GatedSource::new(&tree, permits);
    source.blobs.lock().unwrap().remove(&lost);
    (tree, lost, source)
}

// What somebody else's CAS has not, one's own may have.
#[tokio::test]
async fn who_shares_a_build_that_another_cas_could_not_feed_has_it_from_his_own() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, lost, theirs) = incomplete("shared", 0);
    let own: Arc<dyn BlobSource> = GatedSource::new(&tree, OPEN);
    let kit = Kit::open(folder.path(), theirs.clone(), Room::default()).await;
    let (first, second) = (kit.get(tree.root()), kit.cache.get(tree.root(), &own));
    let open_gate = async {
        until(|| kit.cache.stats().shares == 1).await;
        theirs.gate.add_permits(OPEN);
    };
    let (first, second, ()) = futures::join!(first, second, open_gate);
    let TreeError::Missing { missing, .. } = first.unwrap_err() else { panic!("another error") };
    assert_eq!(*missing, [lost]);
    Tree::assert_wide(second.unwrap().path(), "shared", 3, 4);
    assert_eq!(kit.cache.stats().constructions, 2);
    kit.assert_tidy().await;
}

// That a CAS is out says nothing about another one.
#[tokio::test]
async fn who_shares_a_build_whose_cas_fails_has_it_from_his_own() {
    let folder = tempfile::tempdir().unwrap();
    let tree = Tree::wide("out", 3, 4);
    let theirs = GatedSource::new(&Tree::default(), 0);
    let own: Arc<dyn BlobSource> = GatedSource::new(&tree, OPEN);
    // All that it says is that it has ended.
    let kit = Kit::open(folder.path(), Arc::new(Mute(theirs.clone())), Room::default()).await;
    let (first, second) = (kit.get(tree.root()), kit.cache.get(tree.root(), &own));
    let open_gate = async {
        until(|| kit.cache.stats().shares == 1).await;
        theirs.gate.add_permits(OPEN);
    };
    let (first, second, ()) = futures::join!(first, second, open_gate);
    assert!(matches!(first.unwrap_err(), TreeError::Fetch { .. }));
    Tree::assert_wide(second.unwrap().path(), "out", 3, 4);
    kit.assert_tidy().await;
}

// Each CAS is asked once, however many callers it has.
#[tokio::test]
async fn where_no_cas_has_the_tree_each_is_asked_once() {
    let folder = tempfile::tempdir().unwrap();
    let tree = Tree::wide("nowhere", 3, 4);
    let sources: Vec<_> = (0..4).map(|_| GatedSource::new(&Tree::default(), 0)).collect();
    let kit = Kit::open(folder.path(), Arc::new(NoSource), Room::default()).await;
    let callers = (0..16).map(|number| {
        let source: Arc<dyn BlobSource> = sources[number % sources.len()].clone();
        let (cache, root) = (&kit.cache, tree.root());
        async move { cache.get(root, &source).await }
    });
    let open_gates = async {
        until(|| kit.cache.stats().shares == 15).await;
        for source in &sources {
            source.gate.add_permits(OPEN);
        }
    };
    let (outcomes, ()) = futures::join!(join_all(callers), open_gates);
    for outcome in outcomes {
        let TreeError::Missing { missing, .. } = outcome.unwrap_err() else { panic!("another error") };
        assert_eq!(*missing, [tree.root()]);
    }
    assert_eq!(kit.cache.stats().constructions, 4);
    assert!(sources.iter().all(|source| source.fetches() == 1));
    kit.assert_tidy().await;
}

/// A source that waits, and then ends without a word.
struct Mute(Arc<GatedSource>);

impl BlobSource for Mute {
    fn fetch(&self, wanted: Vec<Digest>, store: Arc<BlobStore>) -> BoxStream<'static, Fetched> {
        self.0.fetch(wanted, store).filter(|_| std::future::ready(false)).boxed()
    }

    fn scope(&self) -> Scope {
        self.0.scope()
    }
}

// What is not there would be taken for a whole tree by everybody who comes later.
#[tokio::test]
async fn a_tree_of_which_something_did_not_come_is_not_published() {
    let folder = tempfile::tempdir().unwrap();
    let tree = Tree::wide("mute", 3, 4);
    let source = Arc::new(Mute(GatedSource::new(&tree, OPEN)));
    let kit = Kit::open(folder.path(), source, Room::default()).await;
    for (digest, data) in tree.messages() {
        kit.store.put(digest, data).await.unwrap();
    }
    assert!(matches!(kit.get(tree.root()).await.unwrap_err(), TreeError::Fetch { .. }));
    assert_eq!(kit.cache.stats().entries, 0);
    kit.assert_tidy().await;
}

/// A source that takes every thread of the pool when it is asked, and gives them back when somebody listens.
struct Greedy {
    tree: Arc<GatedSource>,
    io: IoPool,
    was_heard: Arc<AtomicBool>,
}

impl BlobSource for Greedy {
    fn fetch(&self, wanted: Vec<Digest>, store: Arc<BlobStore>) -> BoxStream<'static, Fetched> {
        let (release, blockers): (Vec<_>, Vec<_>) =
            (0..self.io.threads()).map(|_| mpsc::channel::<()>()).unzip();
        for blocker in blockers {
            self.io.spawn(move || {
                let _ = blocker.recv();
            });
        }
        let was_heard = self.was_heard.clone();
        let first = stream::once(async move {
            was_heard.store(true, Ordering::SeqCst);
            drop(release);
        });
        first.filter_map(|()| std::future::ready(None)).chain(self.tree.fetch(wanted, store)).boxed()
    }

    fn scope(&self) -> Scope {
        self.tree.scope()
    }
}

// What is here is linked while the rest is fetched, not before.
#[tokio::test]
async fn a_fetch_does_not_wait_for_what_is_here_to_be_linked() {
    let folder = tempfile::tempdir().unwrap();
    let tree = Tree::wide("greedy", 3, 4);
    let environment = environment();
    let (io, was_heard) = (environment.io.clone(), Arc::new(AtomicBool::new(false)));
    let source = Arc::new(Greedy { tree: GatedSource::new(&tree, OPEN), io, was_heard: was_heard.clone() });
    let kit = Kit::open_in(folder.path(), source, Room::default(), environment).await;
    for (digest, data) in tree.messages() {
        kit.store.put(digest, data).await.unwrap();
    }
    let pin = kit.get(tree.root()).await.unwrap();
    assert!(was_heard.load(Ordering::SeqCst));
    Tree::assert_wide(pin.path(), "greedy", 3, 4);
}
