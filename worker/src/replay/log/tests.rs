//! Logs that are whole, cut off, damaged, or something else.

use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::longrunning::{Operation, operation};
use longshore_proto::remote_logging::{ExecuteDetails, RpcCallDetails, WaitExecutionDetails};
use longshore_proto::{protobuf, reapi, rpc};
use proptest::prelude::*;
use tonic::Code;

use super::*;

fn action(number: u64) -> Digest {
    DigestFunction::Sha256.digest(&number.to_le_bytes())
}

fn done(name: &str, exit_code: i32, code: Code) -> Operation {
    let response = reapi::ExecuteResponse {
        result: Some(reapi::ActionResult { exit_code, ..Default::default() }),
        status: Some(rpc::Status { code: code.into(), ..Default::default() }),
        ..Default::default()
    };
    let any = protobuf::Any { value: response.encode_to_vec(), ..Default::default() };
    Operation {
        name: name.to_owned(),
        done: true,
        result: Some(operation::Result::Response(any)),
        ..Default::default()
    }
}

fn begun(name: &str) -> Operation {
    Operation { name: name.to_owned(), ..Default::default() }
}

fn entry(method: &str, seconds: i64, details: RpcCallDetails) -> LogEntry {
    LogEntry {
        method_name: format!("build.bazel.remote.execution.v2.{method}"),
        start_time: Some(protobuf::Timestamp { seconds, nanos: 0 }),
        details: Some(details),
        ..Default::default()
    }
}

fn execute(action: &Digest, seconds: i64, responses: Vec<Operation>) -> LogEntry {
    let request = reapi::ExecuteRequest { action_digest: Some(action.to_wire()), ..Default::default() };
    let execute = Some(ExecuteDetails { request: Some(request), responses });
    entry("Execution/Execute", seconds, RpcCallDetails { execute, ..Default::default() })
}

fn wait(name: &str, responses: Vec<Operation>) -> LogEntry {
    let request = reapi::WaitExecutionRequest { name: name.to_owned() };
    let wait_execution = Some(WaitExecutionDetails { request: Some(request), responses });
    entry("Execution/WaitExecution", 0, RpcCallDetails { wait_execution, ..Default::default() })
}

fn encode(entries: &[LogEntry]) -> Vec<u8> {
    entries.iter().flat_map(LogEntry::encode_length_delimited_to_vec).collect()
}

fn read_all(log: &[u8]) -> Result<Recording, String> {
    read(Path::new("log"), log).map_err(|error| error.to_string())
}

fn exit_codes(recording: &Recording) -> Vec<Option<i32>> {
    recording.actions.iter().map(|action| action.outcome.as_ref().map(|outcome| outcome.exit_code)).collect()
}

// A call that broke off was tried again, or waited for: it is one action, and went as the last answer says.
#[test]
fn retries_are_folded() {
    let log = encode(&[
        execute(&action(2), 7, vec![begun("op/2"), done("op/2", 0, Code::Unavailable)]),
        execute(&action(1), 5, vec![begun("op/1")]),
        entry("ActionCache/GetActionResult", 6, RpcCallDetails::default()),
        wait("op/1", vec![begun("op/1"), done("op/1", 3, Code::Ok)]),
        execute(&action(2), 9, vec![done("op/2b", 4, Code::Ok)]),
        execute(&action(3), 8, vec![]),
        wait("op/unknown", vec![done("op/unknown", 9, Code::Ok)]),
    ]);
    let recording = read_all(&log).unwrap();
    let digests: Vec<_> = recording.actions.iter().map(|action| action.digest).collect();
    assert_eq!(digests, [action(1), action(2), action(3)], "in the order of their starts");
    let starts: Vec<_> = recording.actions.iter().map(|action| action.start.as_secs()).collect();
    assert_eq!(starts, [0, 2, 3]);
    assert_eq!(exit_codes(&recording), [Some(3), Some(4), None]);
    assert_eq!(recording.actions[1].outcome.as_ref().unwrap().status, Code::Ok);
    assert_eq!(recording.problems, Vec::<String>::new());
}

// Newer versions of Bazel name the function and the target, and add fields of their own.
#[test]
fn the_newer_form_is_read() {
    let digest = DigestFunction::Blake3.digest(b"action");
    let mut entry = execute(&digest, 1, vec![done("op", 0, Code::Ok)]);
    entry.metadata = Some(reapi::RequestMetadata {
        action_mnemonic: "CppCompile".to_owned(),
        target_id: "//a:b".to_owned(),
        ..Default::default()
    });
    let details = entry.details.as_mut().unwrap().execute.as_mut().unwrap();
    details.request.as_mut().unwrap().digest_function = DigestFunction::Blake3.to_wire().into();
    let mut bytes = entry.encode_to_vec();
    // rpc_id = 7 "x", attempt_number = 8, retry_summary = 9 {}.
    bytes.extend([0x3a, 1, b'x', 0x40, 1, 0x4a, 0]);
    let mut log =
        vec![u8::try_from(bytes.len() & 0x7f).unwrap() | 0x80, u8::try_from(bytes.len() >> 7).unwrap()];
    log.extend(bytes);
    let recording = read_all(&log).unwrap();
    assert_eq!(recording.actions[0].digest, digest);
    assert_eq!(recording.actions[0].name, "CppCompile //a:b");
}

#[test]
fn what_is_no_log_is_named_for_what_is_wrong() {
    let cases: [(&[u8], &str); 6] = [
        (b"", "it is empty"),
        (b"\x7fELF\x02\x01\x01\0 and so on, and so on, and so on, and so on, and so on, and so on, and so on, and so on, \
           and so on, and so on, and so on, and so on, and so on, and so on", "it is no gRPC log"),
        (&[0xff; 20], "it is no gRPC log"),
        (b"\x02\x1a\x00", "it is no gRPC log of Bazel's: at byte 0, \"\" is no method"),
        (&encode(&[entry("ActionCache/GetActionResult", 1, RpcCallDetails::default())]), "none of its 1 calls"),
        (
            &encode(&[LogEntry {
                method_name: format!("{OLD_PACKAGE}Execution/Execute"),
                ..Default::default()
            }]),
            "before 2.0",
        ),
    ];
    for (log, reason) in cases {
        let error = read_all(log).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

// Most files of other programs begin with what could be a length.
#[test]
fn a_file_without_a_whole_entry_may_be_no_log() {
    let call = encode(&[execute(&action(1), 1, vec![])]);
    for log in [b"PK\x03\x04", &call[..call.len() - 1]] {
        let recording = read_all(log).unwrap();
        assert_eq!(recording.problems.len(), 1);
        assert!(
            recording.problems[0].contains("it is no gRPC log of Bazel's, or"),
            "{:?}",
            recording.problems
        );
    }
}

#[test]
fn a_function_that_is_not_known_is_named() {
    let wire = reapi::Digest { hash: "d41d8cd98f00b204e9800998ecf8427e".to_owned(), size_bytes: 9 };
    let call = |digest_function: i32| {
        let mut entry = execute(&action(1), 1, vec![]);
        let details = entry.details.as_mut().unwrap().execute.as_mut().unwrap();
        let request = reapi::ExecuteRequest {
            action_digest: Some(wire.clone()),
            digest_function,
            ..Default::default()
        };
        details.request = Some(request);
        entry
    };
    let md5 = reapi::digest_function::Value::Md5 as i32;
    let recording = read_all(&encode(&[call(md5), call(99), call(0)])).unwrap();
    let names = ["does not know, MD5", "does not know, number 99", "as long as those of no known function"];
    assert_eq!(recording.problems.len(), names.len());
    for (problem, name) in recording.problems.iter().zip(names) {
        assert!(problem.contains(name), "{problem}");
    }
}

// What comes before damage can be replayed.
#[test]
fn damage_ends_a_log() {
    let call = |number| encode(&[execute(&action(number), 1, vec![done("op", 0, Code::Ok)])]);
    for (damage, problems) in [(&b"\x04junk\0"[..], 2), (&[0xff; 11], 1)] {
        let log = [&call(1)[..], damage, &call(2)].concat();
        let recording = read_all(&log).unwrap();
        assert_eq!((recording.actions.len(), recording.problems.len()), (1, problems));
        let at = format!("at byte {}, ", call(1).len());
        assert!(recording.problems[0].contains(&at), "{:?}", recording.problems);
        assert!(recording.problems[problems - 1].contains("ends here"), "{:?}", recording.problems);
    }
}

// One entry that is none ends where its length says, and what comes after it is there.
#[test]
fn a_foreign_entry_is_left_out() {
    let call = |number| encode(&[execute(&action(number), 1, vec![done("op", 0, Code::Ok)])]);
    let foreign = encode(&[LogEntry { method_name: "hello".to_owned(), ..Default::default() }]);
    let log = [&call(1)[..], b"\x04junk", &call(2), &foreign, &call(3)].concat();
    let recording = read_all(&log).unwrap();
    assert_eq!((recording.actions.len(), recording.problems.len()), (3, 2));
    assert!(recording.problems[1].contains("\"hello\" is no method"), "{:?}", recording.problems);
}

// The action can be replayed, though there is nothing to compare it with.
#[test]
fn a_result_that_cannot_be_read_is_a_problem() {
    let mut operation = done("op", 0, Code::Ok);
    let garbage = protobuf::Any { value: vec![0xff; 2], ..Default::default() };
    operation.result = Some(operation::Result::Response(garbage));
    let recording = read_all(&encode(&[execute(&action(1), 1, vec![operation])])).unwrap();
    assert_eq!(exit_codes(&recording), [None]);
    assert!(recording.problems[0].contains("the result of action"), "{:?}", recording.problems);
}

#[test]
fn a_call_that_names_no_action_is_a_problem_of_its_own() {
    let nameless = ExecuteDetails::default();
    let details = RpcCallDetails { execute: Some(nameless), ..Default::default() };
    let log = encode(&[entry("Execution/Execute", 1, details), execute(&action(1), 1, vec![])]);
    let recording = read_all(&log).unwrap();
    assert_eq!((recording.actions.len(), recording.problems.len()), (1, 1));
}

proptest! {
    // Wherever a log is cut off, every call before the cut is there, and the cut is said unless it is between calls.
    #[test]
    fn a_log_can_be_cut_off_anywhere(count in 1_u64..8, cut in any::<prop::sample::Index>()) {
        let entries: Vec<_> = (0..count).map(|number| execute(&action(number), 1, vec![])).collect();
        let log = encode(&entries);
        let cut = cut.index(log.len() + 1);
        let ends: Vec<_> = (1..=entries.len()).map(|n| encode(&entries[..n]).len()).collect();
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let read = read_all(&log[..cut]);
        if cut == 0 {
            prop_assert!(read.unwrap_err().contains("empty"));
        } else {
            let recording = read.unwrap();
            prop_assert_eq!(recording.actions.len(), whole);
            let is_between = ends.contains(&cut);
            prop_assert_eq!(recording.problems.iter().any(|p| p.contains("cut off")), !is_between);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>) {
        let _ = read_all(&bytes);
    }
}
