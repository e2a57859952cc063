//! `NativeLink`'s scheduler as a worker meets it, in this process: it starts what a test submits, holds workers to the
//! protocol, and loses streams when it is told to.
//!
//! It does what version 1.6.6 was seen to do: it queues again at once, under the same operation id, what a lost worker
//! held; it throws a worker out that reports what it does not wait for; it waits for ever where a result lacks a digest
//! or a time; it tries internal errors again up to four times, and `RESOURCE_EXHAUSTED` without counting, but pauses a
//! worker that has others to end. It knows one worker at a time, and measures no time.

mod service;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::Digest;
use longshore_proto::nativelink::update_for_scheduler::Update as Heard;
use longshore_proto::nativelink::update_for_worker::Update as Said;
use longshore_proto::nativelink::worker_api_server::WorkerApiServer;
use longshore_proto::nativelink::{
    ConnectWorkerRequest, Disconnect, KillOperationRequest, StartExecute, UpdateForWorker,
};
use longshore_proto::{protobuf, reapi, rpc};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tonic::Status;
use tonic::transport::server::TcpIncoming;

/// How long whatever is waited for may take; commands of tests that are to be killed take longer.
const PATIENCE: Duration = Duration::from_mins(2);
/// Attempts at an operation whose workers fail.
const ATTEMPTS_MAX: u32 = 4;

/// How an operation ended for its client.
#[derive(Clone, Debug)]
pub enum Ended {
    /// With that response.
    Response(Box<reapi::ExecuteResponse>),
    /// With that error, after all attempts.
    GivenUp(rpc::Status),
    /// Its worker was asked to kill it, and has answered.
    Killed,
}

/// The scheduler; it ends when this is dropped.
#[derive(Debug)]
pub struct FakeNativeLink {
    uri: String,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    inner: Mutex<Inner>,
    /// Counts what has happened.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    queue: VecDeque<StartExecute>,
    worker: Option<Worker>,
    hellos: Vec<ConnectWorkerRequest>,
    heard: Vec<(usize, Heard)>,
    starts: Vec<String>,
    attempts: HashMap<String, u32>,
    ended: HashMap<String, Ended>,
    mistakes: Vec<String>,
    is_closed: bool,
    refused: usize,
    /// Messages, either way, after which the stream is lost.
    messages_left: Option<usize>,
}

#[derive(Debug)]
struct Worker {
    stream: usize,
    sender: mpsc::UnboundedSender<Result<UpdateForWorker, Status>>,
    tasks_max: usize,
    /// What it has been asked for, and whether to kill it.
    held: BTreeMap<String, Held>,
    is_paused: bool,
}

#[derive(Debug)]
struct Held {
    start: StartExecute,
    is_killed: bool,
}

impl FakeNativeLink {
    /// Starts one on a free port.
    pub async fn start() -> Result<Self> {
        let state = Arc::new(State::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a port")?;
        let uri = format!("grpc://{}", listener.local_addr().context("the port")?);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let service = WorkerApiServer::new(service::Service(state.clone()));
        let router = tonic::transport::Server::builder().add_service(service);
        let task = tokio::spawn(async move {
            // It ends by being aborted; a listener that fails shows in the test.
            let _ = router.serve_with_incoming(incoming).await;
        });
        Ok(Self { uri, state, task })
    }

    /// Where it listens.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// A client wants that action executed.
    pub fn submit(&self, operation: &str, action: &Digest) {
        let request = reapi::ExecuteRequest {
            instance_name: "main".to_owned(),
            action_digest: Some(action.to_wire()),
            digest_function: action.function().to_wire().into(),
            ..Default::default()
        };
        self.submit_request(operation, request);
    }

    /// A client wants just that.
    pub fn submit_request(&self, operation: &str, request: reapi::ExecuteRequest) {
        let start = StartExecute {
            execute_request: Some(request),
            queued_timestamp: Some(protobuf::Timestamp { seconds: 1, nanos: 0 }),
            operation_id: operation.to_owned(),
            ..Default::default()
        };
        self.state.change(|inner| inner.queue.push_back(start));
    }

    /// Starts an operation once more that the worker holds, as the real one does when it took too long.
    pub fn repeat(&self, operation: &str) {
        self.state.change(|inner| {
            let start = inner.worker.as_ref().and_then(|worker| worker.held.get(operation));
            if let Some(start) = start.map(|held| held.start.clone()) {
                inner.start(start);
            }
        });
    }

    /// The client of an operation has left.
    pub fn kill(&self, operation: &str) {
        self.state.change(|inner| {
            let held = inner.worker.as_mut().and_then(|worker| worker.held.get_mut(operation));
            if let Some(held) = held {
                held.is_killed = true;
                let operation_id = operation.to_owned();
                inner.say(Said::KillOperationRequest(KillOperationRequest { operation_id }));
            }
        });
    }

    /// Loses the stream.
    pub fn lose(&self) {
        self.state.change(|inner| inner.lose(Status::unavailable("the stream is lost")));
    }

    /// Loses each stream after so many messages, either way; nothing: none any more.
    pub fn lose_after(&self, messages: Option<usize>) {
        self.state.change(|inner| inner.messages_left = messages);
    }

    /// Throws the worker out.
    pub fn evict(&self) {
        self.state.change(Inner::evict);
    }

    /// Starts anew, and knows of nothing that was before.
    pub fn restart(&self) {
        self.state.change(|inner| {
            inner.lose(Status::unavailable("restarting"));
            inner.queue.clear();
        });
    }

    /// Takes no workers on, or takes them on again.
    pub fn set_closed(&self, is_closed: bool) {
        self.state.change(|inner| inner.is_closed = is_closed);
    }

    /// How each worker introduced itself.
    pub fn hellos(&self) -> Vec<ConnectWorkerRequest> {
        self.state.lock().hellos.clone()
    }

    /// What workers said after that, with the number of the stream, from 1 on.
    pub fn heard(&self) -> Vec<(usize, Heard)> {
        self.state.lock().heard.clone()
    }

    /// The operations that were started, in order.
    pub fn starts(&self) -> Vec<String> {
        self.state.lock().starts.clone()
    }

    /// What workers did that they must not do.
    pub fn mistakes(&self) -> Vec<String> {
        self.state.lock().mistakes.clone()
    }

    /// Whether a worker is registered.
    pub fn has_worker(&self) -> bool {
        self.state.lock().worker.is_some()
    }

    /// Completes when that many workers have been taken on in all, and there is one.
    pub async fn registered(&self, count: usize) {
        self.state.until(|inner| (inner.hellos.len() >= count && inner.worker.is_some()).then_some(())).await;
    }

    /// Completes when that many workers have not been taken on.
    pub async fn refused(&self, count: usize) {
        self.state.until(|inner| (inner.refused >= count).then_some(())).await;
    }

    /// Completes when there is no worker.
    pub async fn deserted(&self) {
        self.state.until(|inner| inner.worker.is_none().then_some(())).await;
    }

    /// Completes when an operation has been started that many times.
    pub async fn started(&self, operation: &str, count: usize) {
        let count_of = |inner: &Inner| inner.starts.iter().filter(|started| *started == operation).count();
        self.state.until(|inner| (count_of(inner) >= count).then_some(())).await;
    }

    /// Completes when a worker has said something that `is_it`.
    pub async fn hears(&self, is_it: impl Fn(&Heard) -> bool) {
        self.state.until(|inner| inner.heard.iter().any(|(_, heard)| is_it(heard)).then_some(())).await;
    }

    /// The end of an operation, once it has come.
    pub async fn ended(&self, operation: &str) -> Ended {
        self.state.until(|inner| inner.ended.get(operation).cloned()).await
    }
}

impl Drop for FakeNativeLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, and starts what can be started now.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let changed = {
            let mut inner = self.lock();
            let changed = change(&mut inner);
            inner.dispatch();
            changed
        };
        self.changed.send_modify(|count| *count += 1);
        changed
    }

    async fn until<T>(&self, look: impl Fn(&Inner) -> Option<T>) -> T {
        let seen = async {
            let mut changed = self.changed.subscribe();
            loop {
                let seen = look(&self.lock());
                if let Some(seen) = seen {
                    return seen;
                }
                changed.changed().await.expect("the state outlives this");
            }
        };
        let seen = tokio::time::timeout(PATIENCE, seen).await;
        seen.unwrap_or_else(|_| panic!("what is waited for has not come in {PATIENCE:?}"))
    }
}

impl Inner {
    fn dispatch(&mut self) {
        while let Some(worker) = &self.worker
            && !worker.is_paused
            && worker.held.len() < worker.tasks_max
        {
            let Some(start) = self.queue.pop_front() else { return };
            self.start(start);
        }
    }

    fn start(&mut self, start: StartExecute) {
        let Some(worker) = &mut self.worker else { return };
        let operation = start.operation_id.clone();
        self.starts.push(operation.clone());
        worker.held.insert(operation, Held { start: start.clone(), is_killed: false });
        self.say(Said::StartAction(start));
    }

    fn say(&mut self, update: Said) {
        if let Some(worker) = &self.worker {
            // Whoever does not listen any more is found out when its stream ends.
            let _ = worker.sender.send(Ok(UpdateForWorker { update: Some(update) }));
        }
        self.count_message();
    }

    /// Loses the stream if this was its last message.
    fn count_message(&mut self) {
        if let Some(left) = self.messages_left.as_mut() {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.messages_left = None;
                self.lose(Status::unavailable("the stream is lost"));
            }
        }
    }

    fn lose(&mut self, status: Status) {
        let Some(worker) = self.worker.take() else { return };
        let _ = worker.sender.send(Err(status));
        self.queue_again(worker);
    }

    fn evict(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        let update = Some(Said::Disconnect(Disconnect {}));
        let _ = worker.sender.send(Ok(UpdateForWorker { update }));
        self.queue_again(worker);
    }

    fn queue_again(&mut self, worker: Worker) {
        for (operation, held) in worker.held.into_iter().rev() {
            if held.is_killed {
                self.ended.insert(operation, Ended::Killed);
            } else {
                self.queue.push_front(held.start);
            }
        }
    }
}
