//! The standalone mode: a REAPI server whose only worker is this process.
//!
//! The store is the CAS, records beside the blobs are the action cache, and the scheduler is a queue in memory: an
//! operation does not survive a restart, and clients that ask for one are told `NOT_FOUND`, on which they execute
//! anew.

mod action_cache;
mod around;
mod batch;
mod bytestream;
mod calls;
mod capabilities;
mod cas;
mod compression;
mod connections;
mod digests;
mod execution;
mod inline;
mod limits;
mod operation;
mod output_paths;
mod panics;
mod references;
mod resource_name;
mod scheduler;
mod server;
mod share;
#[cfg(test)]
mod testing;
mod tree_pages;
mod unix_stream;
mod walk;

use std::sync::Arc;

use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::io::Environment;
use longshore_cas_store::record::RecordStore;
use longshore_proto::reapi;
use tonic::Request;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

pub use around::{Answer, Around, AroundLayer, Services, Surrounded};
pub use panics::CatchPanics;
pub use resource_name::{Form, ResourceName, parse_read, parse_write};
pub use scheduler::{Scheduler, SchedulerStats};
pub use server::{Endpoint, ListenError, Listener, Transfers};

use action_cache::ActionCache;

/// The server and its scheduler, which is the worker's source of work.
pub struct Embedded {
    store: Arc<BlobStore>,
    cache: Arc<ActionCache>,
    scheduler: Arc<Scheduler>,
    environment: Environment,
    health: HealthReporter,
}

impl Embedded {
    /// Serves from `store`, with the action cache in `records`.
    pub fn new(store: Arc<BlobStore>, records: Arc<RecordStore>, environment: Environment) -> Self {
        let cache = Arc::new(ActionCache::new(store.clone(), records));
        let scheduler = Scheduler::new(cache.clone(), environment.clock.clone());
        Self { store, cache, scheduler, environment, health: HealthReporter::new() }
    }

    /// Takes no more actions, and says so to those who ask for its health; what runs goes on.
    pub async fn drain(&self) {
        self.scheduler.close();
        self.health.set_service_status("", ServingStatus::NotServing).await;
    }

    /// Where the actions come from that clients ask for.
    pub fn scheduler(&self) -> &Arc<Scheduler> {
        &self.scheduler
    }
}

/// Who makes a call, as far as it says; [`calls`] has read it.
fn request_metadata<T>(call: &Request<T>) -> reapi::RequestMetadata {
    call.extensions().get().cloned().unwrap_or_default()
}
