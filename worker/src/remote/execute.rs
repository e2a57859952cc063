//! Executing an action elsewhere.
//!
//! A stream that breaks off leaves the execution running: it is joined again by its operation's name, as long as the
//! server knows it, and begun anew otherwise.

use std::error::Error as _;

use longshore_cas_store::digest::Digest;
use longshore_proto::longrunning::{Operation, operation};
use longshore_proto::{Message as _, reapi};
use tonic::{Code, Status, Streaming};

use super::{Remote, RemoteError};

impl Remote {
    /// Executes an action whose result is not looked for in a cache, and waits for its end.
    ///
    /// Outages are waited out; whatever else the server answers in place of a response is an error.
    pub async fn execute(&self, action: &Digest) -> Result<reapi::ExecuteResponse, RemoteError> {
        self.caller.limits().await?;
        let mut execution = Execution { remote: self, action, operation: None };
        let mut attempts = self.caller.attempts();
        loop {
            let before = execution.operation.clone();
            let status = match execution.attempt().await {
                Ok(response) => {
                    attempts.succeeded();
                    return Ok(response);
                }
                Err(status) => status,
            };
            if execution.operation.is_some() && execution.operation != before {
                attempts.progressed();
            }
            // A server that was restarted knows no operations of before.
            if before.is_some() && status.code() == Code::NotFound {
                execution.operation = None;
                continue;
            }
            let paused = self.caller.pause(&mut attempts, status).await;
            paused.map_err(|status| self.caller.error("Execute", &status))?;
        }
    }
}

struct Execution<'r> {
    remote: &'r Remote,
    action: &'r Digest,
    /// What the server calls it.
    operation: Option<String>,
}

impl Execution<'_> {
    /// Follows one stream to the end of the execution.
    async fn attempt(&mut self) -> Result<reapi::ExecuteResponse, Status> {
        let mut stream = self.open().await?;
        while let Some(operation) = stream.message().await.map_err(broken)? {
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
