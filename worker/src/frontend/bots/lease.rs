//! Leases as they are on the wire: what is asked for in them, and how a result is packed.

use std::time::Duration;

use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::bots::{self, LeaseState};
use longshore_proto::error_details::retry_delay;
use longshore_proto::{Message as _, protobuf, reapi, rpc};
use tonic::Code;

use super::session::Report;
use crate::action::EXIT_CODE_NONE;
use crate::frontend::reports::{fitting, retry_pause};
use crate::status::Failure;

const ACTION: &str = "build.bazel.remote.execution.v2.Action";
const DIGEST: &str = "build.bazel.remote.execution.v2.Digest";
const ACTION_RESULT_URL: &str = "type.googleapis.com/build.bazel.remote.execution.v2.ActionResult";

/// The codes after which a server gives a lease out again.
const RETRIED: [Code; 2] = [Code::Internal, Code::Unavailable];

/// What is to be run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Order {
    pub(super) digest: Digest,
    /// The Action, if it came along.
    pub(super) action: Option<reapi::Action>,
}

impl Order {
    /// Reads the payload of a lease. Which function digests were made with is not said; `known` are digests that the
    /// server named beside the leases.
    pub(super) fn read(lease: &bots::Lease, known: &[reapi::Digest]) -> Result<Self, Failure> {
        let Some(payload) = &lease.payload else {
            return Err(Failure::invalid("Lease.payload: there is none"));
        };
        let wrong = |reason: String| Failure::invalid(format!("Lease.payload: {reason}"));
        match payload.type_url.rsplit('/').next() {
            Some(ACTION) => {
                let action = reapi::Action::decode(payload.value.as_slice());
                let action = action.map_err(|error| wrong(format!("no Action: {error}")))?;
                Ok(Self { digest: digest_of(&payload.value, known), action: Some(action) })
            }
            Some(DIGEST) => {
                let wire = reapi::Digest::decode(payload.value.as_slice());
                let wire = wire.map_err(|error| wrong(format!("no Digest: {error}")))?;
                let function = DigestFunction::implied_by(wire.hash.len()).unwrap_or(DigestFunction::Sha256);
                let digest = Digest::from_wire(function, Some(&wire));
                Ok(Self { digest: digest.map_err(|error| wrong(error.to_string()))?, action: None })
            }
            _ => Err(wrong(format!("{:?} is neither an Action nor a Digest", payload.type_url))),
        }
    }
}

/// The digest of an Action's bytes, as they came: encoded anew, they might be others.
fn digest_of(bytes: &[u8], known: &[reapi::Digest]) -> Digest {
    let by_functions = DigestFunction::ALL.iter().map(|function| function.digest(bytes));
    let mut named = by_functions.filter(|digest| known.contains(&digest.to_wire()));
    named.next().unwrap_or_else(|| DigestFunction::Sha256.digest(bytes))
}

/// What is reported of an execution.
pub(super) fn report(response: reapi::ExecuteResponse) -> Report {
    let response = fitting(response);
    let status = response.status.unwrap_or_default();
    let status = match (Code::from(status.code), &response.result) {
        (Code::Ok, None) => Failure::internal("the execution ended without a result").to_rpc(),
        // This worker is full for a while; another one may not be.
        (Code::ResourceExhausted, _) if retry_delay(&status).is_some() => {
            rpc::Status { code: Code::Unavailable.into(), ..status }
        }
        _ => status,
    };
    let code = Code::from(status.code);
    let pack = |result: reapi::ActionResult| protobuf::Any {
        type_url: ACTION_RESULT_URL.to_owned(),
        value: result.encode_to_vec(),
    };
    let may_be_retried = RETRIED.contains(&code);
    // Also beside an error, and one that is tried again: where the client is told of it, no result reads as exit code 0.
    let none = || reapi::ActionResult { exit_code: EXIT_CODE_NONE, ..Default::default() };
    let result = pack(response.result.unwrap_or_else(none));
    // This bot may be the next one that is tried.
    let pause = if may_be_retried { retry_pause(&status) } else { Duration::ZERO };
    let lease = bots::Lease {
        state: LeaseState::Completed.into(),
        status: Some(status),
        result: Some(result),
        ..Default::default()
    };
    Report { lease, may_be_retried, pause }
}

/// What is reported of a lease that is not run.
pub(super) fn refusal(failure: &Failure) -> Report {
    report(reapi::ExecuteResponse { status: Some(failure.to_rpc()), ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(type_name: &str, value: Vec<u8>) -> bots::Lease {
        let type_url = format!("type.googleapis.com/{type_name}");
        bots::Lease { payload: Some(protobuf::Any { type_url, value }), ..Default::default() }
    }

    // RWB-06: the digest is that of the bytes which came; fields in another order are another action.
    #[test]
    fn an_action_is_digested_as_it_came() {
        let command = DigestFunction::Sha256.digest(b"command").to_wire();
        let action =
            reapi::Action { command_digest: Some(command), do_not_cache: true, ..Default::default() };
        let mut bytes = vec![0x38, 1];
        let canonical = action.encode_to_vec();
        bytes.extend(canonical.strip_suffix(&[0x38, 1]).unwrap());
        let order = Order::read(&lease(ACTION, bytes.clone()), &[]).unwrap();
        assert_eq!((order.digest, order.action), (DigestFunction::Sha256.digest(&bytes), Some(action)));
        assert_ne!(order.digest, DigestFunction::Sha256.digest(&canonical));
    }

    #[test]
    fn the_function_is_taken_from_what_the_server_names() {
        let bytes = reapi::Action::default().encode_to_vec();
        let named = [DigestFunction::Sha256.digest(b"other"), DigestFunction::Blake3.digest(&bytes)];
        let order = Order::read(&lease(ACTION, bytes), &named.map(|digest| digest.to_wire())).unwrap();
        assert_eq!(order.digest, named[1]);
    }

    #[test]
    fn a_digest_is_taken_for_its_action() {
        for function in [DigestFunction::Sha256, DigestFunction::Sha1, DigestFunction::Sha512] {
            let digest = function.digest(b"an action");
            let order = Order::read(&lease(DIGEST, digest.to_wire().encode_to_vec()), &[]).unwrap();
            assert_eq!((order.digest, order.action), (digest, None));
        }
    }

    #[test]
    fn what_is_neither_is_refused() {
        let leases = [
            bots::Lease::default(),
            lease("google.protobuf.Empty", Vec::new()),
            lease(ACTION, vec![0xff]),
            lease(DIGEST, vec![0xff]),
            lease(DIGEST, Vec::new()),
        ];
        for lease in leases {
            assert_eq!(Order::read(&lease, &[]).unwrap_err().code(), Code::InvalidArgument, "{lease:?}");
        }
    }

    fn outcome(code: Code, with_result: bool) -> Report {
        let result = with_result.then(reapi::ActionResult::default);
        let status = Failure::new(code, "x").to_rpc();
        report(reapi::ExecuteResponse { status: Some(status), result, ..Default::default() })
    }

    // What is no result, the server's client reads as exit code 0.
    #[test]
    fn whatever_failed_has_an_exit_code_that_is_none() {
        let report = refusal(&Failure::invalid("no Action"));
        let result = reapi::ActionResult::decode(report.lease.result.unwrap().value.as_slice()).unwrap();
        assert_eq!(result.exit_code, EXIT_CODE_NONE);
    }

    // An OK without a result would put an empty one into the server's action cache.
    #[test]
    fn ok_has_a_result_or_is_none() {
        let report = outcome(Code::Ok, true);
        assert_eq!(report.lease.result.unwrap().type_url, ACTION_RESULT_URL);
        let report = outcome(Code::Ok, false);
        assert_eq!(report.lease.status.unwrap().code, Code::Internal as i32);
    }

    #[test]
    fn only_what_is_retried_may_come_back() {
        for (code, may_be_retried) in [
            (Code::Ok, false),
            (Code::DeadlineExceeded, false),
            (Code::FailedPrecondition, false),
            (Code::ResourceExhausted, false),
            (Code::Internal, true),
            (Code::Unavailable, true),
        ] {
            let report = outcome(code, true);
            let is_held_back = !report.pause.is_zero();
            assert_eq!([report.may_be_retried, is_held_back], [may_be_retried; 2]);
            assert_eq!(report.lease.state(), LeaseState::Completed);
        }
    }

    // A server that cannot read a call would never hear of this bot again.
    #[test]
    fn a_result_that_does_not_fit_is_an_error() {
        let stdout_raw = vec![0; 5 << 20];
        let result = reapi::ActionResult { stdout_raw, ..Default::default() };
        let report = report(reapi::ExecuteResponse { result: Some(result), ..Default::default() });
        assert_eq!(report.lease.status.as_ref().unwrap().code, Code::ResourceExhausted as i32);
        assert!(report.lease.encoded_len() < 10_000 && !report.may_be_retried);
    }

    // The client could do nothing about a worker that is full; another worker can.
    #[test]
    fn a_shortage_that_passes_is_for_another_worker() {
        let shortage = Failure::unavailable("full", Duration::from_secs(1)).to_rpc();
        let shortage = rpc::Status { code: Code::ResourceExhausted.into(), ..shortage };
        let report = report(reapi::ExecuteResponse { status: Some(shortage), ..Default::default() });
        assert_eq!(report.lease.status.unwrap().code, Code::Unavailable as i32);
        assert!(report.may_be_retried);
    }
}
