//! The action cache: results by action, a record each, served only while every blob they name is here.
//!
//! An entry belongs to its instance, and to the function, hash and size of its action's digest. Contents inside
//! a result are stored as blobs first. Last writer wins.

use std::collections::HashSet;
use std::sync::Arc;

use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::name::RelPath;
use longshore_cas_store::record::{RecordKey, RecordStore};
use longshore_proto::reapi::action_cache_server::ActionCache as ActionCacheRpc;
use longshore_proto::{Message, reapi};
use tonic::{Code, Request, Response, Status};

use super::digests::{digest, one};
use super::inline::{self, Inline};
use super::instance;
use super::limits::METADATA_BYTES_MAX;
use super::references::{self, Unfit};
use crate::status::Failure;

/// Results of actions, in the store.
#[derive(Clone, Debug)]
pub(super) struct ActionCache {
    store: Arc<BlobStore>,
    records: Arc<RecordStore>,
}

impl ActionCache {
    /// A cache whose entries are `records` and whose outputs are in `store`.
    pub(super) fn new(store: Arc<BlobStore>, records: Arc<RecordStore>) -> Self {
        Self { store, records }
    }

    /// The result of an action, if it is known and everything it names is here, which is marked used.
    pub(super) async fn get(
        &self,
        instance: &str,
        action: &Digest,
    ) -> Result<Option<reapi::ActionResult>, Failure> {
        let key = record_key(instance, action);
        let Some(record) = self.records.get(key).await? else { return Ok(None) };
        let Ok(result) = reapi::ActionResult::decode(record) else {
            tracing::warn!(%action, "an entry of the action cache is no ActionResult and is dropped");
            self.records.remove(key).await?;
            return Ok(None);
        };
        match references::check(&self.store, action.function(), &result).await {
            Ok(()) => Ok(Some(result)),
            // Kept: the blobs may be uploaded again.
            Err(Unfit::Missing(_)) => Ok(None),
            Err(Unfit::Malformed(reason)) => {
                tracing::warn!(%action, reason, "an entry of the action cache is malformed and is dropped");
                self.records.remove(key).await?;
                Ok(None)
            }
            Err(Unfit::Failed(failure)) => Err(failure),
        }
    }

    /// Keeps the result of an action.
    pub(super) async fn put(
        &self,
        instance: &str,
        action: &Digest,
        result: &reapi::ActionResult,
    ) -> Result<(), Failure> {
        let mut result = result.clone();
        inline::move_out(&self.store, action.function(), &mut result).await?;
        self.write(instance, action, &result).await
    }

    async fn write(
        &self,
        instance: &str,
        action: &Digest,
        result: &reapi::ActionResult,
    ) -> Result<(), Failure> {
        Ok(self.records.put(record_key(instance, action), result.encode_to_vec().into()).await?)
    }

    /// Reads a message that an upload to the cache requires.
    async fn required<M: Message + Default>(&self, what: &str, digest: &Digest) -> Result<M, Failure> {
        if digest.size_bytes() > METADATA_BYTES_MAX {
            return Err(Failure::invalid(format!("{what}: {digest} is too large")));
        }
        let message = self.store.read_many(vec![*digest]).await?.pop().flatten();
        let message = message.ok_or_else(|| Failure::missing(what, &[*digest]))?;
        M::decode(message)
            .map_err(|error| Failure::invalid(format!("{what}: {digest} is malformed: {error}")))
    }

    /// Keeps a result that comes from a client, if it is sound.
    async fn upload(
        &self,
        instance: &str,
        action_digest: &Digest,
        mut result: reapi::ActionResult,
    ) -> Result<reapi::ActionResult, Failure> {
        let function = action_digest.function();
        let action: reapi::Action = self.required("the action", action_digest).await?;
        let command_digest = digest(function, "action.command_digest", action.command_digest.as_ref())?;
        let command: reapi::Command = self.required("the command", &command_digest).await?;
        check_paths(&command.working_directory, &result)?;
        inline::move_out(&self.store, function, &mut result).await?;
        references::check(&self.store, function, &result).await.map_err(|unfit| match unfit {
            Unfit::Missing(digests) => Failure::missing("an output", &digests),
            Unfit::Malformed(reason) => Failure::invalid(format!("action_result: {reason}")),
            Unfit::Failed(failure) => failure,
        })?;
        self.write(instance, action_digest, &result).await?;
        Ok(result)
    }
}

/// Instances may contain any character, thus come last; nothing before them contains a slash.
fn record_key(instance: &str, action: &Digest) -> RecordKey {
    let name = format!("{}/{action}/{instance}", action.function());
    let hash = DigestFunction::Sha256.digest(name.as_bytes());
    hash.hash().try_into().expect("SHA-256 gives 32 bytes")
}

/// Refuses output paths that lead out of the input root, and those that are used twice.
#[expect(deprecated, reason = "clients of REAPI 2.0 fill the old lists of links")]
fn check_paths(working_directory: &str, result: &reapi::ActionResult) -> Result<(), Failure> {
    let base = RelPath::parse(working_directory)
        .map_err(|error| Failure::invalid(format!("command.working_directory: {error}")))?;
    let links =
        |links: &[reapi::OutputSymlink]| links.iter().map(|link| link.path.clone()).collect::<Vec<_>>();
    let contents = result.output_files.iter().map(|file| file.path.clone());
    let contents = contents.chain(result.output_directories.iter().map(|directory| directory.path.clone()));
    let contents: Vec<_> = contents.collect();
    let mut old_links = links(&result.output_file_symlinks);
    old_links.extend(links(&result.output_directory_symlinks));
    // A link may be in the old lists and in the new one.
    for links in [links(&result.output_symlinks), old_links] {
        let mut seen = HashSet::new();
        for path in contents.iter().chain(&links) {
            let wrong =
                |reason: String| Failure::invalid(format!("action_result: output path {path:?}: {reason}"));
            let resolved = base.join(path).map_err(|error| wrong(error.to_string()))?;
            if !seen.insert(resolved) {
                return Err(wrong("is used twice".to_owned()));
            }
        }
    }
    Ok(())
}

/// The `ActionCache` service.
#[derive(Clone, Debug)]
pub(super) struct ActionCacheService {
    cache: Arc<ActionCache>,
}

impl ActionCacheService {
    /// Serves `cache`.
    pub(super) fn new(cache: Arc<ActionCache>) -> Self {
        Self { cache }
    }
}

#[tonic::async_trait]
impl ActionCacheRpc for ActionCacheService {
    async fn get_action_result(
        &self,
        request: Request<reapi::GetActionResultRequest>,
    ) -> Result<Response<reapi::ActionResult>, Status> {
        let request = request.into_inner();
        instance::check(&request.instance_name)?;
        let action = one(request.digest_function, request.action_digest.as_ref(), "action_digest")?;
        let Some(mut result) = self.cache.get(&request.instance_name, &action).await? else {
            return Err(Failure::new(Code::NotFound, format!("no result of action {action} is known")).into());
        };
        let wanted = Inline {
            stdout: request.inline_stdout,
            stderr: request.inline_stderr,
            output_files: &request.inline_output_files,
        };
        inline::move_in(&self.cache.store, action.function(), &wanted, &mut result).await?;
        Ok(Response::new(result))
    }

    async fn update_action_result(
        &self,
        request: Request<reapi::UpdateActionResultRequest>,
    ) -> Result<Response<reapi::ActionResult>, Status> {
        let request = request.into_inner();
        instance::check(&request.instance_name)?;
        let action = one(request.digest_function, request.action_digest.as_ref(), "action_digest")?;
        let result = request.action_result.ok_or_else(|| Failure::invalid("action_result: is not set"))?;
        Ok(Response::new(self.cache.upload(&request.instance_name, &action, result).await?))
    }
}

#[cfg(test)]
mod tests;
