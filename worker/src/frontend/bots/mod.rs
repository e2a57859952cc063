//! The Bots API (`google.devtools.remoteworkers.v1test2`), which `BuildGrid` speaks: a bot holds a session, and a session
//! holds leases.
//!
//! The rooms: [`session`] is what is known and what a reply changes, without I/O; [`lease`] reads what is to be run and
//! packs results; [`driver`] makes the calls, one at
//! a time, with what [`call`] puts beside them. Here is what the rest of the worker sees of them.
//!
//! Whatever happens on the way to the server, each call says everything, so that nothing is lost with a call. Only a
//! server that says that it does not know the session ends what runs in it.
//!
//! The action cache is the server's to write. The worker is known to it by its name, the same after a restart, so that
//! what it held is given out again at once.
//!
//! *Locking*: one lock over the session and what runs, held for changes in memory.

mod call;
mod driver;
mod lease;
mod session;

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use longshore_cas_store::io::Clock;
use longshore_proto::{bots, reapi};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use self::session::Session;
use super::{SchedulerOptions, WorkSource};
use crate::action::{Assignment, Phase, Progress};
use crate::connect::{Link, Pings};

/// `BuildGrid`'s servers are gRPC's own, and count; a poll waits for less than its deadline.
pub const PINGS: Pings = Pings::Counted { silence_max: driver::CALL_TIME_MAX };

/// The configuration that says how many leases a bot takes at once.
const CAPACITY: &str = "capacity";
/// More pairs than that are worth a warning: servers look actions up by every subset of a bot's properties.
const PROPERTIES_MAX: usize = 10;

/// A bot: the worker in one session after the other.
pub struct Bots {
    shared: Arc<Shared>,
    assignments: tokio::sync::Mutex<mpsc::UnboundedReceiver<Assignment>>,
    driver: AbortHandle,
}

/// What the driver and the worker's side share.
struct Shared {
    link: Link,
    /// The instance.
    parent: String,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Counts what the server does not know yet.
    news: watch::Sender<u64>,
    /// Set by [`WorkSource::close`].
    closing: CancellationToken,
    /// Fires when the driver has ended.
    ended: CancellationToken,
}

struct State {
    session: Session,
    /// What runs, or waits for its result to be acknowledged, by operation.
    running: HashMap<String, Running>,
    /// Where assignments go; nothing once there are to be no more.
    queue: Option<mpsc::UnboundedSender<Assignment>>,
}

/// An operation, as the driver sees it. Dropping it tells whoever completes it.
struct Running {
    cancelled: CancellationToken,
    progress: watch::Receiver<Progress>,
    /// The phase that the server knows of.
    reported: Phase,
    acknowledged: Option<oneshot::Sender<()>>,
}

impl Bots {
    /// Joins a scheduler; the sessions are held until this is dropped.
    pub fn start(options: SchedulerOptions) -> Arc<dyn WorkSource> {
        let (sender, receiver) = mpsc::unbounded_channel();
        if options.platform.len() > PROPERTIES_MAX {
            tracing::warn!(
                "{} properties of the platform: a server of this kind may need long to find work for them",
                options.platform.len()
            );
        }
        let worker = worker(&options);
        let state = State {
            session: Session::new(options.worker_name, worker),
            running: HashMap::new(),
            queue: Some(sender),
        };
        let shared = Arc::new(Shared {
            link: options.link,
            parent: options.instance_name,
            clock: options.clock,
            state: Mutex::new(state),
            news: watch::Sender::new(0),
            closing: CancellationToken::new(),
            ended: CancellationToken::new(),
        });
        let driver = tokio::spawn(driver::drive(shared.clone())).abort_handle();
        Arc::new(Self { shared, assignments: tokio::sync::Mutex::new(receiver), driver })
    }
}

/// What the bot says of itself: the properties of its one device, and how much it takes.
fn worker(options: &SchedulerOptions) -> bots::Worker {
    let property =
        |(key, value): &(String, String)| bots::device::Property { key: key.clone(), value: value.clone() };
    let device = bots::Device {
        handle: options.worker_name.clone(),
        properties: options.platform.iter().map(property).collect(),
    };
    let capacity = bots::worker::Config { key: CAPACITY.to_owned(), value: options.capacity.to_string() };
    bots::Worker { devices: vec![device], properties: Vec::new(), configs: vec![capacity] }
}

impl Shared {
    /// Something is there that the server does not know.
    fn tell(&self) {
        self.news.send_modify(|count| *count += 1);
    }
}

impl WorkSource for Bots {
    fn next(&self) -> BoxFuture<'_, Option<Assignment>> {
        Box::pin(async { self.assignments.lock().await.recv().await })
    }

    fn complete(&self, operation: String, response: reapi::ExecuteResponse) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let report = lease::report(response);
            if !report.pause.is_zero() {
                self.shared.closing.run_until_cancelled(self.shared.clock.sleep(report.pause)).await;
            }
            let acknowledged = {
                let mut state = self.shared.state.lock();
                if !state.session.complete(&operation, report) {
                    return;
                }
                let Some(running) = state.running.get_mut(&operation) else { return };
                let (sender, receiver) = oneshot::channel();
                running.acknowledged = Some(sender);
                receiver
            };
            self.shared.tell();
            // An error means that nobody wants to know any more.
            let _ = acknowledged.await;
        })
    }

    fn drain(&self) {
        let queue = {
            let mut state = self.shared.state.lock();
            state.session.leave();
            state.queue.take()
        };
        drop(queue);
        self.shared.tell();
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.shared.closing.cancel();
            self.shared.tell();
            self.shared.ended.cancelled().await;
        })
    }
}

impl Drop for Bots {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
