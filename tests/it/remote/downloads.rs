//! What the queue promises, seen from the server.

use std::collections::HashSet;

use anyhow::Result;
use longshore_cas_store::digest::DigestFunction;
use longshore_cas_store::source::{BlobSource as _, FetchError};
use longshore_proto::{Message as _, reapi};
use longshore_tests::cold::ColdWorker;
use longshore_tests::fake_cas::{FakeCas, Fault, Method};
use longshore_tests::tree::{InputTree, T3};
use tonic::Status;

use super::{LARGE_BYTES, noise, options};

// A stream goes on where it broke off, and ends that look fine but come too early are found.
#[tokio::test]
async fn a_large_blob_is_resumed() -> Result<()> {
    for cas in [FakeCas::start().await?, FakeCas::with_zstd().await?] {
        let worker = ColdWorker::hasty(&options(&cas)).await?;
        cas.once(Method::Read, Fault::Break(1 << 20));
        cas.once(Method::Read, Fault::Truncate(1 << 20));
        let data = noise(LARGE_BYTES, 1);
        let digest = cas.put(data.clone());
        worker.fetch_one(digest).await?;
        assert_eq!(worker.read(&digest).await?, data);
        let offsets: Vec<_> = cas.calls(Method::Read).iter().map(|read| read.offset).collect();
        assert!(offsets.len() == 3 && offsets.is_sorted_by(|a, b| a < b), "{offsets:?}");
    }
    Ok(())
}

// A blob that arrived by another way while it was in line is not fetched.
#[tokio::test]
async fn what_arrived_meanwhile_is_not_fetched() -> Result<()> {
    let cas = FakeCas::start().await?;
    let mut options = options(&cas);
    options.requests_in_flight_max = 1;
    let worker = ColdWorker::hasty(&options).await?;
    cas.hold(Method::BatchReadBlobs);
    let first = cas.put(noise(1_000, 1));
    let data = noise(1_000, 2);
    let second = cas.put(data.clone());
    let fetch_first = worker.fetch_one(first);
    let fetch_second = async {
        cas.arrived(Method::BatchReadBlobs, 1).await;
        let wait = worker.fetch_one(second);
        let arrive = async {
            worker.put(data.clone()).await?;
            cas.release(Method::BatchReadBlobs);
            Ok::<_, anyhow::Error>(())
        };
        let (wait, arrive) = futures::join!(wait, arrive);
        arrive?;
        Ok::<_, anyhow::Error>(wait?)
    };
    let (first, second) = futures::join!(fetch_first, fetch_second);
    first?;
    second?;
    assert_eq!(cas.calls(Method::BatchReadBlobs).len(), 1);
    assert_eq!(worker.remote.stats().spared_blobs, 1);
    Ok(())
}

// What nobody waits for any more is taken out of the line.
#[tokio::test]
async fn what_was_given_up_is_not_fetched() -> Result<()> {
    let cas = FakeCas::start().await?;
    let mut options = options(&cas);
    options.requests_in_flight_max = 1;
    let worker = ColdWorker::hasty(&options).await?;
    cas.hold(Method::BatchReadBlobs);
    let (first, second) = (cas.put(noise(1_000, 1)), cas.put(noise(1_000, 2)));
    let fetch = worker.fetch_one(first);
    let give_up = async {
        cas.arrived(Method::BatchReadBlobs, 1).await;
        let mut wait = worker.remote.fetch(vec![second], worker.store.clone());
        assert!(futures::poll!(futures::StreamExt::next(&mut wait)).is_pending());
        drop(wait);
        cas.release(Method::BatchReadBlobs);
    };
    futures::join!(fetch, give_up).0?;
    let fetched: HashSet<_> =
        cas.calls(Method::BatchReadBlobs).into_iter().flat_map(|batch| batch.hashes).collect();
    assert!(!fetched.contains(&second.hash_hex()));
    Ok(())
}

// A cold tree takes one question for its messages, and one changed file does not bring the whole tree again.
#[tokio::test]
async fn a_tree_is_asked_for_once() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    let shape = T3.tree(1);
    let tree = shape.build(worker_function());
    cas.put_all(tree.blobs());
    let pin = worker.get(tree.root).await?;
    assert_eq!(std::fs::read_dir(pin.path())?.count(), top_level(&tree.directories, tree.root)?);
    assert_eq!(cas.calls(Method::GetTree).len(), 1);
    let messages: HashSet<_> = tree.directories.iter().map(|(digest, _)| digest.hash_hex()).collect();
    for batch in cas.calls(Method::BatchReadBlobs) {
        assert!(batch.hashes.iter().all(|hash| !messages.contains(hash)), "GetTree has brought it");
    }

    let changed = shape.file("changed", "changed").build(worker_function());
    cas.put_all(changed.blobs());
    let before = worker.remote.stats().fetched_blobs;
    worker.get(changed.root).await?;
    assert!(worker.remote.stats().fetched_blobs - before <= 2);
    Ok(())
}

fn worker_function() -> DigestFunction {
    DigestFunction::Sha256
}

/// Entries of the root's message.
fn top_level(
    directories: &[longshore_tests::tree::Blob],
    root: longshore_cas_store::digest::Digest,
) -> Result<usize> {
    let (_, message) = directories.iter().find(|(digest, _)| *digest == root).expect("the root");
    let root = reapi::Directory::decode(message.clone())?;
    Ok(root.files.len() + root.directories.len() + root.symlinks.len())
}

// What a message names in a way that its bytes do not survive is fetched as it is.
#[tokio::test]
async fn messages_that_are_not_canonical_are_read_as_they_are() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    let tree = InputTree::new().file("a", "a").build(worker_function());
    cas.put_all(tree.blobs());
    // An unknown field, which whoever encodes the message again loses.
    let (_, message) = &tree.directories[0];
    let mut message = message.to_vec();
    message.extend_from_slice(&[0xf8, 0x07, 0x01]);
    let root = cas.put(message);
    worker.get(root).await?;
    Ok(())
}

// A server that cannot go on, and breaks each time, is not read from without end.
#[tokio::test]
async fn a_read_that_never_comes_on_is_given_up() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    cas.once(Method::Read, Fault::Break(1 << 20));
    cas.once(Method::Read, Fault::Fail(Status::out_of_range("read_offset")));
    cas.always(Method::Read, Fault::Break(1 << 20));
    let error = worker.fetch_one(cas.put(noise(LARGE_BYTES, 1))).await.expect_err("it always breaks");
    assert!(matches!(error, FetchError::Unavailable { .. }), "{error}");
    Ok(())
}

// What a server sends that does not heed the offset is not the blob, and it is not asked to go on again.
#[tokio::test]
async fn a_server_that_heeds_no_offset_is_read_from_the_start() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    for fault in [Fault::Break(1 << 20), Fault::Anew, Fault::Break(2 << 20)] {
        cas.once(Method::Read, fault);
    }
    cas.always(Method::Read, Fault::Anew);
    worker.fetch_one(cas.put(noise(LARGE_BYTES, 1))).await?;
    let offsets: Vec<_> = cas.calls(Method::Read).iter().map(|call| call.offset > 0).collect();
    assert_eq!(offsets, [false, true, false, false]);
    Ok(())
}

// What comes beside the tree was not asked for, and is not stored.
#[tokio::test]
async fn a_tree_brings_nothing_else() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    cas.always(Method::GetTree, Fault::Corrupt);
    let tree = T3.tree(1).build(DigestFunction::Sha256);
    cas.put_all(tree.blobs());
    worker.get(tree.root).await?;
    assert_eq!(cas.calls(Method::GetTree).len(), 1);
    assert_eq!(worker.store.stats().blobs, tree.blobs().count() as u64);
    Ok(())
}
