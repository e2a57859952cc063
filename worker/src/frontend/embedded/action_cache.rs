//! The action cache: results by action, a record each, served only while every blob they name is here.
//!
//! An entry belongs to its instance, and to the function, hash and size of its action's digest. Contents inside
//! a result are stored as blobs first. Last writer wins.

use std::sync::Arc;

use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::record::{RecordKey, RecordStore};
use longshore_proto::reapi::action_cache_server::ActionCache as ActionCacheRpc;
use longshore_proto::{Message, reapi};
use tonic::{Code, Request, Response, Status};

use super::digests::{digest, one};
use super::inline::{self, Inline};
use super::limits::{METADATA_BYTES_MAX, RESPONSE_BYTES_MAX};
use super::output_paths;
use super::references::{self, Unfit};
use crate::frontend::instance;
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

    /// The same, with the contents that a client would like to find inside.
    pub(super) async fn get_with(
        &self,
        instance: &str,
        action: &Digest,
        wanted: &Inline<'_>,
    ) -> Result<Option<reapi::ActionResult>, Failure> {
        let Some(mut result) = self.get(instance, action).await? else { return Ok(None) };
        inline::move_in(&self.store, action.function(), wanted, &mut result).await?;
        Ok(Some(result))
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
            return Err(Failure::invalid(format!("{what}: blob {digest} is too large")));
        }
        let message = self.store.read_many(vec![*digest]).await?.pop().flatten();
        let message = message.ok_or_else(|| Failure::missing(what, &[*digest]))?;
        M::decode(message)
            .map_err(|error| Failure::invalid(format!("{what}: blob {digest} is malformed: {error}")))
    }

    async fn check_uploaded(
        &self,
        function: DigestFunction,
        result: &reapi::ActionResult,
    ) -> Result<(), Unfit> {
        references::check(&self.store, function, result).await?;
        references::check_trees(&self.store, function, result).await
    }

    /// Keeps a result that comes from a client, if it is sound.
    async fn upload(
        &self,
        instance: &str,
        action_digest: &Digest,
        mut result: reapi::ActionResult,
    ) -> Result<reapi::ActionResult, Failure> {
        let function = action_digest.function();
        let action: reapi::Action = self.required("action_digest", action_digest).await?;
        let command_digest = digest(function, "action.command_digest", action.command_digest.as_ref())?;
        let command: reapi::Command = self.required("action.command_digest", &command_digest).await?;
        output_paths::check(&command.working_directory, &result)?;
        inline::move_out(&self.store, function, &mut result)
            .await
            .map_err(|failure| failure.within("action_result"))?;
        check_size(&result)?;
        self.check_uploaded(function, &result).await.map_err(|unfit| match unfit {
            Unfit::Missing(digests) => Failure::missing("an output in action_result", &digests),
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

/// Refuses a result that no client could be sent.
fn check_size(result: &reapi::ActionResult) -> Result<(), Failure> {
    let bytes = result.encoded_len();
    if bytes > RESPONSE_BYTES_MAX {
        return Err(Failure::invalid(format!(
            "action_result: has {bytes} bytes without the contents of outputs, at most {RESPONSE_BYTES_MAX} are taken"
        )));
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
        let wanted = Inline {
            stdout: request.inline_stdout,
            stderr: request.inline_stderr,
            output_files: &request.inline_output_files,
        };
        let result = self.cache.get_with(&request.instance_name, &action, &wanted).await?;
        let unknown = || Failure::new(Code::NotFound, format!("no result of action {action} is known"));
        Ok(Response::new(result.ok_or_else(unknown)?))
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
