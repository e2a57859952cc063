//! What the protocol asks of a worker, on a stream that lasts.

use anyhow::{Result, ensure};
use longshore_proto::nativelink::update_for_scheduler::Update as Heard;
use longshore_proto::reapi;
use longshore_tests::fake_nativelink::{Ended, FakeNativeLink};
use longshore_worker::frontend::WorkSource as _;
use tonic::Code;

use super::{action, join, message_of, next, no_mistakes, ran, response, serve_one};

fn is_keep_alive(heard: &Heard) -> bool {
    matches!(heard, Heard::KeepAliveRequest(_))
}

fn is_goodbye(heard: &Heard) -> bool {
    matches!(heard, Heard::GoingAwayRequest(_))
}

/// What was said of operations, in short.
fn said(scheduler: &FakeNativeLink) -> Vec<(String, &'static str)> {
    let heard = scheduler.heard().into_iter();
    let short = heard.filter_map(|(_, heard)| match heard {
        Heard::ExecuteComplete(complete) => Some((complete.operation_id, "ran")),
        Heard::ExecuteResult(result) => Some((result.operation_id, "result")),
        _ => None,
    });
    short.collect()
}

// Properties, a prefix of its id, and a bound: without one the scheduler knows none.
#[tokio::test]
async fn a_worker_says_what_it_is() -> Result<()> {
    let scheduler = FakeNativeLink::start().await?;
    let _source = join(&scheduler, 3)?;
    scheduler.registered(1).await;
    let hello = &scheduler.hellos()[0];
    let properties: Vec<_> =
        hello.properties.iter().map(|property| (property.name.as_str(), property.value.as_str())).collect();
    assert_eq!(properties, [("ISA", "x86-64"), ("pool", "a")]);
    assert_eq!((hello.worker_id_prefix.as_str(), hello.max_inflight_tasks), ("tester-", 3));
    no_mistakes(&scheduler)
}

#[tokio::test]
async fn an_action_is_taken_run_and_answered() -> Result<()> {
    let scheduler = FakeNativeLink::start().await?;
    let source = join(&scheduler, 1)?;
    scheduler.submit("a", &action(1));
    let assignment = next(&source).await?;
    assert_eq!((assignment.operation.as_str(), assignment.action_digest), ("a", action(1)));
    ran(&assignment);
    scheduler.hears(|heard| matches!(heard, Heard::ExecuteComplete(_))).await;
    source.complete(assignment.operation, response(Code::Ok, "done")).await;
    assert_eq!(message_of(&scheduler, "a").await?, "done");
    assert_eq!(said(&scheduler), [("a".to_owned(), "ran"), ("a".to_owned(), "result")]);
    let result = scheduler.heard().into_iter().find_map(|(_, heard)| match heard {
        Heard::ExecuteResult(result) => Some(result),
        _ => None,
    });
    assert_eq!(result.map(|result| result.instance_name).as_deref(), Some("main"));
    no_mistakes(&scheduler)
}

// Nothing but this message keeps a worker registered.
#[tokio::test]
async fn a_worker_says_that_it_lives() -> Result<()> {
    let scheduler = FakeNativeLink::start().await?;
    let _source = join(&scheduler, 1)?;
    scheduler.hears(is_keep_alive).await;
    no_mistakes(&scheduler)
}

// Results go out in the order in which they come, whatever the order of the starts was.
#[tokio::test]
async fn answers_may_come_in_any_order() -> Result<()> {
    let scheduler = FakeNativeLink::start().await?;
    let source = join(&scheduler, 3)?;
    for number in 0..3 {
        scheduler.submit(&number.to_string(), &action(number));
    }
    let mut assignments = [next(&source).await?, next(&source).await?, next(&source).await?];
    assignments.reverse();
    for assignment in assignments {
        let message = assignment.action_digest.to_string();
        source.complete(assignment.operation, response(Code::Ok, &message)).await;
    }
    for number in 0..3 {
        assert_eq!(message_of(&scheduler, &number.to_string()).await?, action(number).to_string());
    }
    no_mistakes(&scheduler)
}

// An action that takes longer than the scheduler likes is started again, under the same id and on the same worker.
#[tokio::test]
async fn an_operation_that_is_started_twice_runs_once() -> Result<()> {
    let scheduler = FakeNativeLink::start().await?;
    let source = join(&scheduler, 2)?;
    scheduler.submit("a", &action(1));
    let assignment = next(&source).await?;
    scheduler.repeat("a");
    // What comes after it shows that it was read.
    scheduler.submit("b", &action(2));
    assert_eq!(next(&source).await?.operation, "b");
    source.complete(assignment.operation, response(Code::Ok, "once")).await;
    assert_eq!(message_of(&scheduler, "a").await?, "once");
    assert_eq!(said(&scheduler), [("a".to_owned(), "result")]);
    no_mistakes(&scheduler)
}

#[tokio::test]
async fn a_kill_reaches_the_action_and_is_answered() -> Result<()> {
    let scheduler = FakeNativeLink::start().await?;
    let source = join(&scheduler, 2)?;
    scheduler.submit("runs", &action(1));
    let assignment = next(&source).await?;
    scheduler.submit("waits", &action(2));
    scheduler.kill("waits");
    scheduler.kill("runs");
    assignment.cancelled.cancelled().await;
    source.complete(assignment.operation, response(Code::Cancelled, "")).await;
    for operation in ["waits", "runs"] {
        let ended = scheduler.ended(operation).await;
        ensure!(matches!(ended, Ended::Killed), "{operation}: {ended:?}");
    }
    no_mistakes(&scheduler)
}

// What is wrong here may be right elsewhere, or later; the scheduler gives it four attempts.
#[tokio::test]
async fn what_fails_here_is_tried_again() -> Result<()> {
    let scheduler = FakeNativeLink::start().await?;
    let source = join(&scheduler, 1)?;
    scheduler.submit("a", &action(1));
    for _ in 0..4 {
        let assignment = next(&source).await?;
        source.complete(assignment.operation, response(Code::ResourceExhausted, "")).await;
    }
    let ended = scheduler.ended("a").await;
    // As RESOURCE_EXHAUSTED it would come back without end.
    ensure!(matches!(&ended, Ended::GivenUp(status) if status.code == Code::Unavailable as i32), "{ended:?}");
    assert_eq!(scheduler.starts(), ["a", "a", "a", "a"]);
    no_mistakes(&scheduler)
}

#[tokio::test]
async fn a_request_that_makes_no_sense_is_refused() -> Result<()> {
    let scheduler = FakeNativeLink::start().await?;
    let source = join(&scheduler, 1)?;
    scheduler.submit_request("a", reapi::ExecuteRequest::default());
    let ended = scheduler.ended("a").await;
    let Ended::Response(refused) = ended else { anyhow::bail!("{ended:?}") };
    assert_eq!(refused.status.map(|status| status.code), Some(Code::InvalidArgument.into()));
    scheduler.submit("b", &action(1));
    serve_one(&source).await?;
    assert_eq!(message_of(&scheduler, "b").await?, "served");
    no_mistakes(&scheduler)
}

// What runs is ended and delivered; what comes meanwhile goes back; then the worker takes its leave.
#[tokio::test]
async fn a_worker_drains_and_leaves() -> Result<()> {
    let scheduler = FakeNativeLink::start().await?;
    let source = join(&scheduler, 2)?;
    scheduler.submit("runs", &action(1));
    let assignment = next(&source).await?;
    source.drain();
    assert!(source.next().await.is_none() && source.next().await.is_none());
    scheduler.submit("later", &action(2));
    scheduler.started("later", 1).await;
    // Its answer pauses us: until something ends here it does not come back.
    let is_declined =
        |heard: &Heard| matches!(heard, Heard::ExecuteResult(result) if result.operation_id == "later");
    scheduler.hears(is_declined).await;
    assert_eq!(scheduler.starts(), ["runs", "later"]);
    source.complete(assignment.operation, response(Code::Ok, "last")).await;
    source.close().await;
    assert_eq!(message_of(&scheduler, "runs").await?, "last");
    scheduler.deserted().await;
    assert!(scheduler.heard().last().is_some_and(|(_, heard)| is_goodbye(heard)));
    no_mistakes(&scheduler)
}

// With nothing to end there is nobody to pause: what was just started goes with the worker.
#[tokio::test]
async fn an_idle_worker_leaves_at_once() -> Result<()> {
    let scheduler = FakeNativeLink::start().await?;
    let source = join(&scheduler, 2)?;
    scheduler.registered(1).await;
    source.drain();
    scheduler.submit("a", &action(1));
    scheduler.started("a", 1).await;
    source.close().await;
    scheduler.deserted().await;
    assert_eq!(scheduler.starts(), ["a"]);
    no_mistakes(&scheduler)
}
