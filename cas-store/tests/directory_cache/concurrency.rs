//! Many callers at once: who builds, who shares, who waits, and what is left behind (issue 2, To show 4).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::Poll;

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use longshore_cas_store::digest::Digest;
use longshore_cas_store::io::{Environment, Executor};
use longshore_cas_store::source::NoSource;
use longshore_cas_store::tree_cache::{TreeError, TreePin};

use crate::kit::{FUNCTION, GatedSource, Kit, OPEN, Room, Tree, environment, until};

#[tokio::test]
async fn sixteen_callers_of_one_tree_are_one_construction() {
    let folder = tempfile::tempdir().unwrap();
    let tree = Tree::wide("shared", 3, 4);
    let source = GatedSource::new(&tree, 0);
    let kit = Kit::open(folder.path(), source.clone(), Room::default()).await;
    let callers = join_all((0..16).map(|_| kit.get(tree.root())));
    let open_gate = async {
        until(|| kit.cache.stats().shares == 15).await;
        source.gate.add_permits(OPEN);
    };
    let (pins, ()) = futures::join!(callers, open_gate);
    let pins: Vec<TreePin> = pins.into_iter().map(Result::unwrap).collect();
    assert!(pins.iter().all(|pin| pin.path() == pins[0].path()));
    Tree::assert_wide(pins[0].path(), "shared", 3, 4);
    let stats = kit.cache.stats();
    assert_eq!((stats.constructions, stats.shares, stats.hits), (1, 15, 0));
    assert_eq!(source.fetches(), tree.blobs.len());
    drop(pins);
    assert_eq!(kit.cache.stats().pinned, 0);
    kit.assert_tidy().await;
}

#[tokio::test]
async fn sixteen_callers_of_a_tree_with_a_missing_blob_get_one_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut tree = Tree::wide("missing", 3, 4);
    let lost = FUNCTION.digest(b"missing 1 2");
    let data = tree.blobs.remove(&lost).unwrap();
    let source = GatedSource::new(&tree, 0);
    let kit = Kit::open(folder.path(), source.clone(), Room::default()).await;
    let callers = join_all((0..16).map(|_| kit.get(tree.root())));
    let open_gate = async {
        until(|| kit.cache.stats().shares == 15).await;
        source.gate.add_permits(OPEN);
    };
    let (outcomes, ()) = futures::join!(callers, open_gate);
    for outcome in outcomes {
        let TreeError::Missing { root, missing } = outcome.unwrap_err() else { panic!("another error") };
        assert_eq!((root, &*missing), (tree.root(), &[lost][..]));
    }
    assert_eq!(kit.cache.stats().constructions, 1);
    kit.assert_tidy().await;

    // Who comes after the failure starts afresh, and finds what is there by now.
    source.blobs.lock().unwrap().insert(lost, data);
    kit.get(tree.root()).await.unwrap();
    assert_eq!(kit.cache.stats().constructions, 2);
}

#[tokio::test]
async fn callers_may_leave_and_the_last_one_takes_the_build_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let tree = Tree::wide("left", 3, 4);
    let source = GatedSource::new(&tree, 0);
    let kit = Kit::open(folder.path(), source.clone(), Room::default()).await;
    let mut first = Box::pin(kit.get(tree.root()));
    let mut second = Box::pin(kit.get(tree.root()));
    assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());
    drop(first);
    // The messages land; the files are waited for.
    source.gate.add_permits(4);
    until(|| kit.names_in("scratch").len() == 1).await;
    drop(second);
    until(|| kit.names_in("scratch").is_empty()).await;
    kit.assert_tidy().await;
    assert_eq!(kit.cache.stats().entries, 0);

    source.gate.add_permits(OPEN);
    let pin = kit.get(tree.root()).await.unwrap();
    Tree::assert_wide(pin.path(), "left", 3, 4);
    assert_eq!(kit.cache.stats().constructions, 2);
}

// Two builders of one tree must never run at once: the jobs of a cancelled one run to their end.
#[tokio::test]
async fn a_newcomer_waits_until_a_cancelled_build_has_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let environment = environment();
    let io = environment.io.clone();
    let kit = Kit::open_in(folder.path(), Arc::new(NoSource), Room::default(), environment).await;
    let (release, blockers): (Vec<_>, Vec<_>) = (0..io.threads()).map(|_| mpsc::channel::<()>()).unzip();
    let blocked = Arc::new(AtomicUsize::new(0));
    for blocker in blockers {
        let blocked = blocked.clone();
        io.spawn(move || {
            blocked.fetch_add(1, Ordering::SeqCst);
            let _ = blocker.recv();
        });
    }
    until(|| blocked.load(Ordering::SeqCst) == io.threads()).await;

    // The empty tree needs nothing but its own job, which cannot start.
    let root = Digest::empty(FUNCTION);
    let mut first = Box::pin(kit.get(root));
    assert!(futures::poll!(&mut first).is_pending());
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    drop(first);
    let mut newcomer = Box::pin(kit.get(root));
    for _ in 0..10 {
        assert!(futures::poll!(&mut newcomer).is_pending());
        tokio::task::yield_now().await;
    }
    assert_eq!(kit.cache.stats().constructions, 1, "the cancelled job still waits for a thread");
    drop(release);
    newcomer.await.unwrap();
    assert_eq!(kit.cache.stats().constructions, 2);
    kit.assert_tidy().await;
}

// What stands among the published trees is taken for whole after a crash.
#[tokio::test]
async fn a_cancelled_build_never_stands_among_the_published_trees() {
    let folder = tempfile::tempdir().unwrap();
    let environment = environment();
    let io = environment.io.clone();
    let room = Room { entries_max: 0, ..Room::default() };
    let kit = Kit::open_in(folder.path(), Arc::new(NoSource), room, environment).await;
    let tree = Tree::wide("cancelled", 3, 4);
    kit.upload(&tree).await;
    // The variants of its executables are there from now on: nothing is to be waited for.
    drop(kit.get(tree.root()).await.unwrap());
    kit.assert_tidy().await;
    let (release, blockers): (Vec<_>, Vec<_>) = (0..io.threads()).map(|_| mpsc::channel::<()>()).unzip();
    let blocked = Arc::new(AtomicUsize::new(0));
    for blocker in blockers {
        let blocked = blocked.clone();
        io.spawn(move || {
            blocked.fetch_add(1, Ordering::SeqCst);
            let _ = blocker.recv();
        });
    }
    until(|| blocked.load(Ordering::SeqCst) == io.threads()).await;

    let trees = std::fs::File::open(folder.path().join("trees")).unwrap();
    trees.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let mut caller = Box::pin(kit.get(tree.root()));
    for _ in 0..10 {
        assert!(futures::poll!(&mut caller).is_pending());
        tokio::task::yield_now().await;
    }
    drop(caller);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    drop(release);
    kit.assert_tidy().await;
    // Nothing was ever moved there, not even for a moment.
    assert_eq!(trees.metadata().unwrap().modified().unwrap(), std::time::SystemTime::UNIX_EPOCH);
    let pin = kit.get(tree.root()).await.unwrap();
    Tree::assert_wide(pin.path(), "cancelled", 3, 4);
}

/// The base-2 logarithm of how often a caller asks, at most, before it leaves.
const LEAVE_AFTER_POLLS_LOG_MAX: usize = 14;

/// What may become of a caller of a stampede.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It gets its tree.
    Served,
    /// Or a fetch fails.
    MayFail,
    /// Or it leaves before it is answered.
    MayLeave,
}

/// Polls `future` that many times, and drops it if it is not ready by then.
async fn leave_after<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    for _ in 0..polls {
        match futures::poll!(&mut future) {
            Poll::Ready(value) => return Some(value),
            Poll::Pending => tokio::task::yield_now().await,
        }
    }
    None
}

/// 64 callers over 16 trees, each getting, checking and dropping trees in an order of its own.
async fn stampede(kit: &Arc<Kit>, trees: &Arc<Vec<Tree>>, rounds: usize, fate: Fate) {
    let callers = (0..64).map(|caller| {
        let (kit, trees) = (kit.clone(), trees.clone());
        tokio::spawn(async move {
            for round in 0..rounds {
                let number = (caller * 7 + round * 5 + round * round) % trees.len();
                let tree = &trees[number];
                let get = kit.get(tree.root());
                let outcome = if fate == Fate::MayLeave && caller % 3 > 0 {
                    // At once, much later, and everything between: constructions are left wherever they are.
                    leave_after(1 << ((caller + 5 * round) % LEAVE_AFTER_POLLS_LOG_MAX), get).await
                } else {
                    Some(get.await)
                };
                let pin = match outcome {
                    None => continue,
                    Some(Ok(pin)) => pin,
                    Some(Err(error)) if fate == Fate::MayFail => {
                        assert!(matches!(error, TreeError::Fetch { .. }), "{error}");
                        continue;
                    }
                    Some(Err(error)) => panic!("{error}"),
                };
                Tree::assert_wide(pin.path(), &format!("tree {number}"), 2, 4);
                tokio::task::yield_now().await;
                let blobs: Vec<_> = tree.blobs.keys().copied().collect();
                assert_eq!(kit.store.find_missing(&blobs), [], "a referenced blob is gone");
                Tree::assert_wide(pin.path(), &format!("tree {number}"), 2, 4);
            }
        })
    });
    for caller in join_all(callers).await {
        caller.unwrap();
    }
}

/// Large enough to push out what nobody refers to at the moment.
const BALLAST_BYTES: usize = 60_000;

/// Fills the store with blobs that nobody needs, so that what is not referred to is evicted.
async fn press(kit: Arc<Kit>, is_over: Arc<AtomicBool>) {
    let mut number: u64 = 0;
    while !is_over.load(Ordering::SeqCst) {
        number += 1;
        let mut data = format!("ballast {number}");
        data.push_str(&" ".repeat(BALLAST_BYTES));
        // That there is no room for it is part of the game.
        let _ = kit.store.put(FUNCTION.digest(data.as_bytes()), data.into()).await;
        tokio::task::yield_now().await;
    }
}

async fn stampede_with_room_for_four(seed: u64, fate: Fate) {
    let folder = tempfile::tempdir().unwrap();
    let trees: Vec<_> = (0..16).map(|number| Tree::wide(&format!("tree {number}"), 2, 4)).collect();
    let mut all = Tree::default();
    all.blobs.extend(trees.iter().flat_map(|tree| tree.blobs.clone()));
    let source = GatedSource::new(&all, OPEN);
    source.faults.store(seed, Ordering::SeqCst);
    // 16 blocks a tree: all of them fit while they are in use, and little else does.
    let room = Room { entries_max: 4, store_bytes_max: 16 * 16 * 4096 * 3 / 2 };
    let kit = Arc::new(Kit::open(folder.path(), source.clone(), room).await);
    let trees = Arc::new(trees);
    let is_over = Arc::new(AtomicBool::new(false));
    let press = tokio::spawn(press(kit.clone(), is_over.clone()));
    stampede(&kit, &trees, 12, fate).await;
    is_over.store(true, Ordering::SeqCst);
    press.await.unwrap();

    let stats = kit.cache.stats();
    assert_eq!(stats.pinned, 0);
    assert!(stats.entries <= 4 && stats.evictions > 0, "{stats:?}");
    kit.assert_tidy().await;
    source.faults.store(0, Ordering::SeqCst);
    // The room is filled once over: what nobody refers to has to go.
    for number in 0..40 {
        let data = format!("{number:BALLAST_BYTES$}");
        kit.store.put(FUNCTION.digest(data.as_bytes()), data.into()).await.unwrap();
    }
    let fetches = source.fetches();
    stampede(&kit, &trees, 2, Fate::Served).await;
    assert!(source.fetches() > fetches, "nothing was evicted");
    kit.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_callers_with_room_for_four_trees() {
    stampede_with_room_for_four(0, Fate::Served).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_callers_while_fetches_fail() {
    for seed in [3, 0xfeed_beef] {
        println!("seed {seed}");
        stampede_with_room_for_four(seed, Fate::MayFail).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_callers_of_whom_many_leave() {
    stampede_with_room_for_four(0, Fate::MayLeave).await;
}

/// Counts the polls of all tasks, and drops a caller's future at one of them.
#[derive(Default)]
struct PollCounter {
    polls: AtomicUsize,
    drop_at: AtomicUsize,
    caller: Mutex<Option<BoxFuture<'static, ()>>>,
}

struct CountingExecutor(Arc<PollCounter>);

impl Executor for CountingExecutor {
    fn spawn(&self, mut task: BoxFuture<'static, ()>) {
        let counter = self.0.clone();
        tokio::spawn(std::future::poll_fn(move |context| {
            let poll = task.as_mut().poll(context);
            if counter.polls.fetch_add(1, Ordering::SeqCst) + 1 == counter.drop_at.load(Ordering::SeqCst) {
                drop(counter.caller.lock().unwrap().take());
            }
            poll
        }));
    }
}

// At whatever point of a construction the last caller leaves, nothing is left behind and nothing is stuck.
#[tokio::test]
async fn a_construction_can_be_dropped_at_every_await() {
    for drop_at in 1.. {
        let folder = tempfile::tempdir().unwrap();
        let tree = Tree::wide("dropped", 3, 4);
        let counter = Arc::new(PollCounter::default());
        let environment =
            Environment { executor: Arc::new(CountingExecutor(counter.clone())), ..environment() };
        let source = GatedSource::new(&tree, OPEN);
        let kit = Kit::open_in(folder.path(), source, Room::default(), environment).await;
        counter.drop_at.store(drop_at, Ordering::SeqCst);
        let is_done = Arc::new(AtomicBool::new(false));
        let (cache, root, done) = (kit.cache.clone(), tree.root(), is_done.clone());
        let source = kit.source.clone();
        let caller = async move {
            cache.get(root, &source).await.unwrap();
            done.store(true, Ordering::SeqCst);
        };
        *counter.caller.lock().unwrap() = Some(caller.boxed());
        std::future::poll_fn(|context| {
            // Nothing is left to poll when the caller has been dropped.
            let mut caller = counter.caller.lock().unwrap();
            match caller.as_mut().map(|caller| caller.as_mut().poll(context)) {
                None | Some(Poll::Ready(())) => Poll::Ready(()),
                Some(Poll::Pending) => {
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
            }
        })
        .await;
        let pin = kit.get(tree.root()).await.unwrap();
        Tree::assert_wide(pin.path(), "dropped", 3, 4);
        kit.assert_tidy().await;
        if is_done.load(Ordering::SeqCst) {
            assert!(drop_at > 4, "the construction has more awaits than that");
            return;
        }
    }
}

/// Loses the first task that it is given.
struct ForgetfulExecutor(AtomicBool);

impl Executor for ForgetfulExecutor {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        if self.0.swap(true, Ordering::SeqCst) {
            tokio::spawn(task);
        }
    }
}

#[tokio::test]
async fn a_build_whose_task_is_lost_is_aborted_and_not_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let executor = Arc::new(ForgetfulExecutor(AtomicBool::new(false)));
    let environment = Environment { executor, ..environment() };
    let kit = Kit::open_in(folder.path(), Arc::new(NoSource), Room::default(), environment).await;
    let tree = Tree::wide("lost", 1, 1);
    kit.upload(&tree).await;
    let error = kit.get(tree.root()).await.unwrap_err();
    assert!(matches!(error, TreeError::Aborted { root } if root == tree.root()), "{error}");
    kit.get(tree.root()).await.unwrap();
}
