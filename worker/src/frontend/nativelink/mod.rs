//! `NativeLink`'s scheduler as a source of work: its `WorkerApi`, one stream in each direction.
//!
//! The rooms: [`session`] knows what worker and scheduler owe each other and does no I/O, [`connection`] carries its
//! messages and brings the stream back when it is lost, [`request`] and [`reply`] translate.
//!
//! What the protocol lacks: results are not acknowledged, so that those sent last are kept for a while; a worker has no
//! identity that outlives its stream, so that a restarted one begins anew; and there is no way to take no more on while
//! others run, so that what comes while this worker drains is given back.
//!
//! *Locking*: one mutex over the session, held for its changes only.

mod connection;
mod reply;
mod request;
mod session;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use longshore_proto::reapi;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{SchedulerOptions, WorkSource};
use crate::action::{Assignment, Inline, Phase, Progress, Requester};
use crate::connect::Pings;

use reply::Reply;
use session::{CLAIM_TIME_MAX, Session, Taken};

/// `NativeLink`'s servers do not count pings; they say nothing as long as there is no work.
pub const PINGS: Pings = Pings::Free;

/// How long leaving may take: results that the scheduler may still ask for, and the last words.
const CLOSE_TIME_MAX: Duration = CLAIM_TIME_MAX.saturating_add(Duration::from_secs(5));

/// The frontend; it leaves without a word when it is dropped.
pub struct NativeLink {
    shared: Arc<Shared>,
    driver: JoinHandle<()>,
}

/// What slots and the connection share.
struct Shared {
    options: SchedulerOptions,
    session: Mutex<Session>,
    /// Rung when a task waits for a slot, and when there will be no more.
    arrived: Notify,
    /// Rung when there is something to say to the scheduler.
    changed: Notify,
    /// Fires when the worker wants to leave the scheduler.
    leaving: CancellationToken,
    /// Fires when it has left.
    gone: CancellationToken,
}

impl NativeLink {
    /// Registers the worker with the scheduler that `options` name, and keeps it registered. Runs on tokio.
    pub fn start(options: SchedulerOptions) -> Arc<Self> {
        let shared = Arc::new(Shared {
            options,
            session: Mutex::default(),
            arrived: Notify::new(),
            changed: Notify::new(),
            leaving: CancellationToken::new(),
            gone: CancellationToken::new(),
        });
        let driver = tokio::spawn(connection::drive(shared.clone()));
        Arc::new(Self { shared, driver })
    }
}

impl Drop for NativeLink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl WorkSource for NativeLink {
    fn next(&self) -> BoxFuture<'_, Option<Assignment>> {
        Box::pin(async {
            loop {
                let arrived = self.shared.arrived.notified();
                tokio::pin!(arrived);
                // Registered before the look, so that no ring between the two is missed.
                arrived.as_mut().enable();
                {
                    let mut session = self.shared.session.lock();
                    if let Some(taken) = session.take() {
                        if session.has_queued() {
                            // One ring may stand for several arrivals.
                            self.shared.arrived.notify_one();
                        }
                        return Some(self.shared.assign(taken));
                    }
                    if session.is_draining() {
                        return None;
                    }
                }
                arrived.await;
            }
        })
    }

    /// Completes when the result is on its way, or is kept until the scheduler asks for it: there is no acknowledgement
    /// but that of [`close`](WorkSource::close).
    fn complete(&self, name: String, response: reapi::ExecuteResponse) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some(function) = self.shared.session.lock().function(&name) else { return };
            let reply = Reply::new(response, function);
            let clock = &self.shared.options.clock;
            if !reply.pause.is_zero() {
                self.shared.leaving.run_until_cancelled(clock.sleep(reply.pause)).await;
            }
            self.shared.session.lock().completed(&name, reply, clock.now());
            self.shared.ring();
        })
    }

    fn drain(&self) {
        self.shared.session.lock().drain();
        self.shared.arrived.notify_waiters();
        self.shared.ring();
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.shared.leaving.cancel();
            // Also when whoever leaves has no more time.
            let _end = scopeguard::guard(&self.shared, |shared| {
                let lost = shared.session.lock().undelivered();
                if lost > 0 {
                    let scheduler = shared.options.link.origin();
                    tracing::warn!(scheduler, "{lost} results were not delivered: nobody asked for them");
                }
            });
            let clock = &self.shared.options.clock;
            tokio::select! {
                () = self.shared.gone.cancelled() => {}
                () = clock.sleep(CLOSE_TIME_MAX) => {
                    tracing::warn!(scheduler = self.shared.options.link.origin(), "left without a word");
                }
            }
        })
    }
}

impl Shared {
    /// Both sides look at the session again.
    fn ring(&self) {
        self.changed.notify_one();
        self.arrived.notify_one();
    }

    fn assign(self: &Arc<Self>, taken: Taken) -> Assignment {
        let Taken { name, request, cancelled, is_orphan } = taken;
        let (progress, watcher) = watch::channel(Progress::default());
        tokio::spawn(tell_when_run(self.clone(), name.clone(), watcher));
        Assignment {
            operation: name,
            action_digest: request.action_digest,
            action: None,
            // The scheduler passes digests on, and drops what is inline.
            inline: Inline::default(),
            queued: request.queued,
            requester: Requester::default(),
            progress,
            cancelled,
            is_orphan,
        }
    }
}

/// Says that the command of a task has ended while its outputs are still being uploaded.
async fn tell_when_run(shared: Arc<Shared>, name: String, mut watcher: watch::Receiver<Progress>) {
    if watcher.wait_for(|progress| progress.phase == Phase::UploadingOutputs).await.is_ok() {
        shared.session.lock().ran(&name);
        shared.changed.notify_one();
    }
}
