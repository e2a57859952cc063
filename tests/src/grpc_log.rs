//! Logs as Bazel writes them: calls of Execute and how they were answered.

use longshore_cas_store::digest::Digest;
use longshore_proto::longrunning::{Operation, operation};
use longshore_proto::remote_logging::{ExecuteDetails, LogEntry, RpcCallDetails};
use longshore_proto::{Message as _, protobuf, reapi};

/// A log that is being written.
#[derive(Clone, Debug, Default)]
pub struct GrpcLog {
    bytes: Vec<u8>,
    calls: u32,
}

impl GrpcLog {
    /// Adds a call of Execute, a tenth of a second after the one before it.
    pub fn execute(&mut self, action: &Digest, response: &reapi::ExecuteResponse) {
        let operation = Operation {
            name: format!("operations/{}", self.calls),
            done: true,
            result: Some(operation::Result::Response(protobuf::Any {
                type_url: "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteResponse".to_owned(),
                value: response.encode_to_vec(),
            })),
            ..Default::default()
        };
        let request = reapi::ExecuteRequest { action_digest: Some(action.to_wire()), ..Default::default() };
        let execute = ExecuteDetails { request: Some(request), responses: vec![operation] };
        let details = RpcCallDetails { execute: Some(execute), ..Default::default() };
        let nanos = i32::try_from(self.calls % 10).expect("a digit") * 100_000_000;
        let entry = LogEntry {
            method_name: "build.bazel.remote.execution.v2.Execution/Execute".to_owned(),
            details: Some(details),
            start_time: Some(protobuf::Timestamp { seconds: i64::from(self.calls / 10), nanos }),
            ..Default::default()
        };
        self.calls += 1;
        self.bytes.extend(entry.encode_length_delimited_to_vec());
    }

    /// The log so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
