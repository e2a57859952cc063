//! From the scheduler's message to what is to be run.

use std::time::SystemTime;

use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::nativelink::StartExecute;
use longshore_proto::{reapi, time};

use super::session::Request;
use crate::status::Failure;

/// A request that makes no sense.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) operation: String,
    pub(super) instance_name: String,
    pub(super) failure: Failure,
}

/// What `start` asks for; `now` stands in for a time that it lacks.
pub(super) fn parse(start: StartExecute, now: SystemTime) -> Result<Request, Refused> {
    let execute = start.execute_request.unwrap_or_default();
    let queued = start.queued_timestamp.as_ref().and_then(time::from_timestamp).unwrap_or(now);
    match digest(&execute) {
        Ok(action_digest) => Ok(Request {
            operation: start.operation_id,
            instance_name: execute.instance_name,
            action_digest,
            skip_cache_lookup: execute.skip_cache_lookup,
            queued,
        }),
        Err(failure) => {
            Err(Refused { operation: start.operation_id, instance_name: execute.instance_name, failure })
        }
    }
}

fn digest(execute: &reapi::ExecuteRequest) -> Result<Digest, Failure> {
    let wire = execute.action_digest.as_ref();
    let function = match execute.digest_function {
        0 => DigestFunction::implied_by(wire.map_or(0, |digest| digest.hash.len())),
        value => DigestFunction::from_wire(value),
    };
    let unknown = || Failure::invalid(format!("digest_function {} is not known", execute.digest_function));
    Ok(Digest::from_wire(function.ok_or_else(unknown)?, wire)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::Code;

    use super::*;

    fn start(digest_function: i32, hash: &str) -> StartExecute {
        let action_digest = Some(reapi::Digest { hash: hash.to_owned(), size_bytes: 3 });
        let execute_request = reapi::ExecuteRequest { digest_function, action_digest, ..Default::default() };
        StartExecute { execute_request: Some(execute_request), ..Default::default() }
    }

    #[test]
    fn the_function_is_what_the_request_says_or_what_its_hash_looks_like() {
        let hash = "0".repeat(64);
        let cases = [(0, DigestFunction::Sha256), (1, DigestFunction::Sha256), (9, DigestFunction::Blake3)];
        for (wire, function) in cases {
            let request = parse(start(wire, &hash), SystemTime::UNIX_EPOCH).unwrap();
            assert_eq!(request.action_digest.function(), function, "{wire}");
        }
    }

    // A message that cannot be read is that operation's end, not the stream's.
    #[test]
    fn nonsense_is_refused_by_name() {
        let hash = "0".repeat(64);
        let nonsense =
            [start(0, ""), start(0, "xyz"), start(9, "0"), start(4711, &hash), StartExecute::default()];
        for start in nonsense {
            let start = StartExecute { operation_id: "a".to_owned(), ..start };
            let refused = parse(start, SystemTime::UNIX_EPOCH).unwrap_err();
            assert_eq!((refused.operation.as_str(), refused.failure.code()), ("a", Code::InvalidArgument));
        }
    }

    #[test]
    fn the_time_in_the_queue_is_the_schedulers() {
        let queued = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        let now = queued + Duration::from_secs(1);
        let start = start(0, &"0".repeat(64));
        assert_eq!(parse(start.clone(), now).unwrap().queued, now);
        let start = StartExecute { queued_timestamp: Some(time::timestamp(queued)), ..start };
        assert_eq!(parse(start, now).unwrap().queued, queued);
    }
}
