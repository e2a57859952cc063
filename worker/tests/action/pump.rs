//! The pump: slots, draining, and actions that must not take others down.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use futures::future::BoxFuture;
use longshore_proto::reapi;
use longshore_worker::action::Assignment;
use longshore_worker::frontend::{WorkSource, pump};
use longshore_worker::run::{RunError, RunOutcome, RunSpec, Runner};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::bench::{Bench, Gate, Job, code, result};

/// Yields what it was given, then nothing; keeps the responses, and whether the folders that they name on stdout
/// were there when they came.
struct ListSource {
    assignments: Mutex<VecDeque<Assignment>>,
    responses: mpsc::UnboundedSender<(String, reapi::ExecuteResponse, bool)>,
}

impl WorkSource for ListSource {
    fn next(&self) -> BoxFuture<'_, Option<Assignment>> {
        let next = self.assignments.lock().pop_front();
        Box::pin(std::future::ready(next))
    }

    fn complete(&self, operation: String, response: reapi::ExecuteResponse) -> BoxFuture<'_, ()> {
        let stdout = response.result.as_ref().map(|result| result.stdout_raw.clone()).unwrap_or_default();
        let folder = String::from_utf8(stdout).unwrap();
        let folder_was_there = !folder.is_empty() && Path::new(folder.trim()).is_dir();
        self.responses.send((operation, response, folder_was_there)).unwrap();
        Box::pin(std::future::ready(()))
    }
}

/// Panics when a command is `panic`, and runs the others.
struct PanickingRunner(Arc<dyn Runner>);

impl Runner for PanickingRunner {
    fn run(
        &self,
        spec: RunSpec,
        cancelled: CancellationToken,
    ) -> BoxFuture<'_, Result<RunOutcome, RunError>> {
        assert!(spec.arguments[0].as_bytes() != b"panic", "asked to panic");
        self.0.run(spec, cancelled)
    }
}

// A bug that one action meets is that action's INTERNAL; the slot goes on. The result goes out before the folder
// is torn down.
#[tokio::test]
async fn a_panic_fails_one_action_alone() {
    let bench = Bench::with_runner(|runner| Arc::new(PanickingRunner(runner))).await;
    let mut assignments = VecDeque::new();
    let mut handles = Vec::new();
    for job in [Job::new(&["panic"]), Job::shell("pwd")] {
        let (mut assignment, handle) = bench.assign(job).await;
        assignment.inline.stdout = true;
        assignment.operation = assignments.len().to_string();
        assignments.push_back(assignment);
        handles.push(handle);
    }
    let (responses, mut received) = mpsc::unbounded_channel();
    let source = Arc::new(ListSource { assignments: Mutex::new(assignments), responses });
    pump(source, bench.worker.clone(), 1, CancellationToken::new()).await;

    let (operation, response, _) = received.recv().await.unwrap();
    assert_eq!((operation.as_str(), code(&response)), ("0", Code::Internal));
    let (operation, response, folder_was_there) = received.recv().await.unwrap();
    assert_eq!((operation.as_str(), code(&response)), ("1", Code::Ok));
    assert_eq!(result(&response).exit_code, 0);
    assert!(folder_was_there, "{response:?}");
}

/// A source with one assignment that then has nothing for ever.
struct OneSource {
    assignment: Mutex<Option<Assignment>>,
    completed: mpsc::UnboundedSender<reapi::ExecuteResponse>,
}

impl WorkSource for OneSource {
    fn next(&self) -> BoxFuture<'_, Option<Assignment>> {
        match self.assignment.lock().take() {
            Some(assignment) => Box::pin(std::future::ready(Some(assignment))),
            None => Box::pin(std::future::pending()),
        }
    }

    fn complete(&self, _operation: String, response: reapi::ExecuteResponse) -> BoxFuture<'_, ()> {
        self.completed.send(response).unwrap();
        Box::pin(std::future::ready(()))
    }
}

// Draining takes nothing on, and waits for what runs.
#[tokio::test]
async fn draining_finishes_what_runs() {
    let bench = Bench::new().await;
    let gate = Gate::new();
    let script = format!("read line < '{}'; exit 7", gate.path().display());
    let (assignment, mut handle) = bench.assign(Job::shell(&script)).await;
    let (completed, mut received) = mpsc::unbounded_channel();
    let source = Arc::new(OneSource { assignment: Mutex::new(Some(assignment)), completed });
    let drain = CancellationToken::new();
    let pumping = tokio::spawn(pump(source, bench.worker.clone(), 2, drain.clone()));
    handle.wait_until_running().await;
    drain.cancel();
    gate.open().await;
    pumping.await.unwrap();
    assert_eq!(result(&received.recv().await.unwrap()).exit_code, 7);
}
