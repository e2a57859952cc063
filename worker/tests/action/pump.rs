//! The pump: slots, draining, and actions that must not take others down.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use futures::future::BoxFuture;
use longshore_proto::reapi;
use longshore_worker::action::{Assignment, Phase};
use longshore_worker::frontend::{Slots, WorkSource, pump};
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

    fn drain(&self) {}

    fn close(&self) -> BoxFuture<'_, ()> {
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
    pump(source, bench.worker.clone(), 1, Slots::new(1)).await;

    let (operation, response, _) = received.recv().await.unwrap();
    assert_eq!((operation.as_str(), code(&response)), ("0", Code::Internal));
    let (operation, response, folder_was_there) = received.recv().await.unwrap();
    assert_eq!((operation.as_str(), code(&response)), ("1", Code::Ok));
    assert_eq!(result(&response).exit_code, 0);
    assert!(folder_was_there, "{response:?}");
}

/// A source with one assignment, which then waits until it is drained.
struct OneSource {
    assignment: Mutex<Option<Assignment>>,
    completed: mpsc::UnboundedSender<reapi::ExecuteResponse>,
    drained: CancellationToken,
}

impl OneSource {
    fn new(assignment: Assignment) -> (Arc<Self>, mpsc::UnboundedReceiver<reapi::ExecuteResponse>) {
        let (completed, received) = mpsc::unbounded_channel();
        let assignment = Mutex::new(Some(assignment));
        (Arc::new(Self { assignment, completed, drained: CancellationToken::new() }), received)
    }
}

impl WorkSource for OneSource {
    fn next(&self) -> BoxFuture<'_, Option<Assignment>> {
        let next = self.assignment.lock().take();
        Box::pin(async {
            if next.is_none() {
                self.drained.cancelled().await;
            }
            next
        })
    }

    fn complete(&self, _operation: String, response: reapi::ExecuteResponse) -> BoxFuture<'_, ()> {
        self.completed.send(response).unwrap();
        Box::pin(std::future::ready(()))
    }

    fn drain(&self) {
        self.drained.cancel();
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

// Draining takes nothing on, and waits for what runs.
#[tokio::test]
async fn draining_finishes_what_runs() {
    let bench = Bench::new().await;
    let gate = Gate::new();
    let (assignment, mut handle) = bench.assign(behind(&gate)).await;
    let (source, mut received) = OneSource::new(assignment);
    let pumping = tokio::spawn(pump(source.clone(), bench.worker.clone(), 2, Slots::new(2)));
    handle.wait_until_running().await;
    source.drain();
    gate.open().await;
    pumping.await.unwrap();
    assert_eq!(result(&received.recv().await.unwrap()).exit_code, 7);
}

// Two schedulers that fill the worker both do not overload it: what one gave waits for what the other gave.
#[tokio::test]
async fn sources_share_the_slots() {
    let bench = Bench::new().await;
    let gate = Gate::new();
    let (first, mut running) = bench.assign(behind(&gate)).await;
    let (second, waiting) = bench.assign(Job::shell("exit 3")).await;
    let slots = Slots::new(1);
    let (first, mut first_received) = OneSource::new(first);
    let pumping_first = tokio::spawn(pump(first.clone(), bench.worker.clone(), 1, slots.clone()));
    running.wait_until_running().await;
    let (second, mut second_received) = OneSource::new(second);
    let pumping_second = tokio::spawn(pump(second.clone(), bench.worker.clone(), 1, slots.clone()));
    first.drain();
    second.drain();
    assert_eq!((slots.running(), waiting.progress.borrow().phase), (1, Phase::Queued));
    gate.open().await;
    pumping_first.await.unwrap();
    pumping_second.await.unwrap();
    assert_eq!(result(&first_received.recv().await.unwrap()).exit_code, 7);
    assert_eq!(result(&second_received.recv().await.unwrap()).exit_code, 3);
    assert_eq!(slots.running(), 0);
}

// What is stopped with its worker can run elsewhere; whoever waits must not take it for cancelled by somebody.
#[tokio::test]
async fn what_is_stopped_can_be_tried_again() {
    let bench = Bench::new().await;
    let (assignment, mut handle) = bench.assign(Job::shell("exec sleep 1000")).await;
    let (waiting, _waiting) = bench.assign(Job::shell("exit 3")).await;
    let slots = Slots::new(1);
    let mut received = Vec::new();
    let mut pumps = tokio::task::JoinSet::new();
    for assignment in [assignment, waiting] {
        let (source, responses) = OneSource::new(assignment);
        source.drain();
        received.push(responses);
        pumps.spawn(pump(source, bench.worker.clone(), 1, slots.clone()));
        handle.wait_until_running().await;
    }
    slots.stop();
    pumps.join_all().await;
    for mut received in received {
        assert_eq!(code(&received.recv().await.unwrap()), Code::Unavailable);
    }
}

/// A scheduler that is away: it takes no result.
struct AwaySource(Arc<OneSource>);

impl WorkSource for AwaySource {
    fn next(&self) -> BoxFuture<'_, Option<Assignment>> {
        self.0.next()
    }

    fn complete(&self, operation: String, response: reapi::ExecuteResponse) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.0.complete(operation, response).await;
            std::future::pending::<()>().await;
        })
    }

    fn drain(&self) {
        self.0.drain();
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.0.close()
    }
}

// Whoever gives up waiting for a scheduler can say how much is lost with it.
#[tokio::test]
async fn results_that_nobody_takes_are_counted() {
    let bench = Bench::new().await;
    let (assignment, _handle) = bench.assign(Job::shell("exit 3")).await;
    let slots = Slots::new(1);
    let (source, mut received) = OneSource::new(assignment);
    let pumping = tokio::spawn(pump(Arc::new(AwaySource(source)), bench.worker.clone(), 1, slots.clone()));
    assert_eq!(result(&received.recv().await.unwrap()).exit_code, 3);
    assert_eq!((slots.running(), slots.unreported()), (0, 1));
    pumping.abort();
}

/// Exits with 7 when the gate opens.
fn behind(gate: &Gate) -> Job {
    Job::shell(&format!("read line < '{}'; exit 7", gate.path().display()))
}
