//! The queue by itself: the test is the worker.

use super::super::testing::{Bench, digest, request};
use super::*;

impl Bench {
    fn submit(&self, name: &str) -> Waiter {
        self.submit_at(name, 0)
    }

    fn submit_at(&self, name: &str, priority: i32) -> Waiter {
        self.scheduler.submit(Request { priority, ..request(name) }).unwrap()
    }

    async fn complete(&self, assignment: &Assignment, code: Code) {
        let status = Some(rpc::Status { code: code as i32, ..Default::default() });
        let response = reapi::ExecuteResponse { status, ..Default::default() };
        self.scheduler.complete(assignment.operation.clone(), response).await;
    }

    /// Nothing where the cache is to be asked again.
    fn submit_after_lookup(&self, name: &str, ended: u64) -> Option<Waiter> {
        match self.scheduler.submit_unless_ended_since(ended, request(name)).unwrap() {
            Submitted::Waiting(waiter) => Some(waiter),
            Submitted::LookAgain(_) => None,
        }
    }

    fn has_ended_since(&self, ended: u64) -> bool {
        self.scheduler.state.lock().has_ended_since(ended, &request("never run"))
    }
}

fn end(waiter: &Waiter) -> Option<Code> {
    waiter.operation.response.borrow().as_ref().map(|response| code_of(response))
}

// The lower number runs sooner, also where a later client of the same action wants it sooner.
#[tokio::test]
async fn priorities_order_the_queue() {
    let bench = Bench::new();
    let _waiters = [
        bench.submit_at("zero", 0),
        bench.submit_at("late", 5),
        bench.submit_at("raised", 9),
        bench.submit_at("early", -3),
        bench.submit_at("zero again", 0),
        bench.submit_at("raised", -7),
        bench.submit_at("zero", 7),
    ];
    for name in ["raised", "early", "zero", "zero again", "late"] {
        assert_eq!(bench.take().await.action_digest, digest(name), "{name}");
    }
    assert!(bench.is_idle().await);
}

// One run serves several clients, each with an operation of its own.
#[tokio::test]
async fn the_same_action_runs_once() {
    let bench = Bench::new();
    let (one, two) = (bench.submit("a"), bench.submit("a"));
    assert_ne!(one.operation.name, two.operation.name);
    let assignment = bench.take().await;
    let three = bench.submit("a");
    assert!(bench.is_idle().await);
    bench.complete(&assignment, Code::Ok).await;
    for waiter in [&one, &two, &three] {
        assert_eq!(end(waiter), Some(Code::Ok));
    }
    let _after = bench.submit("a");
    assert_ne!(bench.take().await.operation, assignment.operation, "a finished run is not joined");
}

// Between the look into the cache and the place in the queue, another one's execution may end: it is not repeated.
#[tokio::test]
async fn who_looked_before_the_result_was_there_looks_again() {
    let bench = Bench::new();
    let before = bench.scheduler.ended();
    let _first = bench.submit("a");
    let assignment = bench.take().await;
    // Its result is known, but not in the cache yet.
    bench.scheduler.state.lock().seal(&assignment.operation, true).unwrap();
    let joined = bench.submit_after_lookup("a", before).expect("it is still there");
    assert_eq!(joined.operation.execution.name, assignment.operation);
    bench.complete_well(&assignment).await;
    assert_eq!(end(&joined), Some(Code::Ok));

    assert!(bench.submit_after_lookup("a", before).is_none());
    let _other = bench.submit_after_lookup("b", before).expect("it waits for no other's result");
    assert_eq!(bench.take().await.action_digest, digest("b"));
    assert!(bench.is_idle().await);
    let _again = bench.submit_after_lookup("a", bench.scheduler.ended()).expect("its result was evicted");
    assert_eq!(bench.take().await.action_digest, digest("a"));
}

// A failure is no result for others: who comes then has it run again, and does not look for it.
#[tokio::test]
async fn nobody_looks_again_for_what_failed() {
    let bench = Bench::new();
    let before = bench.scheduler.ended();
    let _first = bench.submit("a");
    bench.complete(&bench.take().await, Code::DeadlineExceeded).await;
    assert!(bench.submit_after_lookup("a", before).is_some());
}

// What ended too long ago to be remembered counts as this one.
#[tokio::test]
async fn who_looked_long_ago_looks_again() {
    let bench = Bench::new();
    let mut is_sent_back = Vec::new();
    for number in 0..2000 {
        let _waiter = bench.submit(&number.to_string());
        bench.complete_well(&bench.take().await).await;
        is_sent_back.push(bench.has_ended_since(0));
    }
    let first = is_sent_back.iter().position(|is_sent_back| *is_sent_back);
    assert!(first.is_some_and(|first| first >= 1000), "{first:?}");
    assert!(is_sent_back.ends_with(&[true]));
    assert!(!bench.has_ended_since(1500));
}

// REAPI, `skip_cache_lookup`: no result from before the request.
#[tokio::test]
async fn who_does_not_look_is_not_given_a_result_that_is_known() {
    let bench = Bench::new();
    let _first = bench.submit("a");
    let assignment = bench.take().await;
    bench.scheduler.state.lock().seal(&assignment.operation, true).unwrap();
    let own = bench.submit("a");
    assert_ne!(own.operation.execution.name, assignment.operation);
    bench.complete_well(&assignment).await;
    assert_eq!(end(&own), None);
    let joined = bench.submit_after_lookup("a", bench.scheduler.ended()).unwrap();
    assert_eq!(joined.operation.execution.name, own.operation.name, "the later one is joined");
}

#[tokio::test]
async fn what_is_not_cached_is_not_merged() {
    let bench = Bench::new();
    let submit = || {
        let request = Request { do_not_cache: true, ..request("a") };
        bench.scheduler.submit(request).unwrap()
    };
    let _waiters = [submit(), submit()];
    assert_ne!(bench.take().await.operation, bench.take().await.operation);
}

// A client that cancels its request does no harm to another's.
#[tokio::test]
async fn one_of_several_clients_cancels_for_itself() {
    let bench = Bench::new();
    let (one, two) = (bench.submit("a"), bench.submit("a"));
    let assignment = bench.take().await;
    assert!(bench.scheduler.cancel(&one.operation.name));
    assert_eq!((end(&one), end(&two)), (Some(Code::Cancelled), None));
    assert!(!assignment.cancelled.is_cancelled());
    bench.complete(&assignment, Code::Ok).await;
    assert_eq!((end(&one), end(&two)), (Some(Code::Cancelled), Some(Code::Ok)));
    assert!(bench.scheduler.cancel(&two.operation.name), "it is known, although it has ended");
    assert_eq!(end(&two), Some(Code::Ok));
}

// What is being cancelled is not joined: the newcomer wants a result.
#[tokio::test]
async fn a_cancelled_run_is_not_joined() {
    let bench = Bench::new();
    let one = bench.submit("a");
    let assignment = bench.take().await;
    assert!(bench.scheduler.cancel(&one.operation.name));
    assert!(assignment.cancelled.is_cancelled());
    assert_eq!(end(&one), None, "it ends when its command is dead");
    let two = bench.submit("a");
    let again = bench.take().await;
    bench.complete(&assignment, Code::Cancelled).await;
    assert_eq!((end(&one), end(&two)), (Some(Code::Cancelled), None));
    bench.complete(&again, Code::Ok).await;
    assert_eq!(end(&two), Some(Code::Ok));
}

#[tokio::test]
async fn a_queued_action_is_cancelled_at_once() {
    let bench = Bench::new();
    let one = bench.submit("a");
    assert!(bench.scheduler.cancel(&one.operation.name));
    assert_eq!(end(&one), Some(Code::Cancelled));
    assert!(bench.is_idle().await);
    assert!(!bench.scheduler.cancel("operations/none"));
}

// A client that lost its connection has a minute to come back; then nobody's action ends.
#[tokio::test]
async fn what_nobody_waits_for_ends_after_a_while() {
    let bench = Bench::new();
    let waiter = bench.submit("a");
    let name = waiter.operation.name.clone();
    let assignment = bench.take().await;
    drop(waiter);
    bench.clock.has_sleeper().await;
    bench.clock.advance(ABANDONED_AFTER / 2);
    tokio::task::yield_now().await;
    assert!(!assignment.cancelled.is_cancelled());

    let back = bench.scheduler.wait(&name).unwrap();
    bench.clock.advance(ABANDONED_AFTER / 2);
    bench.clock.has_no_sleeper().await;
    assert!(!assignment.cancelled.is_cancelled(), "somebody waits again");

    drop(back);
    bench.clock.has_sleeper().await;
    bench.clock.advance(ABANDONED_AFTER);
    assignment.cancelled.cancelled().await;
}

// A client that has gone takes only its own request with it.
#[tokio::test]
async fn an_abandoned_request_leaves_another_client_its_run() {
    let bench = Bench::new();
    let (one, two) = (bench.submit("a"), bench.submit("a"));
    let assignment = bench.take().await;
    let left = one.operation.clone();
    drop(one);
    bench.clock.has_sleeper().await;
    bench.clock.advance(ABANDONED_AFTER);
    left.response.subscribe().wait_for(Option::is_some).await.unwrap();
    assert!(!assignment.cancelled.is_cancelled());
    assert_eq!(end(&two), None);
}

// While longshore stops, what runs may end, and what has not begun can run somewhere else.
#[tokio::test]
async fn a_shutdown_ends_what_waits_and_lets_go_on_what_runs() {
    let bench = Bench::new();
    let running = bench.submit("a");
    let assignment = bench.take().await;
    let queued = bench.submit("b");
    bench.scheduler.close();
    assert_eq!((end(&running), end(&queued)), (None, Some(Code::Unavailable)));
    assert_eq!(
        bench.scheduler.submit(request("c")).err().map(|failure| failure.code()),
        Some(Code::Unavailable)
    );
    bench.complete(&assignment, Code::Ok).await;
    assert_eq!(end(&running), Some(Code::Ok));
    assert!(bench.scheduler.next().await.is_none());
}

// An answer from the cache can be asked for again, like any operation.
#[tokio::test]
async fn a_cached_answer_is_an_operation() {
    let bench = Bench::new();
    let response = reapi::ExecuteResponse { cached_result: true, ..Default::default() };
    let waiter = bench.scheduler.answer(request("a"), response);
    let found = bench.scheduler.find(&waiter.operation.name).unwrap();
    assert!(found.is_done());
    assert_eq!(bench.scheduler.stats(), SchedulerStats { cache_hits: 1, ..SchedulerStats::default() });
}

// What clients queue is bounded, and what they say of it too.
#[tokio::test]
async fn a_queue_that_is_full_refuses() {
    let bench = Bench::new();
    let path_bytes = 1 << 20;
    let submit = |number: usize| {
        let output_files = vec!["x".repeat(path_bytes)];
        let inline = Inline { output_files, ..Inline::default() };
        bench.scheduler.submit(Request { inline, ..request(&number.to_string()) })
    };
    let (mut waiters, mut refused) = (Vec::new(), None);
    while refused.is_none() && waiters.len() < 1000 {
        match submit(waiters.len()) {
            Ok(waiter) => waiters.push(waiter),
            Err(failure) => refused = Some(failure.code()),
        }
    }
    assert_eq!(refused, Some(Code::ResourceExhausted), "{} were taken", waiters.len());
    let assignment = bench.take().await;
    bench.complete(&assignment, Code::Ok).await;
    assert!(submit(1000).is_ok(), "there is room again");
}

// Only a success is kept for those who come later.
#[tokio::test]
async fn failures_are_not_cached() {
    let bench = Bench::new();
    let cache = ActionCache::new(bench.fixture.store.clone(), bench.fixture.records.clone());
    let cases = [(Code::Ok, 0, true), (Code::Ok, 1, false), (Code::DeadlineExceeded, 0, false)];
    for (code, exit_code, is_cached) in cases {
        let name = format!("{code:?} {exit_code}");
        let _waiter = bench.submit(&name);
        let assignment = bench.take().await;
        let result = reapi::ActionResult { exit_code, ..Default::default() };
        let status = Some(rpc::Status { code: code as i32, ..Default::default() });
        let response = reapi::ExecuteResponse { status, result: Some(result), ..Default::default() };
        bench.scheduler.complete(assignment.operation, response).await;
        assert_eq!(cache.get("", &digest(&name)).await.unwrap().is_some(), is_cached, "{name}");
    }
}
