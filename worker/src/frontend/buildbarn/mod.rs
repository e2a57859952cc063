//! Buildbarn's scheduler (`buildbarn.remoteworker.OperationQueue`): one call, `Synchronize`, over and over, for each slot.
//!
//! The rooms: [`slot`] is what a slot does and what an answer changes, without I/O; [`task`] reads what is to be run and
//! packs what came of it; [`driver`] makes a slot's calls, one at a time; [`outage`] keeps slots from telling the same. Here is what the rest of the worker sees of
//! them.
//!
//! A call says everything that the scheduler has to know of its slot, so that nothing is lost with a call. The action
//! cache is the worker's to write. A slot keeps its name over a restart, so that what it was to run is given out again
//! at once.
//!
//! *Locking*: one lock over the operations of all slots, held for changes in memory.

mod driver;
mod outage;
mod slot;
mod task;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures::future::BoxFuture;
use longshore_proto::{reapi, remoteworker};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::driver::Driver;
use self::outage::Outage;
use super::{SchedulerOptions, WorkSource};
use crate::action::Assignment;
use crate::connect::Pings;

/// Buildbarn's servers are gRPC's for Go, and count; they wait for work for two minutes.
pub const PINGS: Pings = Pings::Counted { silence_max: driver::WAIT_MAX };

/// The parts of a slot's name.
const NAME: &str = "worker";
const SLOT: &str = "slot";

/// The slots of this worker, as Buildbarn's scheduler knows them.
pub struct Buildbarn {
    shared: Arc<Shared>,
    assignments: tokio::sync::Mutex<mpsc::UnboundedReceiver<Assignment>>,
    drivers: tokio::sync::Mutex<JoinSet<()>>,
}

/// What the drivers and the worker's side share.
#[derive(Default)]
struct Shared {
    /// Where the results of operations are expected.
    expected: Mutex<HashMap<String, oneshot::Sender<Report>>>,
    outage: Outage,
    draining: CancellationToken,
    closing: CancellationToken,
}

/// A result on its way to the scheduler.
struct Report {
    response: reapi::ExecuteResponse,
    /// Dropped when the scheduler has it, or does not want it.
    delivered: oneshot::Sender<()>,
}

impl Buildbarn {
    /// Offers as many slots as there is capacity, until this is dropped.
    pub fn start(options: &SchedulerOptions) -> Arc<dyn WorkSource> {
        let (queue, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::default());
        let platform = platform(options);
        let mut drivers = JoinSet::new();
        for number in 0..options.capacity {
            let worker_id = [(NAME, options.worker_name.clone()), (SLOT, number.to_string())];
            let identity = remoteworker::SynchronizeRequest {
                worker_id: worker_id.map(|(key, value)| (key.to_owned(), value)).into(),
                instance_name_prefix: options.instance_name.clone(),
                platform: Some(platform.clone()),
                ..Default::default()
            };
            let driver = Driver {
                link: options.link.clone(),
                clock: options.clock.clone(),
                shared: shared.clone(),
                queue: queue.clone(),
                identity,
            };
            drivers.spawn(driver.run());
        }
        Arc::new(Self {
            shared,
            assignments: tokio::sync::Mutex::new(receiver),
            drivers: tokio::sync::Mutex::new(drivers),
        })
    }
}

/// The scheduler wants properties in order, and each pair once.
fn platform(options: &SchedulerOptions) -> reapi::Platform {
    let pairs: BTreeSet<_> = options.platform.iter().cloned().collect();
    let property = |(name, value)| reapi::platform::Property { name, value };
    reapi::Platform { properties: pairs.into_iter().map(property).collect() }
}

impl WorkSource for Buildbarn {
    fn next(&self) -> BoxFuture<'_, Option<Assignment>> {
        Box::pin(async { self.assignments.lock().await.recv().await })
    }

    fn complete(&self, operation: String, response: reapi::ExecuteResponse) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // The scheduler may have taken it back meanwhile.
            let Some(expecting) = self.shared.expected.lock().remove(&operation) else { return };
            let (delivered, is_delivered) = oneshot::channel();
            if expecting.send(Report { response, delivered }).is_ok() {
                // An error is how it is told.
                let _ = is_delivered.await;
            }
        })
    }

    fn drain(&self) {
        self.shared.draining.cancel();
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.shared.draining.cancel();
            self.shared.closing.cancel();
            let mut drivers = self.drivers.lock().await;
            while drivers.join_next().await.is_some() {}
        })
    }
}
