//! Transcripts as what a worker and a scheduler say of operations: what matters of them, and whether two are the same.

use longshore_proto::Message as _;
use longshore_proto::nativelink::execute_result::Result as Outcome;
use longshore_proto::nativelink::update_for_scheduler::Update as Heard;
use longshore_proto::nativelink::update_for_worker::Update as Said;
use longshore_proto::nativelink::{UpdateForScheduler, UpdateForWorker};
use longshore_tests::transcript::{Step, Transcript};
use tonic::Code;

/// What matters of a worker's message; nothing of one that only says that it lives.
pub(super) fn summary(_: &str, message: &[u8]) -> Option<String> {
    heard(UpdateForScheduler::decode(message).ok()?.update?, &mut |operation| operation.to_owned())
}

/// What both sides said, in order, with names that count.
pub(super) fn exchanges(transcript: &Transcript) -> Vec<String> {
    let mut names = Vec::<String>::new();
    let mut name = |operation: &str| {
        let found = names.iter().position(|known| known == operation);
        let at = found.unwrap_or_else(|| {
            names.push(operation.to_owned());
            names.len() - 1
        });
        format!("operation {at}")
    };
    let short = |step: &Step| match step {
        Step::Called { method, .. } => Some(format!("worker: {method}")),
        Step::Request(message) => {
            let message = UpdateForScheduler::decode(message.0.as_slice()).ok()?;
            Some(format!("worker: {}", heard(message.update?, &mut name)?))
        }
        Step::Reply(message) => {
            let message = UpdateForWorker::decode(message.0.as_slice()).ok()?;
            Some(format!("scheduler: {}", said(message.update?, &mut name)?))
        }
        Step::Ended { code, .. } => Some(format!("scheduler: {:?}", Code::from(*code))),
        Step::Abandoned => Some("worker: gone".to_owned()),
    };
    transcript.0.iter().map(|event| &event.step).filter_map(short).collect()
}

fn heard(update: Heard, name: &mut impl FnMut(&str) -> String) -> Option<String> {
    Some(match update {
        Heard::ConnectWorkerRequest(hello) => format!("hello {hello:?}"),
        Heard::KeepAliveRequest(_) => return None,
        Heard::GoingAwayRequest(_) => "goodbye".to_owned(),
        Heard::ExecuteComplete(complete) => format!("ran {}", name(&complete.operation_id)),
        Heard::ExecuteResult(result) => {
            let outcome = match result.result {
                Some(Outcome::ExecuteResponse(response)) => {
                    let code = response.status.map_or(Code::Ok, |status| Code::from(status.code));
                    format!("{code:?} {:?}", response.message)
                }
                Some(Outcome::InternalError(status)) => format!("error {:?}", Code::from(status.code)),
                None => "nothing".to_owned(),
            };
            format!("result of {}: {outcome}", name(&result.operation_id))
        }
    })
}

fn said(update: Said, name: &mut impl FnMut(&str) -> String) -> Option<String> {
    Some(match update {
        Said::ConnectionResult(result) => {
            let is_prefixed = result.worker_id.starts_with("tester-");
            format!("taken on, by the prefix: {is_prefixed}")
        }
        Said::KeepAliveResponse(_) => return None,
        Said::StartAction(start) => {
            let request = start.execute_request.unwrap_or_default();
            format!("start {} {:?}", name(&start.operation_id), request.action_digest)
        }
        Said::Disconnect(_) => "disconnect".to_owned(),
        Said::KillOperationRequest(kill) => format!("kill {}", name(&kill.operation_id)),
    })
}
