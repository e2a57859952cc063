//! The scheduler's side of a stream.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::BoxStream;
use longshore_proto::nativelink::execute_result::Result as Outcome;
use longshore_proto::nativelink::update_for_scheduler::Update as Heard;
use longshore_proto::nativelink::update_for_worker::Update as Said;
use longshore_proto::nativelink::worker_api_server::WorkerApi;
use longshore_proto::nativelink::{
    ConnectWorkerRequest, ConnectionResult, ExecuteResult, UpdateForScheduler, UpdateForWorker,
};
use longshore_proto::{reapi, time};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{ATTEMPTS_MAX, Ended, Inner, State, Worker};

#[derive(Clone, Debug)]
pub(super) struct Service(pub(super) Arc<State>);

#[tonic::async_trait]
impl WorkerApi for Service {
    type ConnectWorkerStream = BoxStream<'static, Result<UpdateForWorker, Status>>;

    async fn connect_worker(
        &self,
        request: Request<Streaming<UpdateForScheduler>>,
    ) -> Result<Response<Self::ConnectWorkerStream>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|message| message.update);
        let Some(Heard::ConnectWorkerRequest(hello)) = first else {
            self.0.change(|inner| inner.mistakes.push(format!("the first message is {first:?}")));
            return Err(Status::internal("no ConnectWorkerRequest"));
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        let stream = self.0.change(|inner| inner.take_on(hello, sender))?;
        tokio::spawn(listen(self.0.clone(), stream, messages));
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
    }
}

/// Takes in what one worker says until its stream ends.
async fn listen(state: Arc<State>, stream: usize, mut messages: Streaming<UpdateForScheduler>) {
    while let Ok(Some(UpdateForScheduler { update: Some(heard) })) = messages.message().await {
        if !state.change(|inner| inner.hear(stream, heard)) {
            return;
        }
    }
    state.change(|inner| {
        if inner.is_current(stream) {
            inner.lose(Status::unavailable("the worker ended its stream"));
        }
    });
}

impl Inner {
    fn take_on(
        &mut self,
        hello: ConnectWorkerRequest,
        sender: mpsc::UnboundedSender<Result<UpdateForWorker, Status>>,
    ) -> Result<usize, Status> {
        if self.is_closed {
            self.refused += 1;
            return Err(Status::unavailable("no workers are taken on"));
        }
        self.lose(Status::aborted("there is another worker"));
        let tasks_max = match hello.max_inflight_tasks {
            0 => usize::MAX,
            tasks_max => usize::try_from(tasks_max).unwrap_or(usize::MAX),
        };
        let worker_id = format!("{}{}", hello.worker_id_prefix, self.hellos.len());
        self.hellos.push(hello);
        let stream = self.hellos.len();
        self.worker = Some(Worker { stream, sender, tasks_max, held: BTreeMap::new(), is_paused: false });
        self.say(Said::ConnectionResult(ConnectionResult { worker_id }));
        Ok(stream)
    }

    fn is_current(&self, stream: usize) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.stream == stream)
    }

    /// Takes in a message; whether the worker is still one of ours.
    fn hear(&mut self, stream: usize, heard: Heard) -> bool {
        if !self.is_current(stream) {
            return false;
        }
        self.heard.push((stream, heard.clone()));
        match heard {
            Heard::ConnectWorkerRequest(_) => self.mistakes.push("a second ConnectWorkerRequest".to_owned()),
            Heard::KeepAliveRequest(_) => {}
            Heard::GoingAwayRequest(_) => self.evict(),
            Heard::ExecuteComplete(complete) => {
                self.check_held(&complete.operation_id);
            }
            Heard::ExecuteResult(result) => self.take_result(result),
        }
        self.count_message();
        self.is_current(stream)
    }

    /// Whether the worker holds an operation; one that speaks of others is thrown out.
    fn check_held(&mut self, operation: &str) -> bool {
        let is_held = self.worker.as_ref().is_some_and(|worker| worker.held.contains_key(operation));
        if !is_held {
            self.mistakes.push(format!("{operation} is not held"));
            self.evict();
        }
        is_held
    }

    fn take_result(&mut self, result: ExecuteResult) {
        let operation = result.operation_id;
        if !self.check_held(&operation) {
            return;
        }
        let outcome = match result.result {
            Some(Outcome::ExecuteResponse(response)) => match lacking(&response) {
                Some(lacking) => {
                    self.mistakes.push(format!("{operation} hangs: there is no {lacking}"));
                    return;
                }
                None => Ok(response),
            },
            Some(Outcome::InternalError(status)) => Err(status),
            None => {
                self.mistakes.push(format!("{operation} has neither response nor error"));
                return;
            }
        };
        let worker = self.worker.as_mut().expect("it holds the operation");
        let held = worker.held.remove(&operation).expect("it holds the operation");
        let is_full = outcome.as_ref().is_err_and(|status| status.code == Code::ResourceExhausted as i32);
        worker.is_paused = is_full && !worker.held.is_empty();
        let ended = match outcome {
            _ if held.is_killed => Ended::Killed,
            Ok(response) => Ended::Response(Box::new(response)),
            Err(_) if is_full || !self.is_last_attempt(&operation) => {
                self.queue.push_back(held.start);
                return;
            }
            Err(status) => Ended::GivenUp(status),
        };
        self.ended.insert(operation, ended);
    }

    fn is_last_attempt(&mut self, operation: &str) -> bool {
        let attempts = self.attempts.entry(operation.to_owned()).or_default();
        *attempts += 1;
        *attempts >= ATTEMPTS_MAX
    }
}

/// What a response lacks that the scheduler cannot do without.
fn lacking(response: &reapi::ExecuteResponse) -> Option<&'static str> {
    let Some(result) = &response.result else { return Some("result") };
    let Some(metadata) = &result.execution_metadata else { return Some("execution_metadata") };
    let digests = [("stdout_digest", &result.stdout_digest), ("stderr_digest", &result.stderr_digest)];
    let digests = digests.map(|(name, digest)| (name, digest.is_some()));
    let times = time::of_phases(metadata).map(|(name, time)| (name, time.is_some()));
    digests.into_iter().chain(times).find(|(_, is_there)| !is_there).map(|(name, _)| name)
}
