//! Prefetch gives way, is lifted, is capped, and makes the tree ready.

use std::sync::Arc;

use anyhow::Result;
use longshore_cas_store::digest::DigestFunction;
use longshore_proto::{Message as _, reapi};
use longshore_tests::cold::ColdWorker;
use longshore_tests::fake_cas::{FakeCas, Method};
use longshore_tests::tree::{InputTree, T3};
use longshore_worker::remote::{Prefetcher, SpeculationLimits};

use super::{noise, options};

#[tokio::test]
async fn a_prefetched_tree_is_ready() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    let tree = T3.tree(1).build(DigestFunction::Sha256);
    cas.put_all(tree.blobs());
    let prefetcher = Prefetcher::new(&worker.remote, worker.cache.clone(), SpeculationLimits::default());
    let outcome = prefetcher.prefetch(tree.root).await;
    assert!(outcome.tree.is_some() && outcome.skipped_files == 0);
    let calls = cas.all_calls().len();
    worker.get(tree.root).await?;
    assert_eq!(cas.all_calls().len(), calls, "the action finds everything");
    Ok(())
}

#[tokio::test]
async fn speculation_is_capped_a_directory_and_in_all() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    let mut tree = InputTree::new();
    for (index, seed) in (0..6).zip(1..) {
        tree = tree.file(&format!("{}/{index}", ["a", "b"][index % 2]), noise(1_000, seed));
    }
    let tree = tree.build(DigestFunction::Sha256);
    cas.put_all(tree.blobs());
    let messages_bytes: u64 = tree.directories.iter().map(|(digest, _)| digest.size_bytes()).sum();
    for (limits, skipped) in [
        (SpeculationLimits { directory_bytes_max: 2_000, ..Default::default() }, 2),
        (SpeculationLimits { bytes_max: messages_bytes + 1_000, ..Default::default() }, 5),
    ] {
        let prefetcher = Prefetcher::new(&worker.remote, worker.cache.clone(), limits);
        // What a prefetch holds is given back with it.
        for _ in 0..2 {
            let outcome = prefetcher.prefetch(tree.root).await;
            assert!(outcome.tree.is_none());
            assert_eq!(outcome.skipped_files, skipped);
        }
    }
    worker.get(tree.root).await?;
    Ok(())
}

// What is named as a directory may be anything.
#[tokio::test]
async fn what_is_too_large_for_a_directory_is_not_even_fetched() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    let prefetcher = Prefetcher::new(&worker.remote, worker.cache.clone(), SpeculationLimits::default());
    let root = cas.put(noise(5 << 20, 1));
    assert!(prefetcher.prefetch(root).await.tree.is_none());
    let node = reapi::DirectoryNode { name: "child".to_owned(), digest: Some(root.to_wire()) };
    let parent = reapi::Directory { directories: vec![node], ..Default::default() };
    let parent = cas.put(parent.encode_to_vec());
    assert!(prefetcher.prefetch(parent).await.tree.is_none());
    assert!(worker.store.pin(&parent).is_some() && worker.store.pin(&root).is_none());
    Ok(())
}

// What an action waits for goes first, and what it shares with a prefetch goes with it.
#[tokio::test]
async fn an_action_overtakes_a_prefetch() -> Result<()> {
    let cas = FakeCas::start().await?;
    let mut options = options(&cas);
    options.requests_in_flight_max = 1;
    let worker = Arc::new(ColdWorker::hasty(&options).await?);
    let shared = noise(200_000, 100);
    let mut tree = InputTree::new().file("z/shared", shared.clone());
    for seed in 0..8 {
        tree = tree.file(&format!("a/{seed}"), noise(200_000, seed));
    }
    let tree = tree.build(DigestFunction::Sha256);
    cas.put_all(tree.blobs());
    let urgent = cas.put(noise(1_000, 101));
    let shared = DigestFunction::Sha256.digest(&shared);

    cas.hold(Method::BatchReadBlobs);
    let prefetcher = Prefetcher::new(&worker.remote, worker.cache.clone(), SpeculationLimits::default());
    let prefetch = prefetcher.prefetch(tree.root);
    let action = async {
        // The messages came by GetTree: the first batch is of files.
        cas.arrived(Method::BatchReadBlobs, 1).await;
        let first = cas.calls(Method::BatchReadBlobs).remove(0).hashes;
        let wanted = [urgent, shared];
        let fetch = worker.fetch(&wanted);
        let release = async {
            tokio::task::yield_now().await;
            cas.release(Method::BatchReadBlobs);
        };
        let outcomes = futures::join!(fetch, release).0;
        (first, outcomes)
    };
    let (outcome, (first, outcomes)) = futures::join!(prefetch, action);
    for outcome in outcomes {
        outcome?;
    }
    assert!(outcome.tree.is_some());
    let batches: Vec<_> = cas.calls(Method::BatchReadBlobs).into_iter().map(|batch| batch.hashes).collect();
    let mut second = batches[1].clone();
    second.sort_unstable();
    let mut expected: Vec<_> =
        [urgent, shared].iter().map(longshore_cas_store::digest::Digest::hash_hex).collect();
    expected.retain(|hash| !first.contains(hash));
    expected.sort_unstable();
    assert_eq!(second, expected, "the action's blobs, and nothing that only the prefetch wants");
    let mut all = batches.concat();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count, "nothing was fetched twice");
    Ok(())
}
