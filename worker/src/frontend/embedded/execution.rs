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
use super::limits::{METADATA_BYTES_MAX, RESPONSE_BYTES_MAX};
use super::operation::{Operation, Request};
use super::scheduler::{Scheduler, Submitted, Waiter};
use super::share::Share;
use super::{digests, inline, request_metadata};
use crate::action::{Inline, Progress};
use crate::frontend::instance;
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

/// How often the action cache is asked by one request, at most.
const LOOKS_MAX: usize = 4;

type OperationStream = BoxStream<'static, Result<longrunning::Operation, Status>>;

impl ExecutionService {
    async fn execute(&self, call: Call<reapi::ExecuteRequest>) -> Result<OperationStream, Failure> {
        let share = Share::of(&call);
        let metadata = request_metadata(&call);
        let request = call.into_inner();
        instance::check(&request.instance_name)?;
        let digest = digests::one(request.digest_function, request.action_digest.as_ref(), "action_digest")?;
        let action = self.load(digest).await?;
        let may_be_cached = !request.skip_cache_lookup && !action.do_not_cache;
        let request = Request {
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
        };
        let waiter = if may_be_cached {
            let (cache, instance) = (self.cache.clone(), request.instance.clone());
            let known = || cache.get(&instance, &digest);
            find_or_submit(&self.scheduler, request, known).await?
        } else {
            self.scheduler.submit(request)?
        };
        Ok(self.updates(waiter, share).boxed())
    }

    /// The state now, each change at once, and the last state; then the end.
    fn updates(
        &self,
        waiter: Waiter,
        share: Share,
    ) -> impl Stream<Item = Result<longrunning::Operation, Status>> + use<> {
        let progress = waiter.operation.execution.progress.subscribe();
        let response = waiter.operation.response.subscribe();
        let cursor = Cursor { store: self.store.clone(), waiter, share, progress, response, started: false };
        futures::stream::unfold(Some(cursor), async |cursor| {
            let mut cursor = cursor?;
            if std::mem::replace(&mut cursor.started, true) {
                cursor.changed().await;
            }
            let room = match cursor.share.make().await {
                Ok(room) => room,
                Err(status) => return Some((Err(status), None)),
            };
            cursor.progress.mark_unchanged();
            let operation = to_wire(&cursor.store, &cursor.waiter.operation).await;
            drop(room);
            let next = if operation.done { None } else { Some(cursor) };
            Some((Ok(operation), next))
        })
    }

    async fn load(&self, digest: Digest) -> Result<reapi::Action, Failure> {
        if digest.size_bytes() > METADATA_BYTES_MAX {
            let reason = format!("is too large: at most {METADATA_BYTES_MAX} bytes are read");
            return Err(Failure::invalid(format!("action_digest {digest}: {reason}")));
        }
        let blobs = self.store.read_many(vec![digest]).await?;
        let bytes = blobs.into_iter().next().flatten();
        let bytes = bytes.ok_or_else(|| Failure::missing("the Action", &[digest]))?;
        reapi::Action::decode(bytes)
            .map_err(|error| Failure::invalid(format!("action_digest {digest}: is not an Action: {error}")))
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
        let waiter = self.scheduler.wait(name).ok_or_else(|| unknown(name))?;
        Ok(Response::new(self.updates(waiter, Share::of(&call)).boxed()))
    }
}

#[tonic::async_trait]
impl Operations for ExecutionService {
    async fn get_operation(
        &self,
        call: Call<longrunning::GetOperationRequest>,
    ) -> Result<Response<longrunning::Operation>, Status> {
        let name = &call.get_ref().name;
        let operation = self.scheduler.find(name).ok_or_else(|| unknown(name))?;
        Ok(Response::new(to_wire(&self.store, &operation).await))
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

fn from_cache(result: reapi::ActionResult) -> reapi::ExecuteResponse {
    reapi::ExecuteResponse {
        result: Some(result),
        cached_result: true,
        status: Some(crate::status::ok()),
        ..Default::default()
    }
}

/// Answers with what is `known`, which is what the action cache has, or has the action executed.
async fn find_or_submit<F>(
    scheduler: &Arc<Scheduler>,
    mut request: Request,
    known: impl Fn() -> F,
) -> Result<Waiter, Failure>
where
    F: Future<Output = Result<Option<reapi::ActionResult>, Failure>>,
{
    for _ in 0..LOOKS_MAX {
        let ended = scheduler.ended();
        if let Some(result) = known().await? {
            return Ok(scheduler.answer(request, from_cache(result)));
        }
        match scheduler.submit_unless_ended_since(ended, request)? {
            Submitted::Waiting(waiter) => return Ok(waiter),
            // It has ended meanwhile: who looks again finds its result, and nothing runs twice.
            Submitted::LookAgain(back) => request = *back,
        }
    }
    scheduler.submit(request)
}

/// The operation as its client sees it now, with the contents that it wants inline.
async fn to_wire(store: &Arc<BlobStore>, operation: &Operation) -> longrunning::Operation {
    let response = operation.response.borrow().clone();
    match response {
        None => operation.under_way(),
        Some(response) => match with_contents(store, operation, &response).await {
            Some(response) => operation.completed(&response),
            None => operation.completed(&response),
        },
    }
}

/// The response with contents inline; nothing if none are wanted, or they cannot be had, or do not fit: the digests
/// are there in any case.
async fn with_contents(
    store: &Arc<BlobStore>,
    operation: &Operation,
    response: &reapi::ExecuteResponse,
) -> Option<reapi::ExecuteResponse> {
    let Inline { stdout, stderr, output_files } = &operation.inline;
    if !stdout && !stderr && output_files.is_empty() {
        return None;
    }
    let mut response = response.clone();
    let wanted = inline::Inline { stdout: *stdout, stderr: *stderr, output_files };
    let function = operation.execution.action_digest.function();
    inline::move_in(store, function, &wanted, response.result.as_mut()?).await.ok()?;
    (response.encoded_len() <= RESPONSE_BYTES_MAX).then_some(response)
}

/// Where one waiter is in following an operation.
struct Cursor {
    store: Arc<BlobStore>,
    waiter: Waiter,
    share: Share,
    progress: watch::Receiver<Progress>,
    response: watch::Receiver<Option<Arc<reapi::ExecuteResponse>>>,
    started: bool,
}

impl Cursor {
    /// Completes when there is something to say.
    async fn changed(&mut self) {
        tokio::select! {
            // The operation keeps both senders, so neither ends before it.
            _ = self.response.changed() => {}
            _ = self.progress.changed() => {}
            () = self.waiter.sleep(KEEP_ALIVE) => {}
        }
    }
}

#[cfg(test)]
mod tests;
