//! Executions elsewhere whose streams break off, or whose server forgets them.

use anyhow::Result;
use longshore_proto::reapi;
use longshore_tests::cold::ColdWorker;
use longshore_tests::fake_cas::{FakeCas, Fault, Method, Told};
use longshore_worker::remote::RemoteError;
use tonic::{Code, Status};

use super::{options, sha};

/// The end of an execution that is told from others.
fn done() -> Told {
    Told::Done(Box::new(reapi::ActionResult { exit_code: 7, ..Default::default() }))
}

fn breaks(name: &str) -> Told {
    Told::Breaks(name.to_owned(), Status::unavailable("restarting"))
}

/// The operations that were waited for.
fn waited_for(server: &FakeCas) -> Vec<String> {
    server.calls(Method::WaitExecution).into_iter().map(|call| call.resource_name).collect()
}

// A stream that breaks off leaves the execution running: nothing is executed twice.
#[tokio::test]
async fn a_stream_that_breaks_off_is_joined_again() -> Result<()> {
    let reset = Told::Breaks("one".to_owned(), Status::internal("reset"));
    let server = FakeCas::executing([breaks("one"), reset, Told::Ends("two".to_owned()), done()]).await?;
    let worker = ColdWorker::hasty(&options(&server)).await?;
    let response = worker.remote.execute(&sha(b"action")).await?;
    assert_eq!(response.result.map(|result| result.exit_code), Some(7));
    assert_eq!(server.calls(Method::Execute).len(), 1);
    assert_eq!(waited_for(&server), ["one", "one", "two"], "the name that was told last");
    let stats = worker.remote.stats();
    assert_eq!((stats.rejoined_executions, stats.begun_anew_executions), (3, 0));
    Ok(())
}

// A server that was restarted knows no operations of before.
#[tokio::test]
async fn what_the_server_has_forgotten_is_executed_again() -> Result<()> {
    for code in [Code::NotFound, Code::Unimplemented] {
        let server = FakeCas::executing([breaks("one"), breaks("two"), done()]).await?;
        for _ in 0..2 {
            server.once(Method::WaitExecution, Fault::Fail(Status::unavailable("still restarting")));
            server.once(Method::WaitExecution, Fault::Fail(Status::new(code, "no such operation")));
        }
        let worker = ColdWorker::hasty(&options(&server)).await?;
        let response = worker.remote.execute(&sha(b"action")).await?;
        assert_eq!(response.result.map(|result| result.exit_code), Some(7), "{code:?}");
        assert_eq!(waited_for(&server), ["one", "one", "two", "two"]);
        assert_eq!(server.calls(Method::Execute).len(), 3);
        let stats = worker.remote.stats();
        assert_eq!((stats.rejoined_executions, stats.begun_anew_executions), (0, 2));
    }
    Ok(())
}

// An hour in a queue, behind a proxy that ends every stream after a minute, is no outage.
#[tokio::test]
async fn streams_that_come_on_are_no_outage() -> Result<()> {
    let told = std::iter::repeat_n(breaks("one"), 300).chain([done()]);
    let server = FakeCas::executing(told).await?;
    let options = longshore_worker::remote::RemoteOptions {
        outage_max: std::time::Duration::from_secs(10),
        ..options(&server)
    };
    let worker = ColdWorker::hasty(&options).await?;
    worker.remote.execute(&sha(b"action")).await?;
    assert_eq!(worker.remote.stats().rejoined_executions, 300);
    let slept: std::time::Duration = worker.clock.sleeps().iter().sum();
    assert!(slept > options.outage_max, "{slept:?}");
    Ok(())
}

// A server that never comes to an end is not asked for ever, whichever way it goes on.
#[tokio::test]
async fn a_server_that_goes_round_in_circles_is_given_up() -> Result<()> {
    let breaking = FakeCas::executing([breaks("one")]).await?;
    let forgetting = FakeCas::executing([breaks("one")]).await?;
    forgetting.always(Method::WaitExecution, Fault::Fail(Status::not_found("no such operation")));
    for server in [&breaking, &forgetting] {
        let worker = ColdWorker::hasty(&options(server)).await?;
        let error = worker.remote.execute(&sha(b"action")).await.expect_err("no end");
        assert!(matches!(error, RemoteError::Unavailable { .. } | RemoteError::Refused { .. }), "{error}");
        let calls = server.all_calls().len();
        assert!((100..3000).contains(&calls), "{calls}");
    }
    assert_eq!(breaking.calls(Method::Execute).len(), 1);
    assert_eq!(forgetting.calls(Method::Execute).len(), 101);
    Ok(())
}

// What a server says of the action itself is not repeated, before and after it had a name.
#[tokio::test]
async fn a_refusal_is_not_repeated() -> Result<()> {
    let refusal = || Status::failed_precondition("no such blob");
    let named = FakeCas::executing([Told::Breaks("one".to_owned(), refusal())]).await?;
    let at_once = FakeCas::executing([done()]).await?;
    at_once.always(Method::Execute, Fault::Fail(refusal()));
    for server in [&named, &at_once] {
        let worker = ColdWorker::hasty(&options(server)).await?;
        let error = worker.remote.execute(&sha(b"action")).await.expect_err("refused");
        assert_eq!(error.code(), Some(Code::FailedPrecondition), "{error}");
        assert_eq!((server.calls(Method::Execute).len(), waited_for(server).len()), (1, 0));
    }
    Ok(())
}
