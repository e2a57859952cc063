//! Outages, and servers that cannot be helped.

use std::time::Duration;

use anyhow::Result;
use longshore_cas_store::source::FetchError;
use longshore_tests::cold::ColdWorker;
use longshore_tests::fake_cas::{FakeCas, Fault, Method};
use longshore_tests::proxy::DelayingProxy;
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

// A way on which nothing arrives any more is found out, and what was asked for on it is asked for on another one.
#[tokio::test]
async fn a_server_vanishes() -> Result<()> {
    let cas = FakeCas::start().await?;
    let proxy = DelayingProxy::start(cas.uri().trim_start_matches("grpc://"), Duration::ZERO).await?;
    let worker = ColdWorker::hasty(&RemoteOptions::new(format!("grpc://{}", proxy.address()))).await?;
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
