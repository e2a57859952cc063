//! The standalone mode: a REAPI server whose only worker is this process.
//!
//! The store is the CAS, records beside the blobs are the action cache, and the scheduler is a queue in memory: an
//! operation does not survive a restart, and clients that ask for one are told `NOT_FOUND`, on which they execute
//! anew.

mod action_cache;
mod batch;
mod bytestream;
mod capabilities;
mod cas;
mod digests;
mod execution;
mod inline;
mod instance;
mod limits;
mod operation;
mod output_paths;
mod references;
mod resource_name;
mod scheduler;
mod server;
#[cfg(test)]
mod testing;
mod tree_pages;
mod walk;

use std::sync::Arc;

use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::io::Clock;
use longshore_cas_store::record::RecordStore;
use longshore_proto::{Message as _, reapi};
use tonic::Request;

pub use scheduler::{Scheduler, SchedulerStats};
pub use server::{Endpoint, ListenError, Listener};

use action_cache::ActionCache;

/// The server and its scheduler, which is the worker's source of work.
pub struct Embedded {
    store: Arc<BlobStore>,
    cache: Arc<ActionCache>,
    scheduler: Arc<Scheduler>,
}

impl Embedded {
    /// Serves from `store`, with the action cache in `records`.
    pub fn new(store: Arc<BlobStore>, records: Arc<RecordStore>, clock: Arc<dyn Clock>) -> Self {
        let cache = Arc::new(ActionCache::new(store.clone(), records));
        let scheduler = Scheduler::new(cache.clone(), clock);
        Self { store, cache, scheduler }
    }

    /// Where the actions come from that clients ask for.
    pub fn scheduler(&self) -> &Arc<Scheduler> {
        &self.scheduler
    }
}

/// Who makes a call, as far as it says; what cannot be decoded says nothing (REAPI, `RequestMetadata`).
fn request_metadata<T>(call: &Request<T>) -> reapi::RequestMetadata {
    const HEADER: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";
    let header = call.metadata().get_bin(HEADER).and_then(|value| value.to_bytes().ok());
    header.and_then(|bytes| reapi::RequestMetadata::decode(bytes).ok()).unwrap_or_default()
}
