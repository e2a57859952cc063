//! One task of Buildbarn's: read from the scheduler's message, and packed into the worker's answer.

use std::sync::Arc;
use std::time::SystemTime;

use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::remoteworker::desired_state;
use longshore_proto::{protobuf, reapi, time};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::action::{Assignment, Inline, Progress, Requester, TraceContext};
use crate::frontend::instance;
use crate::frontend::reports::fitting;
use crate::status::Failure;

/// What the scheduler wants to be run, as the worker takes it.
///
/// # Errors
/// What is wrong with it, for its client.
pub(super) fn assignment(
    task: &desired_state::Executing,
    now: SystemTime,
) -> Result<(Assignment, watch::Receiver<Progress>), Failure> {
    let instance_name_suffix = task.instance_name_suffix.clone();
    instance::check(&instance_name_suffix)?;
    let wire = task.action_digest.as_ref();
    let function = match task.digest_function {
        0 => wire.and_then(|digest| DigestFunction::implied_by(digest.hash.len())),
        named => DigestFunction::from_wire(named),
    };
    let function = function.ok_or_else(|| {
        Failure::invalid(format!("digest_function: {} is not known here", task.digest_function))
    })?;
    let action_digest = Digest::from_wire(function, wire)
        .map_err(|error| Failure::invalid(format!("action_digest: {error}")))?;
    let (progress, seen) = watch::channel(Progress::default());
    let assignment = Assignment {
        operation: uuid::Uuid::new_v4().to_string(),
        action_digest,
        action: task.action.clone(),
        inline: Inline::default(),
        queued: task.queued_timestamp.as_ref().and_then(time::from_timestamp).unwrap_or(now),
        requester: Requester {
            instance_name_suffix,
            metadata: request_metadata(&task.auxiliary_metadata),
            trace_context: TraceContext::of(&task.w3c_trace_context),
        },
        progress,
        cancelled: CancellationToken::new(),
        is_orphan: Arc::default(),
    };
    Ok((assignment, seen))
}

/// Who asked for it, where the scheduler passes that on.
fn request_metadata(auxiliary: &[protobuf::Any]) -> reapi::RequestMetadata {
    let name = ".RequestMetadata";
    let found = auxiliary.iter().find(|any| any.type_url.ends_with(name));
    let decode = |any: &protobuf::Any| longshore_proto::Message::decode(any.value.as_slice()).ok();
    found.and_then(decode).unwrap_or_default()
}

/// The result with what the scheduler wants in it, as a message carries it.
pub(super) fn report(
    mut response: reapi::ExecuteResponse,
    task: &desired_state::Executing,
) -> reapi::ExecuteResponse {
    if let Some(metadata) = response.result.as_mut().and_then(|result| result.execution_metadata.as_mut()) {
        for any in &task.auxiliary_metadata {
            // What came as the request's metadata is there already.
            if !metadata.auxiliary_metadata.contains(any) {
                metadata.auxiliary_metadata.push(any.clone());
            }
        }
    }
    fitting(response)
}
