use std::sync::atomic::{AtomicUsize, Ordering};

use futures::poll;

use super::super::testing::{Bench, request};
use super::*;

/// Executes the action for somebody else, with success.
async fn execute_for_another(bench: &Bench) {
    let _waiter = bench.scheduler.submit(request("action")).unwrap();
    bench.complete_well(&bench.take().await).await;
}

// Its result came right after the cache had been asked.
#[tokio::test]
async fn what_ends_during_the_lookup_is_not_run_again() {
    let bench = Bench::new();
    let looks = AtomicUsize::new(0);
    let known = || async {
        let Request { instance, action_digest, .. } = request("action");
        let found = bench.cache.get(&instance, &action_digest).await;
        if looks.fetch_add(1, Ordering::SeqCst) == 0 {
            execute_for_another(&bench).await;
        }
        found
    };
    let waiter = find_or_submit(&bench.scheduler, request("action"), known).await.unwrap();
    let response = waiter.operation.response.borrow().clone().expect("it has ended");
    assert!(response.cached_result);
    assert_eq!(looks.load(Ordering::SeqCst), 2);
    assert!(bench.is_idle().await, "nothing is queued");
}

// A cache that loses everything at once would have a client look for ever.
#[tokio::test]
async fn nobody_looks_for_ever() {
    let bench = Bench::new();
    let known = || async {
        execute_for_another(&bench).await;
        Ok(None)
    };
    let waiter = find_or_submit(&bench.scheduler, request("action"), known).await.unwrap();
    assert_eq!(bench.take().await.operation, waiter.operation.name);
}

// A proxy that sees nothing for a while closes the stream: the state is repeated.
#[tokio::test]
async fn a_silent_stream_is_kept_open() {
    let Bench { fixture, cache, clock, scheduler } = Bench::new();
    let service = ExecutionService { store: fixture.store.clone(), cache, scheduler };
    let mut stream =
        service.updates(service.scheduler.submit(request("action")).unwrap(), Share::default()).boxed();
    let first = stream.next().await.unwrap().unwrap();
    assert!(poll!(stream.next()).is_pending(), "nothing has happened");
    clock.advance(KEEP_ALIVE);
    assert_eq!(stream.next().await.unwrap().unwrap(), first);
}
