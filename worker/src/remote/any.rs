//! Several CASes as one source: whichever has a blob.
//!
//! An input tree that two schedulers' actions have in common is built once, from whichever CAS has its blobs; what the
//! store holds is whoever's. So a source of trees asks one CAS after the other.

use std::collections::HashMap;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::Digest;
use longshore_cas_store::source::{BlobSource, FetchError, Fetched};
use parking_lot::Mutex;

/// Sources that are asked in order, the next one for what the one before did not have.
#[derive(Clone)]
pub struct AnySource(Vec<Arc<dyn BlobSource>>);

impl AnySource {
    /// Asks `sources` in that order.
    pub fn new(sources: Vec<Arc<dyn BlobSource>>) -> Self {
        Self(sources)
    }
}

impl BlobSource for AnySource {
    fn fetch(&self, wanted: Vec<Digest>, store: Arc<BlobStore>) -> BoxStream<'static, Fetched> {
        fetch(self.0.clone().into_iter(), wanted, store)
    }

    fn fetch_tree(&self, root: Digest, store: Arc<BlobStore>) -> BoxStream<'static, Fetched> {
        let sources = self.0.clone();
        let first_answer = async move {
            for source in sources {
                let mut answer = source.fetch_tree(root, store.clone());
                if let Some(fetched) = answer.next().await {
                    return futures::stream::iter([fetched]).chain(answer).boxed();
                }
            }
            futures::stream::empty().boxed()
        };
        first_answer.flatten_stream().boxed()
    }
}

fn fetch(
    mut sources: std::vec::IntoIter<Arc<dyn BlobSource>>,
    wanted: Vec<Digest>,
    store: Arc<BlobStore>,
) -> BoxStream<'static, Fetched> {
    let Some(source) = sources.next() else {
        let fates = wanted.into_iter().map(|digest| Fetched { digest, outcome: Err(FetchError::Missing) });
        return futures::stream::iter(fates).boxed();
    };
    let fates = source.fetch(wanted, store.clone());
    if sources.as_slice().is_empty() {
        return fates;
    }
    let errors = Arc::new(Mutex::new(HashMap::new()));
    let had = fates.filter_map({
        let errors = errors.clone();
        move |Fetched { digest, outcome }| {
            let outcome = outcome.map_err(|error| errors.lock().insert(digest, error)).ok();
            std::future::ready(outcome.map(|pin| Fetched { digest, outcome: Ok(pin) }))
        }
    });
    let others = async move {
        let errors = std::mem::take(&mut *errors.lock());
        let wanted: Vec<_> = errors.keys().copied().collect();
        if wanted.is_empty() {
            return futures::stream::empty().boxed();
        }
        // That one of them does not have it says nothing while another one may.
        let graver = move |Fetched { digest, outcome }: Fetched| match (outcome, errors.get(&digest)) {
            (Err(FetchError::Missing), Some(error)) => Fetched { digest, outcome: Err(error.clone()) },
            (outcome, _) => Fetched { digest, outcome },
        };
        fetch(sources, wanted, store).map(graver).boxed()
    };
    had.chain(others.flatten_stream()).boxed()
}
