use futures::poll;

use super::super::testing::{Fixture, ManualClock};
use super::*;

// A proxy that sees nothing for a while closes the stream: the state is repeated.
#[tokio::test]
async fn a_silent_stream_is_kept_open() {
    let fixture = Fixture::new();
    let cache = Arc::new(ActionCache::new(fixture.store.clone(), fixture.records.clone()));
    let clock = Arc::new(ManualClock::default());
    let scheduler = Scheduler::new(cache.clone(), clock.clone());
    let service = ExecutionService { store: fixture.store.clone(), cache, scheduler };
    let request = Request {
        instance: String::new(),
        action_digest: longshore_cas_store::digest::DigestFunction::Sha256.digest(b"action"),
        do_not_cache: false,
        looked_up_at: None,
        priority: 0,
        inline: Inline::default(),
        metadata: reapi::RequestMetadata::default(),
    };
    let mut stream =
        service.updates(service.scheduler.submit(&request).unwrap().unwrap(), Share::default()).boxed();
    let first = stream.next().await.unwrap().unwrap();
    assert!(poll!(stream.next()).is_pending(), "nothing has happened");
    clock.advance(KEEP_ALIVE);
    assert_eq!(stream.next().await.unwrap().unwrap(), first);
}
