//! Outages, and servers that cannot be helped.

use std::time::Duration;

use anyhow::Result;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use longshore_cas_store::source::FetchError;
use longshore_proto::reapi;
use longshore_tests::cold::ColdWorker;
use longshore_tests::fake_cas::{FakeCas, Fault, Method};
use longshore_tests::proxy::DelayingProxy;
use longshore_worker::connect::Pings;
use longshore_worker::remote::{RemoteError, RemoteOptions};
use tonic::Status;

use super::{noise, options};

// A server that is gone for minutes costs time, not the action.
#[tokio::test]
async fn an_outage_of_minutes_loses_nothing() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    for method in [Method::FindMissingBlobs, Method::BatchUpdateBlobs, Method::BatchReadBlobs] {
        for _ in 0..20 {
            cas.once(method, Fault::Fail(Status::unavailable("restarting")));
        }
    }
    let pin = worker.put("an output").await?;
    worker.remote.upload(std::slice::from_ref(&pin)).await?;
    assert!(cas.blob(pin.digest()).is_some());
    worker.fetch_one(cas.put("an input")).await?;
    let slept: Duration = worker.clock.sleeps().iter().sum();
    assert!(slept > Duration::from_mins(3), "{slept:?}");
    Ok(())
}

// Behind something that accepts connections for a server that is gone, an outage looks like connections that break.
#[tokio::test]
async fn connections_that_break_are_an_outage() -> Result<()> {
    let cas = FakeCas::start().await?;
    let proxy = DelayingProxy::start(cas.uri().trim_start_matches("grpc://"), Duration::ZERO).await?;
    let worker = ColdWorker::hasty(&RemoteOptions::new(format!("grpc://{}", proxy.address()))).await?;
    let pin = worker.put("an output").await?;
    cas.hold(Method::BatchUpdateBlobs);
    let cuts = async {
        for count in 1..=8 {
            cas.arrived(Method::BatchUpdateBlobs, count).await;
            proxy.cut();
        }
        cas.release(Method::BatchUpdateBlobs);
    };
    let (uploaded, ()) = tokio::join!(worker.remote.upload(std::slice::from_ref(&pin)), cuts);
    uploaded?;

    let proxy = DelayingProxy::start("127.0.0.1:1", Duration::ZERO).await?;
    let options = RemoteOptions::new(format!("grpc://{}", proxy.address()));
    let worker = ColdWorker::hasty(&options).await?;
    let pin = worker.put("an output").await?;
    let error = worker.remote.upload(&[pin]).await.expect_err("nobody is there");
    assert!(matches!(error, RemoteError::Unavailable { .. }), "{error}");
    let slept: Duration = worker.clock.sleeps().iter().sum();
    assert!(slept >= options.outage_max, "{slept:?}");
    Ok(())
}

// An outage at the first question is waited out once for all who ask, not by one after the other.
#[tokio::test]
async fn an_outage_at_the_start_is_waited_out_once() -> Result<()> {
    let options = RemoteOptions::new("grpc://127.0.0.1:1");
    let worker = ColdWorker::hasty(&options).await?;
    let fetches = (0..4).map(|number: u8| worker.fetch_one(super::sha(&[number])));
    for fetched in futures::future::join_all(fetches).await {
        assert!(matches!(fetched, Err(FetchError::Unavailable { .. })), "{fetched:?}");
    }
    let slept: Duration = worker.clock.sleeps().iter().sum();
    assert!(slept < 2 * options.outage_max, "{slept:?}");
    Ok(())
}

/// Sets the clock of timeouts forward.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

// The connection is well, and this call hangs: it is made again.
#[tokio::test]
async fn a_call_that_hangs_is_made_again() -> Result<()> {
    let cas =
        FakeCas::with(reapi::CacheCapabilities { max_batch_total_size_bytes: 1_000, ..Default::default() });
    let cas = cas.await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    let (input, output) = (cas.put("an input"), worker.put(noise(4_000, 1)).await?);
    let fetch = async { worker.fetch_one(input).await.map(drop).map_err(anyhow::Error::from) };
    let upload =
        async { worker.remote.upload(std::slice::from_ref(&output)).await.map_err(anyhow::Error::from) };
    let calls: [(Method, BoxFuture<'_, Result<()>>); 2] =
        [(Method::BatchReadBlobs, fetch.boxed()), (Method::Write, upload.boxed())];
    for (method, call) in calls {
        cas.hold(method);
        let hang = async {
            cas.arrived(method, 1).await;
            pass(Duration::from_mins(11)).await;
            cas.arrived(method, 2).await;
            cas.release(method);
        };
        let (outcome, ()) = tokio::join!(call, hang);
        outcome?;
    }
    Ok(())
}

// A token that was replaced before its time is not used until it is old.
#[tokio::test]
async fn a_token_that_is_refused_is_read_again() -> Result<()> {
    let cas = FakeCas::start().await?;
    let token = tempfile::NamedTempFile::new()?;
    let options = RemoteOptions { token_file: Some(token.path().to_owned()), ..options(&cas) };
    let worker = ColdWorker::hasty(&options).await?;
    std::fs::write(token.path(), "one")?;
    worker.fetch_one(cas.put("before")).await?;
    std::fs::write(token.path(), "two")?;
    cas.once(Method::BatchReadBlobs, Fault::Fail(Status::unauthenticated("revoked")));
    worker.fetch_one(cas.put("after")).await?;
    let calls = cas.calls(Method::BatchReadBlobs);
    let used: Vec<_> = calls.iter().map(|call| call.headers.get("authorization")).collect();
    assert_eq!(
        used,
        ["Bearer one", "Bearer one", "Bearer two"]
            .map(|value| Some(value.parse().expect("ASCII")))
            .each_ref()
            .map(Option::as_ref)
    );
    // One that stays refused is refused.
    cas.always(Method::BatchReadBlobs, Fault::Fail(Status::unauthenticated("revoked")));
    assert!(worker.fetch_one(cas.put("never")).await.is_err());
    assert_eq!(cas.calls(Method::BatchReadBlobs).len(), 5);
    Ok(())
}

// A way on which nothing arrives any more is found out, and what was asked for on it is asked for on another one.
#[tokio::test]
async fn a_server_vanishes() -> Result<()> {
    let cas = FakeCas::start().await?;
    let proxy = DelayingProxy::start(cas.uri().trim_start_matches("grpc://"), Duration::ZERO).await?;
    let options =
        RemoteOptions { pings: Pings::Free, ..RemoteOptions::new(format!("grpc://{}", proxy.address())) };
    let worker = ColdWorker::hasty(&options).await?;
    worker.fetch_one(cas.put("before")).await?;
    proxy.swallow();
    worker.fetch_one(cas.put("after")).await?;
    let pin = worker.put("an output").await?;
    worker.remote.upload(std::slice::from_ref(&pin)).await?;
    assert!(cas.blob(pin.digest()).is_some());
    Ok(())
}

// An outage has its end too, and the error says who and what.
#[tokio::test]
async fn an_endless_outage_is_an_error() -> Result<()> {
    let options = RemoteOptions::new("grpc://127.0.0.1:1");
    let worker = ColdWorker::hasty(&options).await?;
    let pin = worker.put("an output").await?;
    let error = worker.remote.upload(&[pin]).await.expect_err("nobody is there");
    assert!(
        matches!(&error, RemoteError::Unavailable { origin, .. } if *origin == options.endpoint),
        "{error}"
    );
    let error = worker.fetch_one(super::sha(b"an input")).await.expect_err("nobody is there");
    assert!(matches!(error, FetchError::Unavailable { .. }), "{error}");
    let slept: Duration = worker.clock.sleeps().iter().sum();
    assert!(slept >= 2 * options.outage_max, "{slept:?}");
    Ok(())
}

// A server that fails every call is not asked for ever.
#[tokio::test]
async fn a_broken_server_is_given_up() -> Result<()> {
    let cas = FakeCas::start().await?;
    let worker = ColdWorker::hasty(&options(&cas)).await?;
    cas.always(Method::BatchReadBlobs, Fault::Fail(Status::internal("broken")));
    for seed in 0..100 {
        let error = worker.fetch_one(cas.put(noise(100, seed))).await.expect_err("broken");
        assert!(error.to_string().contains("broken"), "{error}");
    }
    let calls = cas.calls(Method::BatchReadBlobs).len();
    assert!((100..=200).contains(&calls), "{calls} calls for 100 blobs");
    Ok(())
}
