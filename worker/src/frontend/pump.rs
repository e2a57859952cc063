//! From a source of work to the worker and back: as many actions at once as there are slots.
//!
//! The pump does not know which protocol the work comes by. An action that panics fails alone.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt as _;
use longshore_proto::reapi;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::WorkSource;
use crate::action::{ActionRunner, Assignment, Executed, Leftovers};
use crate::status::Failure;

/// Runs what `source` yields, `slots` actions at once.
///
/// Ends when `source` does. When `drain` fires, no more is taken on, and it ends with the last running action;
/// what must not be waited for is cancelled through the assignments.
pub async fn pump(
    source: Arc<dyn WorkSource>,
    worker: Arc<ActionRunner>,
    slots: usize,
    drain: CancellationToken,
) {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..slots {
        tasks.spawn(serve_slot(source.clone(), worker.clone(), drain.clone()));
    }
    tasks.join_all().await;
}

async fn serve_slot(source: Arc<dyn WorkSource>, worker: Arc<ActionRunner>, drain: CancellationToken) {
    while let Some(Some(assignment)) = drain.run_until_cancelled(source.next()).await {
        let span = assignment.span();
        let work = async {
            let operation = assignment.operation.clone();
            let Executed { response, leftovers } = execute(&worker, assignment).await;
            source.complete(operation, response).await;
            leftovers
        };
        let leftovers = work.instrument(span).await;
        // The folder is torn down only now, off the async threads, which renaming and unpinning would hold up.
        worker.io.spawn(move || drop(leftovers));
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
