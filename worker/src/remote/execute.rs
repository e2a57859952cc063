//! Executing an action elsewhere.
//!
//! A stream that breaks off leaves the execution running: it is joined again by its operation's name, as long as the
//! server knows it, and begun anew otherwise.

use std::error::Error as _;
use std::sync::atomic::{AtomicU64, Ordering};

use longshore_cas_store::digest::Digest;
use longshore_proto::longrunning::{Operation, operation};
use longshore_proto::{Message as _, reapi};
use tonic::{Code, Status, Streaming};

use super::{Remote, RemoteError};

/// Streams of one execution that may break off while it goes on: behind a proxy that ends each after a minute, those of
/// half a day.
const BREAKS_MAX: u32 = 1000;
/// How often an execution is begun anew on a server that forgets it.
const BEGUN_ANEW_MAX: u32 = 100;

/// What streams that broke off led to.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) rejoined: AtomicU64,
    pub(super) begun_anew: AtomicU64,
}

impl Remote {
    /// Executes an action whose result is not looked for in a cache, and waits for its end.
    ///
    /// Outages are waited out; whatever else the server answers in place of a response is an error.
    pub async fn execute(&self, action: &Digest) -> Result<reapi::ExecuteResponse, RemoteError> {
        self.caller.limits().await?;
        let mut execution = Execution { remote: self, action, operation: None, has_come_on: false };
        let mut attempts = self.caller.attempts();
        let (mut breaks, mut begun_anew) = (0, 0);
        loop {
            let is_known = execution.operation.is_some();
            let status = match execution.attempt().await {
                Ok(response) => {
                    attempts.succeeded();
                    return Ok(response);
                }
                Err(status) => status,
            };
            if is_known && is_forgotten(&status) && begun_anew < BEGUN_ANEW_MAX {
                begun_anew += 1;
                self.shared.executions.begun_anew.fetch_add(1, Ordering::Relaxed);
                execution.operation = None;
                continue;
            }
            if execution.has_come_on && breaks < BREAKS_MAX {
                breaks += 1;
                attempts.progressed();
            }
            let paused = self.caller.pause(&mut attempts, status).await;
            paused.map_err(|status| self.caller.error("Execute", &status))?;
        }
    }
}

/// Whether a server has no such operation: it was restarted, or never knows any.
fn is_forgotten(status: &Status) -> bool {
    matches!(status.code(), Code::NotFound | Code::Unimplemented)
}

struct Execution<'r> {
    remote: &'r Remote,
    action: &'r Digest,
    /// What the server calls it.
    operation: Option<String>,
    /// Whether the last stream had something to say.
    has_come_on: bool,
}

impl Execution<'_> {
    /// Follows one stream to the end of the execution.
    async fn attempt(&mut self) -> Result<reapi::ExecuteResponse, Status> {
        self.has_come_on = false;
        let mut stream = self.open().await?;
        while let Some(operation) = stream.message().await.map_err(broken)? {
            if !self.has_come_on && self.operation.is_some() {
                self.remote.shared.executions.rejoined.fetch_add(1, Ordering::Relaxed);
            }
            self.has_come_on = true;
            if let Some(response) = response(&operation)? {
                return Ok(response);
            }
            if !operation.name.is_empty() {
                self.operation = Some(operation.name);
            }
        }
        Err(Status::unavailable("the stream ended before the execution"))
    }

    async fn open(&self) -> Result<Streaming<Operation>, Status> {
        let caller = &self.remote.caller;
        let mut client = caller.execution();
        let answer = match &self.operation {
            Some(name) => {
                let request = reapi::WaitExecutionRequest { name: name.clone() };
                client.wait_execution(caller.request(request).await?).await
            }
            None => client.execute(caller.request(self.request()).await?).await,
        };
        Ok(answer.map_err(broken)?.into_inner())
    }

    fn request(&self) -> reapi::ExecuteRequest {
        reapi::ExecuteRequest {
            instance_name: self.remote.caller.instance_name(),
            action_digest: Some(self.action.to_wire()),
            skip_cache_lookup: true,
            digest_function: self.action.function().to_wire().into(),
            ..Default::default()
        }
    }
}

/// A connection that broke is an outage, whatever code its streams end with: nobody said a word about the execution.
fn broken(status: Status) -> Status {
    if status.source().is_some() { Status::unavailable(status.message()) } else { status }
}

/// The response of an operation that is done.
fn response(operation: &Operation) -> Result<Option<reapi::ExecuteResponse>, Status> {
    if !operation.done {
        return Ok(None);
    }
    match &operation.result {
        Some(operation::Result::Response(any)) => reapi::ExecuteResponse::decode(any.value.as_slice())
            .map(Some)
            .map_err(|error| Status::data_loss(format!("the response is none: {error}"))),
        Some(operation::Result::Error(status)) => {
            let status = Some(status.clone());
            Ok(Some(reapi::ExecuteResponse { status, ..Default::default() }))
        }
        None => Err(Status::data_loss("the operation is done and has no response")),
    }
}
