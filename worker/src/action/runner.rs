//! What every action of this worker shares, and the walk through the phases.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::io::{Clock, IoPool};
use longshore_cas_store::tree_cache::DirectoryCache;
use longshore_proto::reapi;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::assigned::Assigned;
use super::journal::{Journal, Leftovers};
use super::sink::ResultSink;
use super::storage::{Ends, Storage};
use super::uploaded::Uploaded;
use super::{Assignment, Inline};
use crate::materialize::Materializer;
use crate::remote::Prefetched;
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
    /// Where the parts of actions come from that the store lacks, and where their results go.
    pub storage: Arc<dyn Storage>,
    /// Where input trees are.
    pub cache: Arc<DirectoryCache>,
    /// What makes input roots.
    pub materializer: Arc<dyn Materializer>,
    /// What runs commands.
    pub runner: Arc<dyn Runner>,
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
    pub(super) ends: &'a Ends,
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
    /// Fetches the inputs of an action that is to be executed later; they stay while the result lives.
    ///
    /// It never fails: what cannot be had is for the execution to report. Dropping the future stops it.
    pub fn anticipate<'w>(
        &'w self,
        assignment: &Assignment,
    ) -> impl Future<Output = Option<Prefetched>> + use<'w> {
        let Ends { source, prefetcher, .. } = self.storage.on_behalf_of(&assignment.requester);
        let ahead = prefetcher.map(|prefetcher| (prefetcher, assignment.action.clone()));
        let digest = assignment.action_digest;
        async move {
            let (prefetcher, action) = ahead?;
            let action = match action {
                Some(action) => action,
                None => self.load::<reapi::Action>("the Action", digest, &*source).await.ok()?,
            };
            let root = Digest::from_wire(digest.function(), action.input_root_digest.as_ref()).ok()?;
            Some(prefetcher.prefetch(root).await)
        }
    }

    /// Takes an action through its life. It never fails: what goes wrong is the response's status.
    pub async fn execute(&self, assignment: Assignment) -> Executed {
        let mut journal = Journal::open(&assignment, &self.options.worker, self.clock.clone());
        let (action, cancelled) = (assignment.action_digest, assignment.cancelled.clone());
        let is_orphan = assignment.is_orphan.clone();
        let ends = self.storage.on_behalf_of(&assignment.requester);
        let outcome = self.live(assignment, &ends, &mut journal).await;
        let may_cache = journal.is_cacheable();
        let executed = end(journal, outcome);
        if let Some(results) = ends.results.as_ref().filter(|_| may_cache) {
            // The client has waited for the action, not for the cache.
            let results = results.as_ref();
            let published = timeout(PUBLISH_TIME_MAX, publish(results, &action, &executed, &is_orphan));
            if let Some(Err(_)) = cancelled.run_until_cancelled(published).await {
                tracing::warn!("the result is not cached: the action cache does not answer");
            }
        }
        executed
    }

    async fn live(
        &self,
        assignment: Assignment,
        ends: &Ends,
        journal: &mut Journal,
    ) -> Result<Uploaded, Failure> {
        let prepared = Assigned::new(self, ends, assignment).prepare(journal).await?;
        let ran = prepared.run(journal).await?;
        let collected = ran.collect(journal).await?;
        collected.upload(journal).await
    }
}

/// Writes a result that others may be given: of a command that succeeded.
async fn publish(results: &dyn ResultSink, action: &Digest, executed: &Executed, is_orphan: &AtomicBool) {
    let Executed { response, leftovers } = executed;
    let is_ok = response.status.as_ref().is_none_or(|status| status.code == 0);
    let Some(result) = response.result.as_ref().filter(|result| is_ok && result.exit_code == 0) else {
        return;
    };
    let put = async {
        let is_orphan = || is_orphan.load(Ordering::Relaxed);
        // It may have been claimed while that was asked.
        if is_orphan() && results.has(action).await? && is_orphan() {
            tracing::info!("the result is not cached: there is one from elsewhere");
            return Ok(());
        }
        results.put(action, result.clone(), leftovers.pins()).await
    };
    if let Err(error) = put.await {
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
    let result = reapi::ActionResult { exit_code, execution_metadata: Some(metadata), ..result };
    let response = reapi::ExecuteResponse {
        result: Some(result),
        status: Some(failure.map_or_else(status::ok, |failure| failure.to_rpc())),
        message,
        ..Default::default()
    };
    Executed { response, leftovers }
}
