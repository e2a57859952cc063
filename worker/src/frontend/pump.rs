//! From a source of work to the worker and back: as many actions at once as there are slots.
//!
//! The pump does not know which protocol the work comes by. An action that panics fails alone.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{MaybeDone, maybe_done};
use longshore_proto::reapi;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tracing::Instrument as _;

use super::WorkSource;
use crate::action::{ActionRunner, Assignment, Executed, Leftovers};
use crate::status::Failure;

/// When an action that was stopped with its worker may be tried again: somewhere else, at once.
const STOPPED_RETRY_DELAY: Duration = Duration::from_secs(1);

/// How many actions run at once, from whatever source they come.
#[derive(Debug)]
pub struct Slots {
    free: Semaphore,
    jobs: usize,
    /// Whether an action has its inputs before it takes a place.
    inputs_first: bool,
    /// Results that are on their way to a scheduler.
    reporting: AtomicUsize,
    stopped: CancellationToken,
}

impl Slots {
    /// Room for `jobs` actions.
    pub fn new(jobs: usize) -> Arc<Self> {
        Self::with(jobs, false)
    }

    /// The same, for actions whose inputs come from several places: those that wait for one of them stand in nobody's
    /// way.
    pub fn with_inputs_first(jobs: usize) -> Arc<Self> {
        Self::with(jobs, true)
    }

    fn with(jobs: usize, inputs_first: bool) -> Arc<Self> {
        Arc::new(Self {
            free: Semaphore::new(jobs),
            jobs,
            inputs_first,
            reporting: AtomicUsize::new(0),
            stopped: CancellationToken::new(),
        })
    }

    /// How many actions run now.
    pub fn running(&self) -> usize {
        self.jobs - self.free.available_permits()
    }

    /// How many actions run, or have a result that their scheduler has not taken yet.
    pub fn unreported(&self) -> usize {
        self.running() + self.reporting.load(Ordering::Relaxed)
    }

    /// Stops everything that runs or waits for room; the schedulers hear that a retry elsewhere can help.
    pub fn stop(&self) {
        self.stopped.cancel();
    }
}

/// Runs what `source` yields: up to `capacity` assignments are taken on at once, and run as there is room.
///
/// Ends when `source` does.
pub async fn pump(
    source: Arc<dyn WorkSource>,
    worker: Arc<ActionRunner>,
    capacity: usize,
    slots: Arc<Slots>,
) {
    let mut tasks = JoinSet::new();
    for _ in 0..capacity {
        tasks.spawn(serve(source.clone(), worker.clone(), slots.clone()));
    }
    tasks.join_all().await;
}

async fn serve(source: Arc<dyn WorkSource>, worker: Arc<ActionRunner>, slots: Arc<Slots>) {
    while let Some(assignment) = source.next().await {
        let span = assignment.span();
        let work = async {
            let operation = assignment.operation.clone();
            let Executed { response, leftovers } = run(&worker, &slots, assignment).await;
            log_end(&response);
            slots.reporting.fetch_add(1, Ordering::Relaxed);
            let _reported = scopeguard::guard((), |()| {
                slots.reporting.fetch_sub(1, Ordering::Relaxed);
            });
            source.complete(operation, response).await;
            leftovers
        };
        let leftovers = work.instrument(span).await;
        // The folder is torn down only now, off the async threads, which renaming and unpinning would hold up.
        worker.io.spawn(move || drop(leftovers));
    }
}

/// Says what is reported, which may be another end than the action came to by itself.
fn log_end(response: &reapi::ExecuteResponse) {
    match &response.status {
        Some(status) if status.code != 0 => {
            tracing::info!(code = ?Code::from(status.code), "action failed: {}", status.message);
        }
        _ => {
            let exit_code = response.result.as_ref().map(|result| result.exit_code);
            tracing::debug!(exit_code, "action completed");
        }
    }
}

/// Runs an assignment when there is room; one that is cancelled before needs none.
async fn run(worker: &ActionRunner, slots: &Slots, assignment: Assignment) -> Executed {
    let cancelled = assignment.cancelled.clone();
    let execution = execute_in_place(worker, slots, assignment);
    tokio::pin!(execution);
    let mut executed = tokio::select! {
        executed = &mut execution => return executed,
        () = slots.stopped.cancelled() => {
            cancelled.cancel();
            execution.await
        }
    };
    let is_cancelled =
        executed.response.status.as_ref().is_some_and(|status| status.code == Code::Cancelled as i32);
    if is_cancelled {
        // Nobody cancelled it who wanted it, and somewhere else it can run.
        let stopped = Failure::unavailable("the worker is shutting down", STOPPED_RETRY_DELAY);
        executed.response.status = Some(stopped.to_rpc());
    }
    executed
}

/// Executes an assignment once there is a place for it. Meanwhile, its inputs are fetched.
async fn execute_in_place(worker: &ActionRunner, slots: &Slots, assignment: Assignment) -> Executed {
    if !slots.inputs_first
        && let Ok(_place) = slots.free.try_acquire()
    {
        return execute(worker, assignment).boxed().await;
    }
    let ahead = maybe_done(worker.anticipate(&assignment).boxed());
    tokio::pin!(ahead);
    let _place = wait_for_place(slots, &assignment.cancelled, ahead.as_mut()).await;
    let mut progress = assignment.progress.subscribe();
    let mut execution = execute(worker, assignment).boxed();
    // What is on its way stays so: the execution wants the same. Once it has that, nothing is held ahead of it any more.
    let has_inputs = async {
        let goes_on = async {
            ahead.as_mut().await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = progress.wait_for(|progress| progress.phase.has_inputs()) => {}
            () = goes_on => {}
        }
    };
    tokio::select! {
        biased;
        executed = &mut execution => return executed,
        () = has_inputs => {}
    }
    ahead.set(MaybeDone::Gone);
    execution.await
}

/// A place, unless none is needed any more.
async fn wait_for_place<'s>(
    slots: &'s Slots,
    cancelled: &CancellationToken,
    ahead: Pin<&mut impl Future<Output = ()>>,
) -> Option<SemaphorePermit<'s>> {
    let place = async { cancelled.run_until_cancelled(slots.free.acquire()).await.and_then(Result::ok) };
    if slots.inputs_first {
        // Without them it needs no place.
        cancelled.run_until_cancelled(ahead).await;
        return place.await;
    }
    tokio::pin!(place);
    tokio::select! {
        biased;
        place = &mut place => place,
        () = ahead => place.await,
    }
}

async fn execute(worker: &ActionRunner, assignment: Assignment) -> Executed {
    let execution = AssertUnwindSafe(worker.execute(assignment)).catch_unwind();
    execution.await.unwrap_or_else(|panic| {
        let text = panic_text(&*panic);
        tracing::error!("an action panicked: {text}");
        let failure = Failure::internal(format!("the worker panicked: {text}"));
        let response = reapi::ExecuteResponse { status: Some(failure.to_rpc()), ..Default::default() };
        Executed { response, leftovers: Leftovers::default() }
    })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
