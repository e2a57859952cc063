use std::sync::atomic::{AtomicUsize, Ordering};

use futures::poll;

use super::super::testing::{Fixture, ManualClock};
use super::*;
use crate::frontend::WorkSource as _;

struct Bench {
    fixture: Fixture,
    cache: Arc<ActionCache>,
    clock: Arc<ManualClock>,
    scheduler: Arc<Scheduler>,
}

impl Bench {
    fn new() -> Self {
        let fixture = Fixture::new();
        let cache = Arc::new(ActionCache::new(fixture.store.clone(), fixture.records.clone()));
        let clock = Arc::new(ManualClock::default());
        let scheduler = Scheduler::new(cache.clone(), clock.clone());
        Self { fixture, cache, clock, scheduler }
    }

    /// Executes the action for somebody else, with success.
    async fn execute_for_another(&self) {
        let _waiter = self.scheduler.submit(request()).unwrap();
        let assignment = self.scheduler.next().await.unwrap();
        let result = Some(reapi::ActionResult::default());
        let response = reapi::ExecuteResponse { result, ..Default::default() };
        self.scheduler.complete(assignment.operation, response).await;
    }
}

fn request() -> Request {
    Request {
        instance: String::new(),
        action_digest: longshore_cas_store::digest::DigestFunction::Sha256.digest(b"action"),
        do_not_cache: false,
        priority: 0,
        inline: Inline::default(),
        metadata: reapi::RequestMetadata::default(),
    }
}

// Its result came right after the cache had been asked.
#[tokio::test]
async fn what_ends_during_the_lookup_is_not_run_again() {
    let bench = Bench::new();
    let looks = AtomicUsize::new(0);
    let known = || async {
        let Request { instance, action_digest, .. } = request();
        let found = bench.cache.get(&instance, &action_digest).await;
        if looks.fetch_add(1, Ordering::SeqCst) == 0 {
            bench.execute_for_another().await;
        }
        found
    };
    let waiter = find_or_submit(&bench.scheduler, request(), known).await.unwrap();
    let response = waiter.operation.response.borrow().clone().expect("it has ended");
    assert!(response.cached_result);
    assert_eq!(looks.load(Ordering::SeqCst), 2);
    assert!(poll!(bench.scheduler.next()).is_pending(), "nothing is queued");
}

// A cache that loses everything at once would have a client look for ever.
#[tokio::test]
async fn nobody_looks_for_ever() {
    let bench = Bench::new();
    let known = || async {
        bench.execute_for_another().await;
        Ok(None)
    };
    let waiter = find_or_submit(&bench.scheduler, request(), known).await.unwrap();
    assert_eq!(bench.scheduler.next().await.unwrap().operation, waiter.operation.name);
}

// A proxy that sees nothing for a while closes the stream: the state is repeated.
#[tokio::test]
async fn a_silent_stream_is_kept_open() {
    let Bench { fixture, cache, clock, scheduler } = Bench::new();
    let service = ExecutionService { store: fixture.store.clone(), cache, scheduler };
    let mut stream = service.updates(service.scheduler.submit(request()).unwrap(), Share::default()).boxed();
    let first = stream.next().await.unwrap().unwrap();
    assert!(poll!(stream.next()).is_pending(), "nothing has happened");
    clock.advance(KEEP_ALIVE);
    assert_eq!(stream.next().await.unwrap().unwrap(), first);
}
