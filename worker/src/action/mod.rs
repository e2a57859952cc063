//! The life of one action, a type a phase: `Assigned -> Prepared -> Ran -> Collected -> Uploaded`.
//!
//! Each phase consumes the one before it, so that nothing can be run before its inputs are there, or reported
//! before it is stored. What an action has been through is kept beside the phases, in a journal: when one of
//! them fails, the response still says how far the action came.
//!
//! The module knows no scheduler: assignments come in, responses go out ([`ActionRunner::execute`]).

mod assigned;
mod collected;
mod command;
mod journal;
mod load;
mod logs;
mod outcome;
mod platform;
mod prepared;
mod ran;
mod runner;
mod sink;
mod storage;
mod uploaded;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use longshore_cas_store::digest::Digest;
use longshore_proto::reapi;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use crate::remote::{Prefetched, TraceContext};
pub use journal::Leftovers;
pub(crate) use runner::EXIT_CODE_NONE;
pub use runner::{ActionOptions, ActionRunner, Executed};
pub use sink::{LocalSink, OutputSink, ResultSink, UploadError};
pub use storage::{Ends, Storage};

/// An action that a scheduler gave to this worker.
#[derive(Debug)]
pub struct Assignment {
    /// The name of the operation, for logs and for [`crate::frontend::WorkSource::complete`].
    pub operation: String,
    /// The digest of the Action message; its function is used for everything.
    pub action_digest: Digest,
    /// The Action, where the scheduler sent one that is to be used instead of the stored one.
    pub action: Option<reapi::Action>,
    /// `ExecuteRequest.inline_stdout`, `inline_stderr`, `inline_output_files`.
    pub inline: Inline,
    /// When the scheduler queued it.
    pub queued: SystemTime,
    /// Who asked for it.
    pub requester: Requester,
    /// Where the worker says what it is doing.
    pub progress: watch::Sender<Progress>,
    /// Fires when nobody wants the result any more.
    pub cancelled: CancellationToken,
    /// Whether the scheduler has lost sight of it, and may have had it run elsewhere. It may still come to want this result;
    /// but one that others were given must not be replaced by it.
    pub is_orphan: Arc<AtomicBool>,
}

impl Assignment {
    /// The span of everything that happens on its behalf: each log line in it says which action, and who wants it.
    pub fn span(&self) -> tracing::Span {
        let request = &self.requester.metadata;
        tracing::info_span!(
            "action",
            operation = self.operation,
            digest = %self.action_digest,
            tool = request.tool_details.as_ref().map_or("", |tool| tool.tool_name.as_str()),
            target = request.target_id,
            mnemonic = request.action_mnemonic,
            invocation = request.tool_invocation_id,
        )
    }
}

/// Who wants an action executed: for logs, and what calls say that are made for it.
#[derive(Clone, Debug, Default)]
pub struct Requester {
    /// The client's instance, below the one that this worker is configured for; empty for that one.
    pub instance_name_suffix: String,
    /// What the client said of itself, where the scheduler passes that on.
    pub metadata: reapi::RequestMetadata,
    /// The trace that the client's request is part of, where the scheduler passes that on.
    pub trace_context: TraceContext,
}

/// What the client wants inline in the result.
#[derive(Clone, Debug, Default)]
pub struct Inline {
    /// stdout.
    pub stdout: bool,
    /// stderr.
    pub stderr: bool,
    /// Output files by their declared paths.
    pub output_files: Vec<String>,
}

impl Inline {
    /// What its paths take in memory.
    pub(crate) fn paths_bytes(&self) -> usize {
        self.output_files.iter().map(|path| size_of::<String>() + path.len()).sum()
    }
}

/// How far an action has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for a worker.
    #[default]
    Queued,
    /// Its inputs are being prepared.
    FetchingInputs,
    /// Its command runs.
    Running,
    /// Its outputs are being collected and uploaded.
    UploadingOutputs,
}

impl Phase {
    /// Whether its inputs are prepared.
    pub(crate) fn has_inputs(self) -> bool {
        matches!(self, Self::Running | Self::UploadingOutputs)
    }
}

/// Progress as a frontend may report it.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// How far it has come.
    pub phase: Phase,
    /// The metadata known so far.
    pub metadata: reapi::ExecutedActionMetadata,
}
