//! The services `Execution` and `google.longrunning.Operations`.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, Stream, StreamExt as _};
use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::Digest;
use longshore_proto::longrunning::operations_server::Operations;
use longshore_proto::reapi::execution_server::Execution;
use longshore_proto::{Message as _, longrunning, protobuf, reapi};
use tokio::sync::watch;
use tonic::{Code, Request as Call, Response, Status};

use super::action_cache::ActionCache;
use super::operation::{self, Request};
use super::scheduler::{Scheduler, Waiter};
use super::{digests, instance, request_metadata};
use crate::action::{Inline, Progress};
use crate::status::Failure;

/// A stream is not left silent for longer, so that proxies keep it open.
const KEEP_ALIVE: Duration = Duration::from_mins(1);

/// Executes actions by way of the scheduler.
#[derive(Clone)]
pub(super) struct ExecutionService {
    pub(super) store: Arc<BlobStore>,
    pub(super) cache: Arc<ActionCache>,
    pub(super) scheduler: Arc<Scheduler>,
}

type OperationStream = BoxStream<'static, Result<longrunning::Operation, Status>>;

impl ExecutionService {
    async fn execute(&self, call: Call<reapi::ExecuteRequest>) -> Result<OperationStream, Failure> {
        let metadata = request_metadata(&call);
        let request = call.into_inner();
        instance::check(&request.instance_name)?;
        let digest = digests::one(request.digest_function, request.action_digest.as_ref(), "action_digest")?;
        let action = self.load(digest).await?;
        if !request.skip_cache_lookup
            && !action.do_not_cache
            && let Some(result) =
                self.cache.get_with(&request.instance_name, &digest, &wanted(&request)).await?
        {
            self.scheduler.count_cache_hit();
            let response = reapi::ExecuteResponse {
                result: Some(result),
                cached_result: true,
                status: Some(crate::status::ok()),
                ..Default::default()
            };
            let operation = operation::done_at_once(&digest, &response);
            return Ok(futures::stream::iter([Ok(operation)]).boxed());
        }
        let waiter = self.scheduler.submit(Request {
            instance: request.instance_name,
            action_digest: digest,
            do_not_cache: action.do_not_cache,
            priority: request.execution_policy.map_or(0, |policy| policy.priority),
            inline: Inline {
                stdout: request.inline_stdout,
                stderr: request.inline_stderr,
                output_files: request.inline_output_files,
            },
            metadata,
        })?;
        Ok(updates(waiter).boxed())
    }

    async fn load(&self, digest: Digest) -> Result<reapi::Action, Failure> {
        let blobs = self.store.read_many(vec![digest]).await?;
        let bytes = blobs.into_iter().next().flatten();
        let bytes = bytes.ok_or_else(|| Failure::missing("the Action", &[digest]))?;
        reapi::Action::decode(bytes)
            .map_err(|error| Failure::invalid(format!("action_digest {digest}: is not an Action: {error}")))
    }
}

fn wanted(request: &reapi::ExecuteRequest) -> super::inline::Inline<'_> {
    super::inline::Inline {
        stdout: request.inline_stdout,
        stderr: request.inline_stderr,
        output_files: &request.inline_output_files,
    }
}

#[tonic::async_trait]
impl Execution for ExecutionService {
    type ExecuteStream = OperationStream;
    type WaitExecutionStream = OperationStream;

    async fn execute(&self, call: Call<reapi::ExecuteRequest>) -> Result<Response<OperationStream>, Status> {
        Ok(Response::new(self.execute(call).await?))
    }

    async fn wait_execution(
        &self,
        call: Call<reapi::WaitExecutionRequest>,
    ) -> Result<Response<OperationStream>, Status> {
        let name = &call.get_ref().name;
        let waiter = self.scheduler.find(name).ok_or_else(|| unknown(name))?;
        Ok(Response::new(updates(waiter).boxed()))
    }
}

#[tonic::async_trait]
impl Operations for ExecutionService {
    async fn get_operation(
        &self,
        call: Call<longrunning::GetOperationRequest>,
    ) -> Result<Response<longrunning::Operation>, Status> {
        let name = &call.get_ref().name;
        let waiter = self.scheduler.find(name).ok_or_else(|| unknown(name))?;
        Ok(Response::new(waiter.operation.to_wire()))
    }

    async fn cancel_operation(
        &self,
        call: Call<longrunning::CancelOperationRequest>,
    ) -> Result<Response<protobuf::Empty>, Status> {
        let name = &call.get_ref().name;
        if self.scheduler.cancel(name) { Ok(Response::new(protobuf::Empty {})) } else { Err(unknown(name)) }
    }

    async fn list_operations(
        &self,
        _call: Call<longrunning::ListOperationsRequest>,
    ) -> Result<Response<longrunning::ListOperationsResponse>, Status> {
        // Names cannot be guessed, which is what keeps one client from another's results.
        Err(Status::unimplemented("operations are not listed"))
    }

    async fn delete_operation(
        &self,
        _call: Call<longrunning::DeleteOperationRequest>,
    ) -> Result<Response<protobuf::Empty>, Status> {
        Err(Status::unimplemented("operations are forgotten by themselves"))
    }

    async fn wait_operation(
        &self,
        _call: Call<longrunning::WaitOperationRequest>,
    ) -> Result<Response<longrunning::Operation>, Status> {
        Err(Status::unimplemented("use Execution.WaitExecution"))
    }
}

fn unknown(name: &str) -> Status {
    Failure::new(Code::NotFound, format!("there is no operation {name:?}")).to_tonic()
}

/// Where one waiter is in following an operation.
struct Cursor {
    waiter: Waiter,
    progress: watch::Receiver<Progress>,
    response: watch::Receiver<Option<Arc<reapi::ExecuteResponse>>>,
    started: bool,
}

/// The state now, each change at once, and the last state; then the end.
fn updates(waiter: Waiter) -> impl Stream<Item = Result<longrunning::Operation, Status>> {
    let progress = waiter.operation.progress.subscribe();
    let response = waiter.operation.response.subscribe();
    let cursor = Cursor { waiter, progress, response, started: false };
    futures::stream::unfold(Some(cursor), async |cursor| {
        let mut cursor = cursor?;
        if std::mem::replace(&mut cursor.started, true) {
            tokio::select! {
                // The operation keeps both senders, so neither ends before it.
                _ = cursor.response.changed() => {}
                _ = cursor.progress.changed() => {}
                () = tokio::time::sleep(KEEP_ALIVE) => {}
            }
        }
        cursor.progress.mark_unchanged();
        let operation = cursor.waiter.operation.to_wire();
        let next = if operation.done { None } else { Some(cursor) };
        Some((Ok(operation), next))
    })
}
