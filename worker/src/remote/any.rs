//! Several CASes as one source: whichever has a blob.
//!
//! An input tree that two schedulers' actions have in common is built once, from whichever CAS has its blobs; what the
//! store holds is whoever's. So a source of trees asks one CAS after the other. It does not wait for one that does not
//! answer: it asks the next one, too, and from then on that one beside the others, until it answers again. That
//! nobody has a blob is known only when all have said so.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::stream::{BoxStream, SelectAll};
use futures::{FutureExt as _, StreamExt as _};
use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::Digest;
use longshore_cas_store::io::Clock;
use longshore_cas_store::source::{BlobSource, FetchError, Fetched, Scope};

/// How long a CAS may say nothing until the next one is asked beside it.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Sources that are asked in order, the next one for what the one before did not have.
#[derive(Clone)]
pub struct AnySource {
    sources: Vec<Source>,
    clock: Arc<dyn Clock>,
}

/// One CAS, and what is known of it.
#[derive(Clone)]
struct Source {
    blobs: Arc<dyn BlobSource>,
    /// Whether it let others wait, and has not answered since. Whoever asks it for whatever finds out for all.
    is_late: Arc<AtomicBool>,
}

impl Source {
    fn is_late(&self) -> bool {
        self.is_late.load(Ordering::Relaxed)
    }

    fn set_late(&self, is_late: bool) {
        self.is_late.store(is_late, Ordering::Relaxed);
    }
}

impl AnySource {
    /// Asks `sources` in that order.
    pub fn new(sources: Vec<Arc<dyn BlobSource>>, clock: Arc<dyn Clock>) -> Self {
        let source = |blobs| Source { blobs, is_late: Arc::default() };
        Self { sources: sources.into_iter().map(source).collect(), clock }
    }

    /// The same, but that the one at `place` is asked as `blobs` does it, and before the others.
    #[must_use]
    pub fn beginning_with(&self, place: usize, blobs: Arc<dyn BlobSource>) -> Self {
        let Self { mut sources, clock } = self.clone();
        sources[..=place].rotate_right(1);
        sources[0].blobs = blobs;
        Self { sources, clock }
    }
}

impl BlobSource for AnySource {
    fn fetch(&self, wanted: Vec<Digest>, store: Arc<BlobStore>) -> BoxStream<'static, Fetched> {
        if let [only] = self.sources.as_slice() {
            return only.blobs.fetch(wanted, store);
        }
        let (late, unasked) = self.sources.iter().cloned().partition::<Vec<_>, _>(Source::is_late);
        let wanted = wanted.into_iter().map(|digest| (digest, None)).collect();
        let mut search = Search {
            unasked: unasked.into_iter(),
            asked: Vec::new(),
            answers: SelectAll::new(),
            wanted,
            store,
            clock: self.clock.clone(),
        };
        search.ask_next();
        for source in late {
            search.ask(source);
        }
        futures::stream::unfold(search, |mut search| async move {
            let fetched = search.next().await?;
            Some((fetched, search))
        })
        .boxed()
    }

    /// What late ones could say of a tree is asked for level by level.
    fn fetch_tree(&self, root: Digest, store: Arc<BlobStore>) -> BoxStream<'static, Fetched> {
        let Self { sources, clock } = self.clone();
        let is_only = sources.len() == 1;
        let first_answer = async move {
            for source in sources.into_iter().filter(|source| is_only || !source.is_late()) {
                let mut answer = source.blobs.fetch_tree(root, store.clone());
                let fetched = tokio::select! {
                    biased;
                    fetched = answer.next() => fetched,
                    () = clock.sleep(SILENCE_MAX), if !is_only => {
                        source.set_late(true);
                        None
                    }
                };
                if let Some(fetched) = fetched {
                    return futures::stream::iter([fetched]).chain(answer).boxed();
                }
            }
            futures::stream::empty().boxed()
        };
        first_answer.flatten_stream().boxed()
    }

    fn scope(&self) -> Scope {
        self.sources.iter().map(|source| source.blobs.scope()).collect()
    }
}

/// A search for blobs in several places.
struct Search {
    unasked: std::vec::IntoIter<Source>,
    /// Those that were asked, and whether they have answered.
    asked: Vec<(Source, bool)>,
    /// What they say, and by which of those.
    answers: SelectAll<BoxStream<'static, (usize, Fetched)>>,
    /// What was not found yet, and the gravest of the reasons that were given.
    wanted: HashMap<Digest, Option<FetchError>>,
    store: Arc<BlobStore>,
    clock: Arc<dyn Clock>,
}

impl Search {
    fn ask(&mut self, source: Source) {
        let at = self.asked.len();
        let wanted = self.wanted.keys().copied().collect();
        let answers = source.blobs.fetch(wanted, self.store.clone());
        self.answers.push(answers.map(move |fetched| (at, fetched)).boxed());
        self.asked.push((source, false));
    }

    /// Asks one more, if there is one.
    fn ask_next(&mut self) -> bool {
        let next = self.unasked.next();
        next.map(|source| self.ask(source)).is_some()
    }

    /// The next blob whose fate is known.
    async fn next(&mut self) -> Option<Fetched> {
        while !self.wanted.is_empty() {
            let is_last = self.unasked.as_slice().is_empty();
            let patience = async {
                self.clock.sleep(SILENCE_MAX).await;
            };
            tokio::select! {
                biased;
                answer = self.answers.next() => match answer {
                    Some((at, fetched)) => {
                        if let Some(found) = self.heard(at, fetched) {
                            return Some(found);
                        }
                    }
                    None if self.ask_next() => {}
                    None => return self.give_up(),
                },
                () = patience, if !is_last => self.lose_patience(),
            }
        }
        None
    }

    /// Takes in an answer; the blob, if that was found.
    fn heard(&mut self, at: usize, Fetched { digest, outcome }: Fetched) -> Option<Fetched> {
        let (source, has_answered) = &mut self.asked[at];
        if !matches!(outcome, Err(FetchError::Unavailable { .. })) {
            *has_answered = true;
            source.set_late(false);
        }
        match outcome {
            Ok(pin) => self.wanted.remove(&digest).map(|_| Fetched { digest, outcome: Ok(pin) }),
            Err(error) => {
                let reason = self.wanted.get_mut(&digest)?;
                // That one of them does not have it says nothing while another one may.
                if reason.as_ref().is_none_or(|reason| matches!(reason, FetchError::Missing)) {
                    *reason = Some(error);
                }
                None
            }
        }
    }

    /// Somebody takes too long: those that have not said a word are not waited for any more.
    fn lose_patience(&mut self) {
        for (source, _) in self.asked.iter().filter(|(_, has_answered)| !has_answered) {
            source.set_late(true);
        }
        self.ask_next();
    }

    /// Nobody is left who could have what is wanted.
    fn give_up(&mut self) -> Option<Fetched> {
        let digest = *self.wanted.keys().next()?;
        let reason = self.wanted.remove(&digest).flatten().unwrap_or(FetchError::Missing);
        Some(Fetched { digest, outcome: Err(reason) })
    }
}
