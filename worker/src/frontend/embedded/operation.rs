//! One operation: an action on its way, and everybody who waits for it.

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

/// An action on its way. Its state changes through watch channels, which every waiter follows for itself.
#[derive(Debug)]
pub(super) struct Operation {
    /// A name that nobody can guess.
    pub(super) name: String,
    pub(super) request: Request,
    pub(super) queued: SystemTime,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) response: watch::Sender<Option<Arc<reapi::ExecuteResponse>>>,
    pub(super) cancelled: CancellationToken,
    waiters: AtomicUsize,
}

impl Operation {
    pub(super) fn new(request: Request, queued: SystemTime) -> Arc<Self> {
        Arc::new(Self {
            name: format!("operations/{}", uuid::Uuid::new_v4()),
            request,
            queued,
            progress: watch::Sender::default(),
            response: watch::Sender::default(),
            cancelled: CancellationToken::new(),
            waiters: AtomicUsize::new(0),
        })
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

    /// The operation as clients see it now.
    pub(super) fn to_wire(&self) -> longrunning::Operation {
        let response = self.response.borrow().clone();
        let progress = self.progress.borrow().clone();
        let stage = match (&response, progress.phase) {
            (Some(_), _) => reapi::execution_stage::Value::Completed,
            (None, Phase::Queued) => reapi::execution_stage::Value::Queued,
            (None, _) => reapi::execution_stage::Value::Executing,
        };
        let running = stage == reapi::execution_stage::Value::Executing;
        let partial = running.then_some(progress.metadata);
        wire(&self.name, &self.request.action_digest, stage, partial, response.as_deref())
    }
}

/// An operation that was over before it began: the result was in the action cache.
pub(super) fn done_at_once(digest: &Digest, response: &reapi::ExecuteResponse) -> longrunning::Operation {
    let name = format!("operations/{}", uuid::Uuid::new_v4());
    wire(&name, digest, reapi::execution_stage::Value::Completed, None, Some(response))
}

fn wire(
    name: &str,
    digest: &Digest,
    stage: reapi::execution_stage::Value,
    partial: Option<reapi::ExecutedActionMetadata>,
    response: Option<&reapi::ExecuteResponse>,
) -> longrunning::Operation {
    let metadata = reapi::ExecuteOperationMetadata {
        stage: stage.into(),
        action_digest: Some(digest.to_wire()),
        partial_execution_metadata: partial,
        digest_function: digest.function().to_wire().into(),
        ..Default::default()
    };
    longrunning::Operation {
        name: name.to_owned(),
        metadata: Some(protobuf::Any { type_url: METADATA_URL.to_owned(), value: metadata.encode_to_vec() }),
        done: response.is_some(),
        result: response.map(|response| {
            let value = response.encode_to_vec();
            longrunning::operation::Result::Response(protobuf::Any {
                type_url: RESPONSE_URL.to_owned(),
                value,
            })
        }),
    }
}
