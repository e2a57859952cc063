//! One blob wanted by many at once is fetched once: a [`BlobSource`] in front of another.
//!
//! A fetch belongs to a task, not to the caller that came first. A caller that drops its stream gives up its
//! interest; the fetch is stopped when nobody is interested any more. Who joins a fetch gets its outcome, an
//! error included; who comes later starts afresh.
//!
//! *Locking*: the lock is held for changes of the map only.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Weak};

use futures::StreamExt as _;
use futures::channel::mpsc;
use futures::future::{AbortHandle, Abortable};
use futures::stream::BoxStream;
use parking_lot::Mutex;

use crate::blob::BlobStore;
use crate::digest::Digest;
use crate::io::Executor;
use crate::source::{BlobSource, FetchError, Fetched};

/// Joins those who want one blob at the same time.
pub struct SharedSource {
    source: Arc<dyn BlobSource>,
    executor: Arc<dyn Executor>,
    wanted: Arc<Wanted>,
}

/// The blobs that are being fetched.
#[derive(Default)]
struct Wanted(Mutex<HashMap<Digest, Want>>);

struct Want {
    batch: Weak<Batch>,
    waiters: Vec<mpsc::UnboundedSender<Fetched>>,
}

impl Want {
    fn of(batch: &Arc<Batch>) -> Self {
        Self { batch: Arc::downgrade(batch), waiters: Vec::new() }
    }
}

/// One fetch of the inner source, alive while anybody is interested in it.
struct Batch(AbortHandle);

impl Drop for Batch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl fmt::Debug for SharedSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedSource").field("wanted", &self.wanted.0.lock().len()).finish_non_exhaustive()
    }
}

impl SharedSource {
    /// Shares the fetches of `source`, which run as tasks of `executor`.
    pub fn new(source: Arc<dyn BlobSource>, executor: Arc<dyn Executor>) -> Self {
        Self { source, executor, wanted: Arc::default() }
    }

    fn start(&self, batch: &Arc<Batch>, own: Vec<Digest>, start: Start) {
        let Start { registration, store } = start;
        let mut landing = Landing {
            wanted: self.wanted.clone(),
            batch: Arc::downgrade(batch),
            left: own.iter().copied().collect(),
        };
        let source = self.source.clone();
        let fetch = async move {
            let mut fetched = source.fetch(own, store);
            while let Some(fetched) = fetched.next().await {
                landing.deliver(&fetched);
            }
        };
        let task = Abortable::new(fetch, registration);
        self.executor.spawn(Box::pin(async move {
            // Nobody is left to be told.
            let _ = task.await;
        }));
    }
}

/// What a new fetch needs.
struct Start {
    registration: futures::future::AbortRegistration,
    store: Arc<BlobStore>,
}

impl BlobSource for SharedSource {
    fn fetch(&self, wanted: Vec<Digest>, store: Arc<BlobStore>) -> BoxStream<'static, Fetched> {
        let (sender, receiver) = mpsc::unbounded();
        let (abort, registration) = AbortHandle::new_pair();
        let own_batch = Arc::new(Batch(abort));
        let mut interests: Vec<Arc<Batch>> = Vec::new();
        let mut own = Vec::new();
        let count = wanted.len();
        {
            let mut map = self.wanted.0.lock();
            for digest in wanted {
                let want = map.entry(digest).or_insert_with(|| Want::of(&own_batch));
                // Where everyone who wanted it has left, its fetch is being stopped.
                let batch = want.batch.upgrade().unwrap_or_else(|| {
                    *want = Want::of(&own_batch);
                    own_batch.clone()
                });
                want.waiters.push(sender.clone());
                if Arc::ptr_eq(&batch, &own_batch) {
                    own.push(digest);
                } else if !interests.iter().any(|other| Arc::ptr_eq(other, &batch)) {
                    interests.push(batch);
                }
            }
        }
        if !own.is_empty() {
            self.start(&own_batch, own, Start { registration, store });
            interests.push(own_batch);
        }
        let stream = futures::stream::unfold((receiver, interests), |(mut receiver, interests)| async {
            receiver.next().await.map(|fetched| (fetched, (receiver, interests)))
        });
        Box::pin(stream.take(count))
    }

    /// Not joined: whoever loads a tree is alone with it already.
    fn fetch_tree(&self, root: Digest, store: Arc<BlobStore>) -> BoxStream<'static, Fetched> {
        self.source.fetch_tree(root, store)
    }
}

/// Delivers outcomes; whatever the inner source left open is an error to those who wait.
struct Landing {
    wanted: Arc<Wanted>,
    batch: Weak<Batch>,
    left: HashSet<Digest>,
}

impl Landing {
    fn deliver(&mut self, fetched: &Fetched) {
        if self.left.remove(&fetched.digest) {
            self.hand_out(fetched);
        }
    }

    fn hand_out(&self, fetched: &Fetched) {
        let waiters = {
            let mut map = self.wanted.0.lock();
            match map.entry(fetched.digest) {
                Entry::Occupied(entry) if entry.get().batch.ptr_eq(&self.batch) => entry.remove().waiters,
                // A later fetch took its place.
                _ => return,
            }
        };
        for waiter in waiters {
            let fetched = Fetched { digest: fetched.digest, outcome: fetched.outcome.clone() };
            // Who left does not want it any more.
            let _ = waiter.unbounded_send(fetched);
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        for digest in std::mem::take(&mut self.left) {
            let reason = "the fetch ended without an answer".to_owned();
            let error = FetchError::Unavailable { origin: "the source".to_owned(), reason };
            self.hand_out(&Fetched { digest, outcome: Err(error) });
        }
    }
}
