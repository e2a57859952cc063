//! What every action of this worker shares, and the walk through the phases.

use std::sync::Arc;
use std::time::Duration;

use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::io::{Clock, IoPool};
use longshore_cas_store::source::BlobSource;
use longshore_cas_store::tree_cache::DirectoryCache;
use longshore_proto::reapi;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::assigned::Assigned;
use super::journal::{Journal, Leftovers};
use super::sink::{OutputSink, ResultSink};
use super::uploaded::Uploaded;
use super::{Assignment, Inline};
use crate::materialize::Materializer;
use crate::remote::{Prefetched, Prefetcher};
use crate::run::Runner;
use crate::status::{self, Failure};

/// The exit code of a result whose command was never run, or whose end is not known. The status says why; a
/// client that looks at nothing else must not read success.
pub(crate) const EXIT_CODE_NONE: i32 = -1;

/// How long writing a result to the action cache may take, with what is tried again: it is for others.
const PUBLISH_TIME_MAX: Duration = Duration::from_mins(1);

/// The most bytes of stdout, stderr and output files that are put into a result: well below the 4 MiB of a
/// gRPC message, so that the rest of the result has room.
pub(super) const INLINE_BYTES_MAX: u64 = 1 << 20;

/// How this worker runs actions.
#[derive(Clone, Debug, Default)]
pub struct ActionOptions {
    /// `ExecutedActionMetadata.worker`: a stable name of this worker.
    pub worker: String,
    /// How long a command may run whose Action names no timeout; nothing for no bound.
    pub timeout_default: Option<Duration>,
    /// The longest timeout that an Action may name; nothing for no bound.
    pub timeout_max: Option<Duration>,
    /// The name of the variable that tells a command its platform; nothing for none.
    pub platform_variable: Option<String>,
    /// Whether actions run whatever `OSFamily` and `ISA` they ask for.
    pub any_platform: bool,
    /// The most bytes of stdout and of stderr that are kept, each; nothing for no bound.
    pub log_bytes_max: Option<u64>,
}

/// Runs actions: what every action of this worker shares.
///
/// `main` injects the implementations.
pub struct ActionRunner {
    /// Where blobs are.
    pub store: Arc<BlobStore>,
    /// Where an Action and its Command come from that the store lacks.
    pub source: Arc<dyn BlobSource>,
    /// Where input trees come from, as far as the store lacks them.
    pub inputs: Arc<dyn BlobSource>,
    /// Where input trees are.
    pub cache: Arc<DirectoryCache>,
    /// What makes input roots.
    pub materializer: Arc<dyn Materializer>,
    /// What runs commands.
    pub runner: Arc<dyn Runner>,
    /// Where clients read outputs.
    pub sink: Arc<dyn OutputSink>,
    /// Where clients find results, if this worker has to write them.
    pub results: Option<Arc<dyn ResultSink>>,
    /// What fetches the inputs of actions that wait, if they come from elsewhere.
    pub prefetcher: Option<Prefetcher>,
    /// Threads for system calls.
    pub io: IoPool,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// How to behave.
    pub options: ActionOptions,
}

impl std::fmt::Debug for ActionRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ActionRunner").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The end of an action.
#[derive(Debug)]
pub struct Executed {
    /// What the client is told.
    pub response: reapi::ExecuteResponse,
    /// What to drop once the client has been told.
    pub leftovers: Leftovers,
}

/// What stays the same through an action's life.
pub(super) struct Context<'a> {
    pub(super) worker: &'a ActionRunner,
    pub(super) function: DigestFunction,
    pub(super) inline: Inline,
    pub(super) cancelled: CancellationToken,
}

impl Context<'_> {
    /// Completes `work`, or fails when nobody wants the result any more. For work that may be left midway.
    pub(super) async fn unless_cancelled<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.cancelled.run_until_cancelled(work).await.unwrap_or_else(|| Err(Failure::cancelled()))
    }
}

impl ActionRunner {
    /// Fetches the inputs of the action `digest`, of which the scheduler may have sent another `action`, and which is to be
    /// executed later; they stay while the result lives.
    ///
    /// It never fails: what cannot be had is for the execution to report. Dropping the future stops it.
    pub async fn anticipate(&self, digest: Digest, action: Option<reapi::Action>) -> Option<Prefetched> {
        let prefetcher = self.prefetcher.as_ref()?;
        let action = match action {
            Some(action) => action,
            None => self.load::<reapi::Action>("the Action", digest).await.ok()?,
        };
        let root = Digest::from_wire(digest.function(), action.input_root_digest.as_ref()).ok()?;
        Some(prefetcher.prefetch(root).await)
    }

    /// Takes an action through its life. It never fails: what goes wrong is the response's status.
    pub async fn execute(&self, assignment: Assignment) -> Executed {
        let mut journal = Journal::open(&assignment, &self.options.worker, self.clock.clone());
        let (action, cancelled) = (assignment.action_digest, assignment.cancelled.clone());
        let outcome = self.live(assignment, &mut journal).await;
        let may_cache = journal.is_cacheable();
        let executed = end(journal, outcome);
        if let Some(results) = self.results.as_ref().filter(|_| may_cache) {
            // The client has waited for the action, not for the cache.
            let published = timeout(PUBLISH_TIME_MAX, publish(results.as_ref(), &action, &executed));
            if let Some(Err(_)) = cancelled.run_until_cancelled(published).await {
                tracing::warn!("the result is not cached: the action cache does not answer");
            }
        }
        executed
    }

    async fn live(&self, assignment: Assignment, journal: &mut Journal) -> Result<Uploaded, Failure> {
        let prepared = Assigned::new(self, assignment).prepare(journal).await?;
        let ran = prepared.run(journal).await?;
        let collected = ran.collect(journal).await?;
        collected.upload(journal).await
    }
}

/// Writes a result that others may be given: of a command that succeeded.
async fn publish(results: &dyn ResultSink, action: &Digest, executed: &Executed) {
    let Executed { response, leftovers } = executed;
    let is_ok = response.status.as_ref().is_none_or(|status| status.code == 0);
    let Some(result) = response.result.as_ref().filter(|result| is_ok && result.exit_code == 0) else {
        return;
    };
    if let Err(error) = results.put(action, result.clone(), leftovers.pins()).await {
        // The client gets its result all the same; only the next one has to run it again.
        tracing::warn!("cannot cache the result: {error}");
    }
}

fn end(journal: Journal, outcome: Result<Uploaded, Failure>) -> Executed {
    let exit_code = journal.exit_code().unwrap_or(EXIT_CODE_NONE);
    let (metadata, message) = journal.close();
    let (result, failure, leftovers) = match outcome {
        Ok(uploaded) => (uploaded.result, uploaded.failure, uploaded.leftovers),
        Err(failure) => (reapi::ActionResult::default(), Some(failure), Leftovers::default()),
    };
    match &failure {
        None => tracing::debug!(exit_code, "action completed"),
        Some(failure) => tracing::info!(code = ?failure.code(), "action failed: {}", failure.message()),
    }
    let result = reapi::ActionResult { exit_code, execution_metadata: Some(metadata), ..result };
    let response = reapi::ExecuteResponse {
        result: Some(result),
        status: Some(failure.map_or_else(status::ok, |failure| failure.to_rpc())),
        message,
        ..Default::default()
    };
    Executed { response, leftovers }
}
