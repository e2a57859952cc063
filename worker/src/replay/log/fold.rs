//! From calls to actions: what is tried again is one action, and its last answer is how it went.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::longrunning::{Operation, operation};
use longshore_proto::remote_logging::{ExecuteDetails, LogEntry, WaitExecutionDetails};
use longshore_proto::{Message as _, protobuf, reapi};

use super::super::outcome::Outcome;
use super::super::recording::{RecordedAction, Recording};

/// The actions of the calls so far.
#[derive(Default)]
pub(super) struct Fold {
    actions: Vec<Folded>,
    by_digest: HashMap<Digest, usize>,
    /// The action of each operation: `WaitExecution` names no other.
    by_operation: HashMap<String, usize>,
    problems: Vec<String>,
}

struct Folded {
    action: RecordedAction,
    started: Option<SystemTime>,
}

impl Fold {
    pub(super) fn add(&mut self, entry: LogEntry) {
        let Some(details) = entry.details else { return };
        let started = entry.start_time.as_ref().and_then(system_time);
        if let Some(execute) = details.execute {
            self.execute(entry.metadata.as_ref(), execute, started);
        }
        if let Some(wait) = details.wait_execution {
            self.wait(&wait);
        }
    }

    fn execute(
        &mut self,
        metadata: Option<&reapi::RequestMetadata>,
        call: ExecuteDetails,
        started: Option<SystemTime>,
    ) {
        let request = call.request.unwrap_or_default();
        let digest = match action_digest(&request) {
            Ok(digest) => digest,
            Err(reason) => return self.problems.push(format!("a call of Execute: {reason}")),
        };
        let index = *self.by_digest.entry(digest).or_insert_with(|| {
            let action = RecordedAction { name: name(metadata), ..RecordedAction::new(digest) };
            self.actions.push(Folded { action, started });
            self.actions.len() - 1
        });
        self.answer(index, &call.responses);
    }

    fn wait(&mut self, call: &WaitExecutionDetails) {
        let name = call.request.as_ref().map(|request| request.name.as_str()).unwrap_or_default();
        if let Some(index) = self.by_operation.get(name) {
            self.answer(*index, &call.responses);
        }
    }

    /// Takes in what a stream brought.
    fn answer(&mut self, index: usize, responses: &[Operation]) {
        let named = responses.iter().filter(|operation| !operation.name.is_empty());
        for operation in named {
            self.by_operation.insert(operation.name.clone(), index);
        }
        let Some(response) = responses.iter().rev().find_map(response) else { return };
        let action = &mut self.actions[index].action;
        let function = action.digest.function();
        match response
            .and_then(|response| Outcome::of(&response, function).map_err(|error| error.to_string()))
        {
            Ok(outcome) => action.outcome = Some(outcome),
            Err(error) => self.problems.push(format!("the result of action {}: {error}", action.digest)),
        }
    }

    /// All actions, in the order of their times.
    pub(super) fn finish(mut self) -> Recording {
        let first = self.actions.iter().filter_map(|folded| folded.started).min();
        for Folded { action, started } in &mut self.actions {
            let since = started.zip(first).and_then(|(started, first)| started.duration_since(first).ok());
            action.start = since.unwrap_or_default();
            if action.name.is_empty()
                && let Some(output) = action.outcome.as_ref().and_then(Outcome::first_output)
            {
                action.name = output.to_owned();
            }
        }
        let mut actions: Vec<_> = self.actions.into_iter().map(|folded| folded.action).collect();
        actions.sort_by_key(|action| action.start);
        Recording { actions, problems: self.problems, ..Recording::default() }
    }
}

fn action_digest(request: &reapi::ExecuteRequest) -> Result<Digest, String> {
    let wire = request.action_digest.as_ref().ok_or("it names no action")?;
    // Older clients name no function.
    let function = match request.digest_function {
        0 => DigestFunction::implied_by(wire.hash.len())
            .ok_or_else(|| format!("digest {:?} is as long as those of no known function", wire.hash))?,
        value => DigestFunction::from_wire(value).ok_or_else(|| {
            let name = reapi::digest_function::Value::try_from(value).map(|value| value.as_str_name());
            let name = name.map_or_else(|_| format!("number {value}"), str::to_owned);
            format!("its digests are by a function that longshore does not know, {name}")
        })?,
    };
    Digest::from_wire(function, Some(wire)).map_err(|error| error.to_string())
}

/// What newer versions of Bazel say of an action: `CppCompile //a:b`.
fn name(metadata: Option<&reapi::RequestMetadata>) -> String {
    let Some(metadata) = metadata else { return String::new() };
    let words = [metadata.action_mnemonic.as_str(), metadata.target_id.as_str()];
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The response of an operation that is done, or why it is none.
fn response(operation: &Operation) -> Option<Result<reapi::ExecuteResponse, String>> {
    Some(match operation.result.as_ref()? {
        operation::Result::Response(any) => {
            reapi::ExecuteResponse::decode(any.value.as_slice()).map_err(|error| error.to_string())
        }
        operation::Result::Error(status) => {
            Ok(reapi::ExecuteResponse { status: Some(status.clone()), ..Default::default() })
        }
    })
}

fn system_time(wire: &protobuf::Timestamp) -> Option<SystemTime> {
    let seconds = u64::try_from(wire.seconds).ok()?;
    let nanos = u32::try_from(wire.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}
