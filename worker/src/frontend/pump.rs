//! From a source of work to the worker and back: as many actions at once as there are slots.
//!
//! The pump does not know which protocol the work comes by. An action that panics fails alone.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use longshore_proto::reapi;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tracing::Instrument as _;

use super::WorkSource;
use crate::action::{ActionRunner, Assignment, Executed, Leftovers, Prefetched};
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
        Arc::new(Self { free: Semaphore::new(jobs), jobs, inputs_first, stopped: CancellationToken::new() })
    }

    /// How many actions run now.
    pub fn running(&self) -> usize {
        self.jobs - self.free.available_permits()
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
            source.complete(operation, response).await;
            leftovers
        };
        let leftovers = work.instrument(span).await;
        // The folder is torn down only now, off the async threads, which renaming and unpinning would hold up.
        worker.io.spawn(move || drop(leftovers));
    }
}

/// Runs an assignment when there is room; one that is cancelled before needs none.
async fn run(worker: &ActionRunner, slots: &Slots, assignment: Assignment) -> Executed {
    let cancelled = assignment.cancelled.clone();
    let execution = async {
        let _waited = wait_for_place(worker, slots, &assignment).await;
        execute(worker, assignment).await
    };
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

/// What an execution holds: its place, unless it needs none, and the inputs that were fetched while it waited for one.
type Waited<'s> = (Option<SemaphorePermit<'s>>, Option<Prefetched>);

async fn wait_for_place<'s>(worker: &ActionRunner, slots: &'s Slots, assignment: &Assignment) -> Waited<'s> {
    let place = async {
        let place = assignment.cancelled.run_until_cancelled(slots.free.acquire()).await;
        place.and_then(Result::ok)
    };
    if slots.inputs_first {
        let inputs = assignment.cancelled.run_until_cancelled(worker.anticipate(assignment)).await;
        return (place.await, inputs.flatten());
    }
    tokio::pin!(place);
    tokio::select! {
        biased;
        // What was not fetched by now is fetched by the execution, which goes before all that is fetched ahead.
        place = &mut place => (place, None),
        inputs = worker.anticipate(assignment) => (place.await, inputs),
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
