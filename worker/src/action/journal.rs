//! What an action has been through: the times of its phases, notes for people, and what must outlive it.
//!
//! Times never run backwards, whatever the clocks do (REAPI, `ExecutedActionMetadata`), and a phase that was
//! not reached has none.

use std::sync::Arc;
use std::time::SystemTime;

use longshore_cas_store::blob::BlobPin;
use longshore_cas_store::io::Clock;
use longshore_proto::{Message as _, protobuf, reapi, time};
use tokio::sync::watch;

use super::{Assignment, Phase, Progress};
use crate::materialize::InputRoot;
use crate::run::RunOutcome;

/// The most notes of one action that a client is shown.
const NOTES_MAX: usize = 50;

const REQUEST_METADATA_URL: &str = "type.googleapis.com/build.bazel.remote.execution.v2.RequestMetadata";

/// What is given back only once the result has been delivered.
///
/// The action's folder, so that its removal delays nobody; the pins of the result's blobs, so that a client
/// finds what it was told of.
#[derive(Debug, Default)]
pub struct Leftovers {
    root: Option<InputRoot>,
    pins: Vec<BlobPin>,
}

impl Leftovers {
    pub(super) fn new(root: InputRoot, pins: Vec<BlobPin>) -> Self {
        Self { root: Some(root), pins }
    }

    /// The blobs that the result names.
    pub fn pins(&self) -> &[BlobPin] {
        &self.pins
    }

    /// The action's folder; nothing if the action failed before it had one.
    pub fn root(&self) -> Option<&InputRoot> {
        self.root.as_ref()
    }
}

pub(super) struct Journal {
    clock: Arc<dyn Clock>,
    progress: watch::Sender<Progress>,
    metadata: reapi::ExecutedActionMetadata,
    latest: SystemTime,
    exit_code: Option<i32>,
    notes: Vec<String>,
    may_cache: bool,
}

impl Journal {
    /// Begins with the action's arrival at this worker.
    pub(super) fn open(assignment: &Assignment, worker: &str, clock: Arc<dyn Clock>) -> Self {
        let now = clock.now();
        let metadata = reapi::ExecutedActionMetadata {
            worker: worker.to_owned(),
            // The scheduler's clock: moving this one keeps the worker's own spans true.
            queued_timestamp: Some(time::timestamp(assignment.queued.min(now))),
            worker_start_timestamp: Some(time::timestamp(now)),
            auxiliary_metadata: requested_by(assignment).into_iter().collect(),
            ..Default::default()
        };
        let progress = assignment.progress.clone();
        Self { clock, progress, metadata, latest: now, exit_code: None, notes: Vec::new(), may_cache: false }
    }

    pub(super) fn fetching(&mut self) {
        self.metadata.input_fetch_start_timestamp = Some(self.stamp());
        self.publish(Phase::FetchingInputs);
    }

    pub(super) fn fetched(&mut self) {
        self.metadata.input_fetch_completed_timestamp = Some(self.stamp());
    }

    pub(super) fn running(&mut self) {
        self.publish(Phase::Running);
    }

    /// The command has ended, with an exit code if that is known; `report` is for `auxiliary_metadata`.
    pub(super) fn ran(&mut self, outcome: &RunOutcome, exit_code: Option<i32>, report: protobuf::Any) {
        self.metadata.execution_start_timestamp = Some(self.stamp_at(outcome.started));
        self.metadata.execution_completed_timestamp = Some(self.stamp_at(outcome.completed));
        self.metadata.virtual_execution_duration = Some(time::duration(outcome.duration));
        self.metadata.auxiliary_metadata.push(report);
        self.exit_code = exit_code;
    }

    pub(super) fn uploading(&mut self) {
        self.metadata.output_upload_start_timestamp = Some(self.stamp());
        self.publish(Phase::UploadingOutputs);
    }

    pub(super) fn uploaded(&mut self) {
        self.metadata.output_upload_completed_timestamp = Some(self.stamp());
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Its Action says whether the result may be given to others.
    pub(super) fn may_cache(&mut self, may_cache: bool) {
        self.may_cache = may_cache;
    }

    /// Whether the result may be given to others, as far as its Action goes.
    pub(super) fn is_cacheable(&self) -> bool {
        self.may_cache
    }

    /// The exit code, if the command came to an end.
    pub(super) fn exit_code(&self) -> Option<i32> {
        self.exit_code
    }

    /// Ends the life: the metadata of the result, and the notes as one text.
    pub(super) fn close(mut self) -> (reapi::ExecutedActionMetadata, String) {
        self.metadata.worker_completed_timestamp = Some(self.stamp());
        let left_out = self.notes.len().saturating_sub(NOTES_MAX);
        if left_out > 0 {
            self.notes.truncate(NOTES_MAX);
            self.notes.push(format!("({left_out} more)"));
        }
        (self.metadata, self.notes.join("\n"))
    }

    pub(super) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    fn stamp(&mut self) -> protobuf::Timestamp {
        let now = self.now();
        self.stamp_at(now)
    }

    fn stamp_at(&mut self, at: SystemTime) -> protobuf::Timestamp {
        self.latest = self.latest.max(at);
        time::timestamp(self.latest)
    }

    fn publish(&self, phase: Phase) {
        self.progress.send_replace(Progress { phase, metadata: self.metadata.clone() });
    }
}

/// Who asked for the action, if that is known.
fn requested_by(assignment: &Assignment) -> Option<protobuf::Any> {
    let value = assignment.requester.metadata.encode_to_vec();
    let type_url = REQUEST_METADATA_URL.to_owned();
    (!value.is_empty()).then_some(protobuf::Any { type_url, value })
}

#[cfg(test)]
mod tests;
