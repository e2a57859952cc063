//! Several places that may have a blob, of which some do not answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::Digest;
use longshore_cas_store::io::Clock;
use longshore_cas_store::source::{BlobSource, FetchError, Fetched, Scope};
use longshore_tests::cold::ColdWorker;
use longshore_worker::remote::{AnySource, RemoteOptions};

use super::sha;

/// A place that has some blobs, and may fall silent.
#[derive(Default)]
struct Place {
    blobs: HashMap<Digest, Bytes>,
    is_silent: AtomicBool,
    is_gone: bool,
    asked: AtomicUsize,
}

impl Place {
    fn with(blobs: &[&'static str]) -> Arc<Self> {
        let blobs = blobs.iter().map(|data| (sha(data.as_bytes()), Bytes::from(*data))).collect();
        Arc::new(Self { blobs, ..Self::default() })
    }

    fn set_silent(&self, is_silent: bool) {
        self.is_silent.store(is_silent, Ordering::Relaxed);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl BlobSource for Place {
    fn fetch(&self, wanted: Vec<Digest>, store: Arc<BlobStore>) -> BoxStream<'static, Fetched> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.is_silent.load(Ordering::Relaxed) {
            return futures::stream::pending().boxed();
        }
        let gone = || FetchError::Unavailable { origin: "it".to_owned(), reason: "gone".to_owned() };
        let missing = if self.is_gone { gone() } else { FetchError::Missing };
        let found: Vec<_> =
            wanted.into_iter().map(|digest| (digest, self.blobs.get(&digest).cloned())).collect();
        let fetched = move |(digest, data): (Digest, Option<Bytes>)| {
            let (store, missing) = (store.clone(), missing.clone());
            async move {
                let outcome = match data {
                    Some(data) => store.put(digest, data).await.map_err(|_| FetchError::Missing),
                    None => Err(missing),
                };
                Fetched { digest, outcome }
            }
        };
        futures::stream::iter(found).then(fetched).boxed()
    }

    fn scope(&self) -> Scope {
        Scope::default()
    }
}

/// A clock on which no time passes: nobody loses patience.
struct Patience;

impl Clock for Patience {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// A store alone.
async fn store() -> Result<ColdWorker> {
    ColdWorker::hasty(&RemoteOptions::new("grpc://127.0.0.1:1")).await
}

fn any(places: &[&Arc<Place>], clock: Arc<dyn Clock>) -> AnySource {
    AnySource::new(places.iter().map(|place| Arc::clone(place) as _).collect(), clock)
}

/// Fetches what these bytes are, and says of each what became of it, in order.
async fn fates(source: &AnySource, worker: &ColdWorker, wanted: &[&str]) -> Vec<&'static str> {
    let digests: Vec<_> = wanted.iter().map(|data| sha(data.as_bytes())).collect();
    let fetched: Vec<_> = source.fetch(digests.clone(), worker.store.clone()).collect().await;
    assert_eq!(fetched.len(), wanted.len(), "each fate is told once: {fetched:?}");
    let fate = |digest: &Digest| match fetched.iter().find(|fetched| fetched.digest == *digest) {
        Some(Fetched { outcome: Ok(_), .. }) => "found",
        Some(Fetched { outcome: Err(FetchError::Missing), .. }) => "missing",
        Some(Fetched { outcome: Err(_), .. }) => "unknown",
        None => "not told",
    };
    digests.iter().map(fate).collect()
}

// What the first one has is asked of nobody else.
#[tokio::test]
async fn places_are_asked_in_order() -> Result<()> {
    let (worker, first, second) = (store().await?, Place::with(&["a", "b"]), Place::with(&["b", "c"]));
    let source = any(&[&first, &second], Arc::new(Patience));
    assert_eq!(fates(&source, &worker, &["a", "b"]).await, ["found", "found"]);
    assert_eq!((first.asked(), second.asked()), (1, 0));
    assert_eq!(fates(&source, &worker, &["a", "c", "d"]).await, ["found", "found", "missing"]);
    assert_eq!((first.asked(), second.asked()), (2, 1));
    Ok(())
}

// That a blob is missing cannot be said while a place that may have it is not there.
#[tokio::test]
async fn one_that_is_gone_may_have_it() -> Result<()> {
    let (worker, second) = (store().await?, Place::with(&["a"]));
    let first = Arc::new(Place { is_gone: true, ..Place::default() });
    let source = any(&[&first, &second], Arc::new(Patience));
    assert_eq!(fates(&source, &worker, &["a", "d"]).await, ["found", "unknown"]);
    Ok(())
}

// One that is silent is waited for once, and heard when it speaks again.
#[tokio::test]
async fn one_that_is_silent_holds_nobody_up() -> Result<()> {
    let (worker, first, second) = (store().await?, Place::with(&["a"]), Place::with(&["a", "b"]));
    first.set_silent(true);
    let source = any(&[&first, &second], worker.clock.clone());
    assert_eq!(fates(&source, &worker, &["a", "b"]).await, ["found", "found"]);
    let sleeps = worker.clock.sleeps().len();
    assert!(sleeps > 0);
    assert_eq!(fates(&source, &worker, &["b"]).await, ["found"]);
    assert_eq!(worker.clock.sleeps().len(), sleeps, "nobody waits for it");
    first.set_silent(false);
    // Nobody can say this without it.
    assert_eq!(fates(&source, &worker, &["d"]).await, ["missing"]);
    Ok(())
}

// Whoever asks for an action asks its own place first, and as the action; who waited for a place has told the others.
#[tokio::test]
async fn each_action_begins_with_its_own_place() -> Result<()> {
    let (worker, first, second) = (store().await?, Place::with(&["a"]), Place::with(&["a"]));
    let all = any(&[&first, &second], Arc::new(Patience));
    let own = Place::with(&["a", "b"]);
    let source = all.beginning_with(1, own.clone());
    assert_eq!(fates(&source, &worker, &["a", "b"]).await, ["found", "found"]);
    assert_eq!((own.asked(), first.asked(), second.asked()), (1, 0, 0));
    assert_eq!(fates(&source, &worker, &["c"]).await, ["missing"]);
    assert_eq!((own.asked(), first.asked(), second.asked()), (2, 1, 0), "it was asked as that action");

    let all = any(&[&first, &second], worker.clock.clone());
    first.set_silent(true);
    assert_eq!(fates(&all, &worker, &["a"]).await, ["found"]);
    let sleeps = worker.clock.sleeps().len();
    assert!(sleeps > 0);
    let source = all.beginning_with(0, first.clone());
    assert_eq!(fates(&source, &worker, &["a"]).await, ["found"]);
    assert_eq!(worker.clock.sleeps().len(), sleeps, "nobody waits for it again");
    Ok(())
}
