//! Streams that are lost, schedulers that forget.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use longshore_proto::nativelink::update_for_scheduler::Update as Heard;
use longshore_tests::fake_nativelink::FakeNativeLink;
use longshore_tests::proxy::DelayingProxy;
use longshore_worker::frontend::WorkSource as _;
use longshore_worker::frontend::nativelink::NativeLink;
use tonic::Code;

use super::{action, join, join_at, message_of, next, no_mistakes, ran, response, serve_one};

#[tokio::test]
async fn a_result_is_delivered_after_the_stream_has_come_back() -> Result<()> {
    let scheduler = FakeNativeLink::start().await?;
    let source = join(&scheduler, 2)?;
    scheduler.submit("before", &action(1));
    scheduler.submit("after", &action(2));
    let [before, after] = [next(&source).await?, next(&source).await?];
    scheduler.set_closed(true);
    scheduler.lose();
    scheduler.refused(1).await;
    source.complete(before.operation, response(Code::Ok, "away")).await;
    scheduler.set_closed(false);
    scheduler.registered(2).await;
    assert_eq!(message_of(&scheduler, "before").await?, "away");
    scheduler.started("after", 2).await;
    assert!(!after.cancelled.is_cancelled());
    source.complete(after.operation, response(Code::Ok, "back")).await;
    assert_eq!(message_of(&scheduler, "after").await?, "back");
    no_mistakes(&scheduler)
}

// A way on which nothing arrives any more is found out, and the result takes another one.
#[tokio::test]
async fn a_scheduler_vanishes() -> Result<()> {
    let scheduler = FakeNativeLink::start().await?;
    let proxy = DelayingProxy::start(scheduler.uri().trim_start_matches("grpc://"), Duration::ZERO).await?;
    let source = join_at(&format!("grpc://{}", proxy.address()), 1)?;
    scheduler.submit("a", &action(1));
    let assignment = next(&source).await?;
    proxy.swallow();
    source.complete(assignment.operation, response(Code::Ok, "by another way")).await;
    assert_eq!(message_of(&scheduler, "a").await?, "by another way");
    assert_eq!(scheduler.hellos().len(), 2);
    no_mistakes(&scheduler)
}

// Its clients ask again, and get what ran for them all the time.
#[tokio::test]
async fn a_scheduler_that_forgot_everything_is_given_what_ran() -> Result<()> {
    let scheduler = FakeNativeLink::start().await?;
    let source = join(&scheduler, 2)?;
    scheduler.submit("old-1", &action(1));
    scheduler.submit("old-2", &action(2));
    let [first, second] = [next(&source).await?, next(&source).await?];
    scheduler.set_closed(true);
    scheduler.restart();
    scheduler.refused(1).await;
    source.complete(first.operation, response(Code::Ok, "first")).await;
    scheduler.submit("new-1", &action(1));
    scheduler.submit("new-2", &action(2));
    scheduler.set_closed(false);
    assert_eq!(message_of(&scheduler, "new-1").await?, "first");
    scheduler.started("new-2", 1).await;
    source.complete(second.operation, response(Code::Ok, "second")).await;
    assert_eq!(message_of(&scheduler, "new-2").await?, "second");
    no_mistakes(&scheduler)
}

#[tokio::test]
async fn a_worker_that_is_thrown_out_comes_back() -> Result<()> {
    let scheduler = FakeNativeLink::start().await?;
    let source = join(&scheduler, 1)?;
    scheduler.registered(1).await;
    scheduler.evict();
    scheduler.registered(2).await;
    scheduler.submit("a", &action(1));
    serve_one(&source).await?;
    assert_eq!(message_of(&scheduler, "a").await?, "served");
    no_mistakes(&scheduler)
}

#[tokio::test]
async fn a_scheduler_that_is_not_there_yet_is_waited_for() -> Result<()> {
    let scheduler = FakeNativeLink::start().await?;
    scheduler.set_closed(true);
    let source = join(&scheduler, 1)?;
    scheduler.submit("a", &action(1));
    scheduler.refused(2).await;
    scheduler.set_closed(false);
    serve_one(&source).await?;
    assert_eq!(message_of(&scheduler, "a").await?, "served");
    no_mistakes(&scheduler)
}

// A worker that drains while its scheduler is away comes back once to deliver what it has.
#[tokio::test]
async fn a_worker_that_leaves_delivers_what_it_has() -> Result<()> {
    let scheduler = FakeNativeLink::start().await?;
    let source = join(&scheduler, 1)?;
    scheduler.submit("a", &action(1));
    let assignment = next(&source).await?;
    scheduler.set_closed(true);
    scheduler.lose();
    source.drain();
    source.complete(assignment.operation, response(Code::Ok, "kept")).await;
    tokio::join!(source.close(), async { scheduler.set_closed(false) });
    assert_eq!(message_of(&scheduler, "a").await?, "kept");
    scheduler.deserted().await;
    assert!(matches!(scheduler.heard().last(), Some((2, Heard::GoingAwayRequest(_)))));
    no_mistakes(&scheduler)
}

/// Runs what comes, and counts how often each action ran and whether it ever ran twice at once.
#[derive(Default)]
struct Runs {
    counts: HashMap<String, usize>,
    now: Vec<String>,
    overlaps: usize,
}

async fn run_all(source: Arc<NativeLink>, runs: Arc<Mutex<Runs>>) -> Result<()> {
    while let Some(assignment) = source.next().await {
        let key = assignment.action_digest.to_string();
        {
            let mut runs = runs.lock().expect("not poisoned");
            runs.overlaps += usize::from(runs.now.contains(&key));
            *runs.counts.entry(key.clone()).or_default() += 1;
            runs.now.push(key.clone());
        }
        ran(&assignment);
        // Others come between, as they do.
        tokio::task::yield_now().await;
        runs.lock().expect("not poisoned").now.retain(|running| *running != key);
        source.complete(assignment.operation, response(Code::Ok, &key)).await;
    }
    Ok(())
}

// Whatever was the last message of a stream, each operation gets its result, its own, once.
#[tokio::test]
async fn a_stream_may_be_lost_at_every_message() -> Result<()> {
    // One hello, and three messages an operation.
    let messages = 1..=1 + 3 * usize::from(OPERATIONS);
    futures::future::try_join_all(messages.map(lose_after)).await.map(drop)
}

const OPERATIONS: u8 = 3;

/// Runs three operations on two slots, and loses the first stream after so many messages.
async fn lose_after(messages: usize) -> Result<()> {
    let scheduler = FakeNativeLink::start().await?;
    scheduler.lose_after(Some(messages));
    let source = join(&scheduler, 2)?;
    let runs = Arc::new(Mutex::new(Runs::default()));
    let slots = [0, 1].map(|_| tokio::spawn(run_all(source.clone(), runs.clone())));
    for number in 0..OPERATIONS {
        scheduler.submit(&number.to_string(), &action(number));
    }
    for number in 0..OPERATIONS {
        let message = message_of(&scheduler, &number.to_string()).await?;
        ensure!(message == action(number).to_string(), "after {messages} messages: {message}");
    }
    scheduler.registered(2).await;
    source.drain();
    for slot in slots {
        slot.await??;
    }
    source.close().await;
    let runs = std::mem::take(&mut *runs.lock().expect("not poisoned"));
    ensure!(runs.overlaps == 0, "after {messages} messages something ran twice at once");
    ensure!(runs.counts.len() == usize::from(OPERATIONS), "{:?}", runs.counts);
    no_mistakes(&scheduler)
}
