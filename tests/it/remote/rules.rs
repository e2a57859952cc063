//! Section 33 of the rules: the worker as a client, each rule a test named by its ID.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use longshore_cas_store::digest::DigestFunction;
use longshore_cas_store::source::FetchError;
use longshore_proto::error_details::{Detail as _, PreconditionFailure, RetryInfo};
use longshore_proto::{Message as _, protobuf, reapi, rpc};
use longshore_tests::cold::ColdWorker;
use longshore_tests::fake_cas::{FakeCas, Fault, Method};
use longshore_tests::tree::InputTree;
use longshore_worker::status::Failure;
use tonic::{Code, Status};

use super::{LARGE_BYTES, noise, options, sha};

/// The client asks for capabilities first, and keeps to what they say.
#[tokio::test]
async fn wcc_01() -> Result<()> {
    let cas = FakeCas::with(reapi::CacheCapabilities {
        max_batch_total_size_bytes: 10_000,
        max_cas_blob_size_bytes: 20_000,
        digest_functions: vec![DigestFunction::Sha256.to_wire().into()],
        ..Default::default()
    })
    .await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    let digests: Vec<_> = (0..50).map(|seed| cas.put(noise(1_000, seed))).collect();
    for outcome in worker.fetch(&digests).await {
        outcome?;
    }
    assert_eq!(cas.all_calls()[0].method, Method::GetCapabilities);
    assert_eq!(cas.calls(Method::GetCapabilities).len(), 1);
    let batches = cas.calls(Method::BatchReadBlobs);
    assert_eq!(batches.iter().map(|batch| batch.hashes.len()).sum::<usize>(), 50);
    for batch in batches {
        assert!(batch.size_bytes + 128 * i64::try_from(batch.hashes.len())? <= 10_000, "{batch:?}");
    }

    let too_large = worker.put(noise(20_001, 0)).await?;
    let error = worker.remote.upload(&[too_large]).await.expect_err("the server does not take it");
    assert!(error.to_string().contains("20000"), "{error}");
    let other = worker.store.put(DigestFunction::Blake3.digest(b"x"), "x".into()).await?;
    let error = worker.remote.upload(&[other]).await.expect_err("a function that is not announced");
    assert!(error.to_string().contains("blake3"), "{error}");
    assert!(cas.calls(Method::Write).is_empty() && cas.calls(Method::BatchUpdateBlobs).is_empty());
    Ok(())
}

/// What is missing is asked in batches before anything is sent, and nothing else is sent.
#[tokio::test]
async fn wcc_02() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    let blobs: Vec<_> = (0..5_000_u32)
        .map(|number| Bytes::from(number.to_le_bytes().to_vec()))
        .map(|data| (sha(&data), data))
        .collect();
    cas.put_all(blobs.iter().step_by(2));
    let pins: Vec<_> = worker.store.put_many(blobs).await.into_iter().collect::<Result<_, _>>()?;
    worker.remote.upload(&pins).await?;
    let questions = cas.calls(Method::FindMissingBlobs);
    assert!(questions.len() == 3 && questions.iter().all(|question| question.hashes.len() <= 2_000));
    let sent: usize = cas.calls(Method::BatchUpdateBlobs).iter().map(|batch| batch.hashes.len()).sum();
    assert_eq!(sent, 2_500);
    ensure!(pins.iter().all(|pin| cas.blob(pin.digest()).is_some()), "all are there");
    Ok(())
}

/// Small blobs travel in batches below the limit, large ones by ByteStream under a fresh id.
#[tokio::test]
async fn wcc_03() -> Result<()> {
    let capabilities = reapi::CacheCapabilities { max_batch_total_size_bytes: 65_536, ..Default::default() };
    let cas = FakeCas::with(capabilities).await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    let mut pins = Vec::new();
    for seed in 0..100 {
        pins.push(worker.put(noise(5_000, seed)).await?);
    }
    for seed in 0..2 {
        pins.push(worker.put(noise(65_500, 200 + seed)).await?);
    }
    worker.remote.upload(&pins).await?;
    for batch in cas.calls(Method::BatchUpdateBlobs) {
        assert!(batch.size_bytes + 100 * i64::try_from(batch.hashes.len())? <= 65_536, "{batch:?}");
    }
    let writes = cas.calls(Method::Write);
    let ids: Vec<_> = writes.iter().filter_map(|write| write.resource_name.split('/').nth(1)).collect();
    assert_eq!(ids.len(), 2);
    assert_ne!(ids[0], ids[1]);
    for id in ids {
        assert_eq!(uuid::Uuid::parse_str(id)?.get_version_num(), 4);
    }
    for pin in &pins {
        assert_eq!(cas.blob(pin.digest()).context("uploaded")?, worker.read(pin.digest()).await?);
    }
    Ok(())
}

/// A wrong byte is an error that names the blob, after a bounded number of tries, and is never stored.
#[tokio::test]
async fn wcc_04() -> Result<()> {
    for cas in [FakeCas::start().await?, FakeCas::with_zstd().await?] {
        let worker = ColdWorker::hasty(&options(&cas)).await?;
        cas.always(Method::BatchReadBlobs, Fault::Corrupt);
        cas.always(Method::Read, Fault::Corrupt);
        for len in [5_000, LARGE_BYTES] {
            let digest = cas.put(noise(len, 1));
            let error = worker.fetch_one(digest).await.expect_err("wrong");
            assert!(matches!(error, FetchError::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains(&digest.to_string()), "{error}");
            assert!(error.to_string().contains(cas.uri()), "{error}");
            assert!(worker.store.pin(&digest).is_none());
        }
        assert!(cas.calls(Method::BatchReadBlobs).len() == 1 && cas.calls(Method::Read).len() <= 4);

        // What was wrong once may be right the next time.
        cas.heal(Method::BatchReadBlobs);
        cas.heal(Method::Read);
        cas.once(Method::BatchReadBlobs, Fault::Corrupt);
        cas.once(Method::Read, Fault::Corrupt);
        for len in [5_000, LARGE_BYTES] {
            let data = noise(len, 2);
            let digest = cas.put(data.clone());
            worker.fetch_one(digest).await?;
            assert_eq!(worker.read(&digest).await?, data);
        }
    }
    Ok(())
}

/// An early answer of a write is taken if it says the size, or -1 where it was compressed, and for nothing else.
#[tokio::test]
async fn wcc_05() -> Result<()> {
    let size = i64::try_from(LARGE_BYTES)?;
    let (plain, zstd) = (FakeCas::start().await?, FakeCas::with_zstd().await?);
    for (cas, committed_size, is_fine) in
        [(&plain, size, true), (&plain, -1, false), (&plain, 7, false), (&zstd, -1, true), (&zstd, 7, false)]
    {
        let worker = ColdWorker::hasty(&options(cas)).await?;
        cas.always(Method::Write, Fault::Commit(committed_size));
        let pin = worker.put(noise(LARGE_BYTES, 1)).await?;
        let outcome = worker.remote.upload(&[pin]).await;
        assert_eq!(outcome.is_ok(), is_fine, "{committed_size}: {outcome:?}");
    }
    Ok(())
}

/// Servers without `QueryWriteStatus`, `GetTree`, offsets or compressed-blobs are served all the same.
#[tokio::test]
async fn wcc_06() -> Result<()> {
    let cas = FakeCas::with_zstd().await?;
    let absent = || Fault::Fail(Status::unimplemented("not here"));
    for method in [Method::QueryWriteStatus, Method::GetTree] {
        cas.always(method, absent());
    }
    let worker = ColdWorker::hasty(&options(&cas)).await?;

    // Compressed, then plain; the plain stream breaks, and an offset is refused.
    cas.once(Method::Read, absent());
    cas.once(Method::Read, Fault::Break(1 << 20));
    cas.once(Method::Read, Fault::Fail(Status::unimplemented("read_offset")));
    let digest = cas.put(noise(LARGE_BYTES, 1));
    worker.fetch_one(digest).await?;
    let reads = cas.calls(Method::Read);
    let offsets: Vec<_> = reads.iter().map(|read| read.offset).collect();
    assert!(offsets.len() == 4 && offsets[2] > 0 && offsets[3] == 0, "{offsets:?}");
    assert!(reads[0].resource_name.starts_with("compressed-blobs/zstd/"));
    assert!(reads[1].resource_name.starts_with("blobs/"));

    // A write that breaks begins anew under another name.
    cas.once(Method::Write, Fault::Break(1 << 20));
    let pin = worker.put(noise(LARGE_BYTES, 2)).await?;
    worker.remote.upload(std::slice::from_ref(&pin)).await?;
    let writes = cas.calls(Method::Write);
    assert_eq!(writes.iter().map(|write| write.offset).collect::<Vec<_>>(), [0, 0]);
    assert_ne!(writes[0].resource_name, writes[1].resource_name);
    assert_eq!(cas.blob(pin.digest()), Some(worker.read(pin.digest()).await?));

    // A tree is read level by level, and GetTree is not tried again.
    for name in ["one", "two"] {
        let tree = InputTree::new().file(&format!("a/b/{name}"), name).build(DigestFunction::Sha256);
        cas.put_all(tree.blobs());
        worker.get(tree.root).await?;
    }
    assert_eq!(cas.calls(Method::GetTree).len(), 1);
    Ok(())
}

/// Faults that can pass are retried with growing pauses, `RetryInfo` is kept to, and the rest is never retried.
#[tokio::test]
async fn wcc_07() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    let info = RetryInfo { retry_delay: Some(protobuf::Duration { seconds: 3, nanos: 0 }) };
    let details = rpc::Status { details: vec![info.to_any()], ..Default::default() }.encode_to_vec();
    let busy = Status::with_details(Code::ResourceExhausted, "busy", details.into());
    let passing = [
        Status::unavailable(""),
        busy,
        Status::aborted(""),
        Status::internal(""),
        Status::unknown(""),
        Status::deadline_exceeded(""),
    ];
    for (seed, status) in (0..).zip(passing) {
        cas.once(Method::BatchReadBlobs, Fault::Fail(status.clone()));
        let outcome = worker.fetch_one(cas.put(noise(100, seed))).await;
        assert!(outcome.is_ok(), "{status:?}: {outcome:?}");
    }
    let sleeps = worker.clock.sleeps();
    assert_eq!(sleeps.len(), 6);
    assert_eq!(sleeps[1], Duration::from_secs(3), "the server said when");

    let lasting = [Code::PermissionDenied, Code::Unauthenticated, Code::NotFound, Code::Unimplemented];
    for (seed, code) in (100..).zip(lasting.into_iter().chain([Code::InvalidArgument])) {
        cas.always(Method::FindMissingBlobs, Fault::Fail(Status::new(code, "no")));
        let before = cas.calls(Method::FindMissingBlobs).len();
        let pin = worker.put(noise(100, seed)).await?;
        let error = worker.remote.upload(&[pin]).await.expect_err("refused");
        assert_eq!(error.code(), Some(code));
        assert_eq!(cas.calls(Method::FindMissingBlobs).len() - before, 1, "{code:?}");
    }
    assert_eq!(worker.clock.sleeps().len(), 6);
    Ok(())
}

/// Inputs that the server does not have end as `FAILED_PRECONDITION` with a violation for each.
#[tokio::test]
async fn wcc_08() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    let large = noise(LARGE_BYTES, 1);
    let tree = InputTree::new()
        .file("here", "here")
        .file("small", "small")
        .file("deep/down/large", large.clone())
        .build(DigestFunction::Sha256);
    cas.put_all(tree.blobs());
    let mut missing = vec![sha(b"small"), sha(&large)];
    missing.sort_unstable();
    for digest in &missing {
        cas.evict(digest);
    }
    let error = worker.get(tree.root).await.expect_err("inputs are missing");
    let status = Failure::from(error).to_rpc();
    assert_eq!(status.code, i32::from(Code::FailedPrecondition));
    let detail = status.details.iter().find_map(PreconditionFailure::from_any).context("details")?;
    let subjects: Vec<_> = detail.violations.iter().map(|violation| violation.subject.clone()).collect();
    let expected: Vec<_> = missing.iter().map(|digest| format!("blobs/{digest}")).collect();
    assert_eq!(subjects, expected);
    assert!(detail.violations.iter().all(|violation| violation.r#type == "MISSING"));
    Ok(())
}

/// The digest function is in every request that has the field, and in resource names only where it is new.
#[tokio::test]
async fn wcc_09() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    for (function, infix) in [(DigestFunction::Sha256, "blobs/"), (DigestFunction::Blake3, "blobs/blake3/")] {
        let before = cas.all_calls().len();
        let tree = InputTree::new().file("large", noise(LARGE_BYTES, 1)).file("small", "s").build(function);
        cas.put_all(tree.blobs());
        worker.get(tree.root).await?;
        let output = noise(LARGE_BYTES, 2);
        let large = worker.store.put(function.digest(&output), output).await?;
        let small = worker.store.put(function.digest(b"o"), "o".into()).await?;
        worker.remote.upload(&[large, small]).await?;
        let action = function.digest(b"action");
        assert_eq!(worker.remote.get_action_result(&action).await?, None);
        let result = reapi::ActionResult { exit_code: 3, ..Default::default() };
        worker.remote.update_action_result(&action, result.clone()).await?;
        assert_eq!(worker.remote.get_action_result(&action).await?, Some(result));
        for call in &cas.all_calls()[before..] {
            match call.method {
                Method::Read => assert!(call.resource_name.starts_with(infix), "{call:?}"),
                Method::Write => {
                    assert!(call.resource_name.contains(&format!("/{infix}{}", call.hashes[0])), "{call:?}");
                }
                Method::GetCapabilities => {}
                _ => assert_eq!(call.digest_function, function.to_wire() as i32, "{call:?}"),
            }
        }
        for method in [Method::GetTree, Method::BatchReadBlobs, Method::Read, Method::Write] {
            assert!(cas.all_calls()[before..].iter().any(|call| call.method == method), "{method:?}");
        }
    }
    Ok(())
}

/// A batch that is answered in part is completed a blob at a time.
#[tokio::test]
async fn wcc_10() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    for fault in
        [Fault::Entries(Code::ResourceExhausted), Fault::Truncate(0), Fault::Fail(Status::out_of_range(""))]
    {
        let seed = u8::try_from(cas.calls(Method::Read).len())?;
        let digests = [cas.put(noise(1_000, seed)), cas.put(noise(2_000, seed))];
        cas.once(Method::BatchReadBlobs, fault.clone());
        for outcome in worker.fetch(&digests).await {
            assert!(outcome.is_ok(), "{fault:?}: {outcome:?}");
        }
    }
    assert_eq!((cas.calls(Method::BatchReadBlobs).len(), cas.calls(Method::Read).len()), (3, 6));

    cas.once(Method::BatchUpdateBlobs, Fault::Entries(Code::ResourceExhausted));
    let pins = [worker.put("one").await?, worker.put("two").await?];
    worker.remote.upload(&pins).await?;
    assert_eq!(cas.calls(Method::Write).len(), 2);
    Ok(())
}

/// The empty blob is never fetched and never uploaded.
#[tokio::test]
async fn wcc_11() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    let empty = sha(b"");
    let pin = worker.fetch_one(empty).await?;
    worker.remote.upload(&[pin]).await?;
    let tree = InputTree::new().file("empty", "").directory("nothing").build(DigestFunction::Sha256);
    cas.put_all(tree.directories.iter().filter(|(digest, _)| *digest == tree.root));
    worker.get(tree.root).await?;
    worker.get(empty).await?;
    for call in cas.all_calls() {
        assert!(!call.hashes.contains(&empty.hash_hex()), "{call:?}");
    }
    Ok(())
}

/// A blob that several actions or input trees want at once is fetched once.
#[tokio::test]
async fn wcc_12() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    for (method, len) in [(Method::BatchReadBlobs, 1_000), (Method::Read, LARGE_BYTES)] {
        let digest = cas.put(noise(len, 1));
        cas.hold(method);
        let one = worker.fetch_one(digest);
        let two = async {
            cas.arrived(method, 1).await;
            let joined = worker.remote.stats().joined_wants;
            let fetch = worker.fetch_one(digest);
            let release = async {
                while worker.remote.stats().joined_wants == joined {
                    tokio::task::yield_now().await;
                }
                cas.release(method);
            };
            futures::join!(fetch, release).0
        };
        let (one, two) = futures::join!(one, two);
        assert_eq!((one?.digest(), two?.digest()), (&digest, &digest));
        assert_eq!(cas.calls(method).len(), 1);
    }

    // So is one that several input trees have in common.
    let shared = noise(1_000, 2);
    let trees = ["one", "two", "three"]
        .map(|name| InputTree::new().file(name, shared.clone()).build(DigestFunction::Sha256));
    for tree in &trees {
        cas.put_all(tree.blobs());
        for (_, message) in &tree.directories {
            worker.put(message.clone()).await?;
        }
    }
    let (asked, joined) = (cas.calls(Method::BatchReadBlobs).len(), worker.remote.stats().joined_wants);
    cas.hold(Method::BatchReadBlobs);
    let builds = futures::future::try_join_all(trees.iter().map(|tree| worker.get(tree.root)));
    let release = async {
        while worker.remote.stats().joined_wants < joined + 2 {
            tokio::task::yield_now().await;
        }
        cas.release(Method::BatchReadBlobs);
    };
    assert_eq!(futures::join!(builds, release).0?.len(), 3);
    assert_eq!(cas.calls(Method::BatchReadBlobs).len(), asked + 1);
    Ok(())
}
