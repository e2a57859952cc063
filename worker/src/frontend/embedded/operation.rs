//! An execution, and the operations through which clients follow it.
//!
//! An execution is an action on its way. Each request for it has an operation of its own, with its own name and its
//! own wishes for contents inline, so that one client can cancel its request without harm to another's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use longshore_cas_store::digest::Digest;
use longshore_proto::{Message as _, longrunning, protobuf, reapi};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::action::{Inline, Phase, Progress};

const METADATA_URL: &str = "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteOperationMetadata";
const RESPONSE_URL: &str = "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteResponse";

/// What a client asked to have executed.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) instance: String,
    pub(super) action_digest: Digest,
    pub(super) do_not_cache: bool,
    pub(super) priority: i32,
    pub(super) inline: Inline,
    pub(super) metadata: reapi::RequestMetadata,
}

/// What a request costs in memory beside what its client said in it, about.
const REQUEST_BYTES: usize = 2 << 10;

impl Request {
    /// What an operation of it holds in memory.
    pub(super) fn size_bytes(&self) -> usize {
        REQUEST_BYTES + self.instance.len() + self.metadata.encoded_len() + self.inline.paths_bytes()
    }
}

/// An action on its way, for everybody who asked for it.
#[derive(Debug)]
pub(super) struct Execution {
    /// The name of its first operation: what logs call it.
    pub(super) name: String,
    pub(super) instance: String,
    pub(super) action_digest: Digest,
    pub(super) do_not_cache: bool,
    pub(super) metadata: reapi::RequestMetadata,
    pub(super) queued: SystemTime,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) cancelled: CancellationToken,
}

/// One client's request for an execution. Its state changes through watch channels, which every waiter follows
/// for itself.
#[derive(Debug)]
pub(super) struct Operation {
    /// A name that nobody can guess.
    pub(super) name: String,
    pub(super) inline: Inline,
    pub(super) execution: Arc<Execution>,
    /// What it holds in memory, beside its response.
    pub(super) size_bytes: usize,
    pub(super) response: watch::Sender<Option<Arc<reapi::ExecuteResponse>>>,
    waiters: AtomicUsize,
}

impl Operation {
    /// The first operation of a new execution.
    pub(super) fn new(request: Request, queued: SystemTime) -> Arc<Self> {
        let size_bytes = request.size_bytes();
        let Request { instance, action_digest, do_not_cache, inline, metadata, .. } = request;
        let name = new_name();
        let execution = Execution {
            name: name.clone(),
            instance,
            action_digest,
            do_not_cache,
            metadata,
            queued,
            progress: watch::Sender::default(),
            cancelled: CancellationToken::new(),
        };
        Arc::new(Self::of(name, Arc::new(execution), inline, size_bytes))
    }

    /// One more operation of an execution under way.
    pub(super) fn joining(execution: Arc<Execution>, request: &Request) -> Arc<Self> {
        Arc::new(Self::of(new_name(), execution, request.inline.clone(), request.size_bytes()))
    }

    /// One that has ended before.
    pub(super) fn ended(
        name: &str,
        action_digest: Digest,
        inline: Inline,
        response: reapi::ExecuteResponse,
    ) -> Arc<Self> {
        let execution = Execution {
            name: name.to_owned(),
            instance: String::new(),
            action_digest,
            do_not_cache: true,
            metadata: reapi::RequestMetadata::default(),
            queued: SystemTime::UNIX_EPOCH,
            progress: watch::Sender::default(),
            cancelled: CancellationToken::new(),
        };
        let operation = Self::of(name.to_owned(), Arc::new(execution), inline, 0);
        operation.end(Arc::new(response));
        Arc::new(operation)
    }

    fn of(name: String, execution: Arc<Execution>, inline: Inline, size_bytes: usize) -> Self {
        let (response, waiters) = (watch::Sender::default(), AtomicUsize::new(0));
        Self { name, inline, execution, size_bytes, response, waiters }
    }

    /// Counts one more waiter.
    pub(super) fn join(&self) {
        self.waiters.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts one waiter less; whether it was the last.
    pub(super) fn leave(&self) -> bool {
        self.waiters.fetch_sub(1, Ordering::AcqRel) == 1
    }

    pub(super) fn has_waiters(&self) -> bool {
        self.waiters.load(Ordering::Acquire) > 0
    }

    pub(super) fn is_done(&self) -> bool {
        self.response.borrow().is_some()
    }

    /// Tells its waiters how it ended. The first end counts.
    pub(super) fn end(&self, response: Arc<reapi::ExecuteResponse>) {
        self.response.send_if_modified(|end| {
            let is_first = end.is_none();
            end.get_or_insert(response);
            is_first
        });
    }

    /// The operation as clients see it while it is not done.
    pub(super) fn under_way(&self) -> longrunning::Operation {
        let progress = self.execution.progress.borrow().clone();
        match progress.phase {
            Phase::Queued => self.wire(reapi::execution_stage::Value::Queued, None, None),
            _ => self.wire(reapi::execution_stage::Value::Executing, Some(progress.metadata), None),
        }
    }

    /// The operation as clients see it once it has ended with `response`.
    pub(super) fn completed(&self, response: &reapi::ExecuteResponse) -> longrunning::Operation {
        self.wire(reapi::execution_stage::Value::Completed, None, Some(response))
    }

    fn wire(
        &self,
        stage: reapi::execution_stage::Value,
        partial: Option<reapi::ExecutedActionMetadata>,
        response: Option<&reapi::ExecuteResponse>,
    ) -> longrunning::Operation {
        let digest = &self.execution.action_digest;
        let metadata = reapi::ExecuteOperationMetadata {
            stage: stage.into(),
            action_digest: Some(digest.to_wire()),
            partial_execution_metadata: partial,
            digest_function: digest.function().to_wire().into(),
            ..Default::default()
        };
        let pack = |url: &str, value| protobuf::Any { type_url: url.to_owned(), value };
        longrunning::Operation {
            name: self.name.clone(),
            metadata: Some(pack(METADATA_URL, metadata.encode_to_vec())),
            done: response.is_some(),
            result: response.map(|response| {
                longrunning::operation::Result::Response(pack(RESPONSE_URL, response.encode_to_vec()))
            }),
        }
    }
}

fn new_name() -> String {
    format!("operations/{}", uuid::Uuid::new_v4())
}
