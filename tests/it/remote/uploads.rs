//! Uploads: the memory of what is there, resumption, headers.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use longshore_cas_store::source::BlobSource as _;
use longshore_proto::{Message as _, reapi};
use longshore_tests::cold::ColdWorker;
use longshore_tests::fake_cas::{FakeCas, Fault, Method};
use longshore_tests::proxy::DelayingProxy;
use longshore_worker::action::ResultSink;
use longshore_worker::remote::{KnownStats, RemoteOptions, TraceContext};
use tonic::Status;

use super::{LARGE_BYTES, noise, options, sha};

// What was uploaded or asked is not asked again until the memory is old, or found wrong.
#[tokio::test]
async fn what_the_server_has_is_remembered() -> Result<()> {
    let cas = FakeCas::start().await?;
    let options = options(&cas);
    let worker = ColdWorker::hasty(&options).await?;
    let read = worker.fetch_one(cas.put("read")).await?;
    let pins = [worker.put("uploaded").await?, read];
    worker.remote.upload(&pins).await?;
    worker.remote.upload(&pins).await?;
    assert_eq!(cas.calls(Method::FindMissingBlobs).len(), 1);
    assert_eq!(worker.remote.stats().known, KnownStats { hits: 2, stale: 0 });

    worker.clock.advance(options.known_age_max);
    worker.remote.upload(&pins).await?;
    assert_eq!(cas.calls(Method::FindMissingBlobs).len(), 2);

    // The server has evicted it, and says so when the result is written.
    cas.evict(&sha(b"uploaded"));
    let result =
        reapi::ActionResult { stdout_digest: Some(sha(b"uploaded").to_wire()), ..Default::default() };
    cas.once(Method::UpdateActionResult, Fault::Fail(Status::failed_precondition("an output is missing")));
    let action = sha(b"action");
    assert!(worker.remote.update_action_result(&action, result.clone()).await.is_err());
    assert_eq!(worker.remote.stats().known.stale, 2, "nobody says which");
    worker.remote.upload(&pins).await?;
    assert!(cas.blob(&sha(b"uploaded")).is_some());
    worker.remote.update_action_result(&action, result).await?;
    Ok(())
}

// A server that was started again has nothing, perhaps; and nothing may be asked of it meanwhile from which that is seen.
#[tokio::test]
async fn what_was_remembered_ends_with_the_connection() -> Result<()> {
    let cas = FakeCas::start().await?;
    let proxy = DelayingProxy::start(cas.uri().trim_start_matches("grpc://"), Duration::ZERO).await?;
    let options = RemoteOptions { endpoint: format!("grpc://{}", proxy.address()), ..options(&cas) };
    let worker = ColdWorker::hasty(&options).await?;
    let pins = [worker.put("uploaded").await?];
    worker.remote.upload(&pins).await?;
    cas.evict(&sha(b"uploaded"));
    proxy.cut();
    let uploaded_again = async {
        while cas.blob(&sha(b"uploaded")).is_none() {
            worker.remote.upload(&pins).await?;
            tokio::task::yield_now().await;
        }
        Ok(())
    };
    tokio::time::timeout(Duration::from_mins(1), uploaded_again)
        .await
        .context("it is believed to be there")?
}

// A write goes on where the server says that it stopped.
#[tokio::test]
async fn a_write_is_resumed() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    cas.once(Method::Write, Fault::Break(1 << 20));
    let pin = worker.put(noise(LARGE_BYTES, 1)).await?;
    worker.remote.upload(std::slice::from_ref(&pin)).await?;
    let writes = cas.calls(Method::Write);
    assert_eq!((writes.len(), writes[0].offset), (2, 0));
    assert!(writes[1].offset >= 1 << 20);
    assert_eq!(writes[0].resource_name, writes[1].resource_name);
    assert_eq!(cas.blob(pin.digest()), Some(worker.read(pin.digest()).await?));
    Ok(())
}

// Compressed where the server offers it, large and small, and what it stores is the blob.
#[tokio::test]
async fn uploads_are_compressed_where_that_is_offered() -> Result<()> {
    let cas = FakeCas::with_zstd().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    let large = worker.put(vec![b'x'; LARGE_BYTES]).await?;
    let small = worker.put(vec![b'y'; 10_000]).await?;
    worker.remote.upload(&[large.clone(), small.clone()]).await?;
    let writes = cas.calls(Method::Write);
    assert!(writes.len() == 1 && writes[0].resource_name.contains("/compressed-blobs/zstd/"), "{writes:?}");
    for pin in [large, small] {
        assert_eq!(cas.blob(pin.digest()), Some(worker.read(pin.digest()).await?));
    }
    Ok(())
}

// Every call says for whom it is made, with the token that is in the file now, in the instance that is configured.
#[tokio::test]
async fn every_call_has_its_headers() -> Result<()> {
    let cas = FakeCas::start().await?;
    let folder = tempfile::tempdir()?;
    let token = folder.path().join("token");
    std::fs::write(&token, "first\n")?;
    let mut options = options(&cas);
    options.token_file = Some(token.clone());
    options.instance_name = "team/main".to_owned();
    let worker = ColdWorker::hasty(&options).await?;
    let metadata = reapi::RequestMetadata { action_id: "an action".to_owned(), ..Default::default() };
    let remote = worker.remote.on_behalf_of(&metadata, &TraceContext::default());
    let pins = [worker.put("small").await?, worker.put(noise(LARGE_BYTES, 1)).await?];
    remote.upload(&pins).await?;
    remote.get_action_result(&sha(b"action")).await?;
    let calls = cas.all_calls();
    assert!(calls.len() >= 5);
    for call in &calls {
        assert_eq!(call.headers.get("authorization").context("no token")?, "Bearer first");
        let header = call.headers.get_bin("build.bazel.remote.execution.v2.requestmetadata-bin");
        let header = reapi::RequestMetadata::decode(header.context("no metadata")?.to_bytes()?)?;
        assert_eq!(header.action_id, "an action", "{call:?}");
        assert_eq!(call.instance_name, "team/main", "{call:?}");
    }

    std::fs::write(&token, "second\n")?;
    worker.clock.advance(Duration::from_mins(1));
    worker.remote.get_action_result(&sha(b"other")).await?;
    let last = cas.calls(Method::GetActionResult).pop().context("a call")?;
    assert_eq!(last.headers.get("authorization").context("no token")?, "Bearer second");
    let header = last.headers.get_bin("build.bazel.remote.execution.v2.requestmetadata-bin");
    let header = reapi::RequestMetadata::decode(header.context("no metadata")?.to_bytes()?)?;
    assert_eq!(header.tool_details.context("who")?.tool_name, "longshore");
    Ok(())
}

// However often it breaks: a write that comes on each time ends.
#[tokio::test]
async fn a_write_that_comes_on_is_not_given_up() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    for part in 1..=8 {
        cas.once(Method::Write, Fault::Break(part * (256 << 10)));
    }
    let pin = worker.put(noise(LARGE_BYTES, 1)).await?;
    worker.remote.upload(std::slice::from_ref(&pin)).await?;
    assert_eq!(cas.calls(Method::Write).len(), 9);
    Ok(())
}

// One server has begun it, and another one behind the same name knows nothing of that.
#[tokio::test]
async fn a_write_that_cannot_go_on_begins_anew() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    cas.once(Method::Write, Fault::Break(1 << 20));
    cas.once(Method::Write, Fault::Fail(Status::invalid_argument("no such write")));
    let pin = worker.put(noise(LARGE_BYTES, 1)).await?;
    worker.remote.upload(std::slice::from_ref(&pin)).await?;
    let offsets: Vec<_> = cas.calls(Method::Write).iter().map(|call| call.offset == 0).collect();
    assert_eq!(offsets, [true, false, true]);
    Ok(())
}

// A blob that another server brought says nothing of this one.
#[tokio::test]
async fn what_came_from_elsewhere_is_not_known_to_be_here() -> Result<()> {
    let (elsewhere, here) = (FakeCas::start().await?, FakeCas::start().await?);
    // In a hurry, nobody would wait for another's stream.
    let worker = ColdWorker::real(&options(&elsewhere), &std::env::temp_dir()).await?;
    let remote = worker.another(&options(&here))?;
    let digest = elsewhere.put(noise(LARGE_BYTES, 1));
    elsewhere.hold(Method::Read);
    let fetch = async { worker.fetch_one(digest).await.map_err(anyhow::Error::from) };
    let fetch_here = async {
        elsewhere.arrived(Method::Read, 1).await;
        let mut fates = remote.fetch(vec![digest], worker.store.clone());
        let release = async {
            here.arrived(Method::GetCapabilities, 1).await;
            elsewhere.release(Method::Read);
        };
        let (fate, ()) = tokio::join!(fates.next(), release);
        fate.context("a fate")?.outcome.map_err(anyhow::Error::from)
    };
    let (pin, other) = tokio::try_join!(fetch, fetch_here)?;
    assert_eq!(pin.digest(), other.digest());
    remote.upload(std::slice::from_ref(&pin)).await?;
    assert!(here.blob(&digest).is_some());
    Ok(())
}

// The server lost an output that it was known to have: the result is written once it has that again.
#[tokio::test]
async fn a_result_brings_what_the_server_lost() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    let pin = worker.put("an output").await?;
    worker.remote.upload(std::slice::from_ref(&pin)).await?;
    cas.evict(pin.digest());
    cas.once(Method::UpdateActionResult, Fault::Fail(Status::failed_precondition("an output is missing")));
    let action = sha(b"action");
    ResultSink::put(&worker.remote, &action, reapi::ActionResult::default(), std::slice::from_ref(&pin))
        .await?;
    assert!(cas.blob(pin.digest()).is_some() && cas.result(&action).is_some());
    Ok(())
}
