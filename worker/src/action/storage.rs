//! The ends of an action: where its parts come from, and where its results go.

use std::sync::Arc;

use longshore_cas_store::source::{BlobSource, NoSource};

use super::Requester;
use super::sink::{LocalSink, OutputSink, ResultSink};
use crate::remote::Prefetcher;

/// The CASes and action caches that the clients of a worker use.
///
/// An action takes its ends once, and uses them until it has ended.
pub trait Storage: Send + Sync + 'static {
    /// The ends of an action that `requester` wants: what is asked there is asked in its name, and in its instance.
    fn on_behalf_of(&self, requester: &Requester) -> Ends;
}

/// The ends of one action.
#[derive(Clone)]
pub struct Ends {
    /// Where its Action and Command come from that the store lacks.
    pub source: Arc<dyn BlobSource>,
    /// Where its input tree comes from, as far as the store lacks it.
    pub inputs: Arc<dyn BlobSource>,
    /// Where the client reads outputs.
    pub sink: Arc<dyn OutputSink>,
    /// Where clients find results, if this worker has to write them.
    pub results: Option<Arc<dyn ResultSink>>,
    /// What fetches its inputs while it waits, if they come from elsewhere.
    pub prefetcher: Option<Prefetcher>,
}

impl Ends {
    /// Standalone mode: the store is the CAS, and who looks into the action cache is not this worker's affair.
    pub fn of_the_store() -> Self {
        let nowhere = Arc::new(NoSource);
        Self {
            source: nowhere.clone(),
            inputs: nowhere,
            sink: Arc::new(LocalSink),
            results: None,
            prefetcher: None,
        }
    }
}

/// The same for every action.
impl Storage for Ends {
    fn on_behalf_of(&self, _requester: &Requester) -> Ends {
        self.clone()
    }
}
