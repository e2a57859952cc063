//! Results of actions, kept as records beside the blobs, and the service `ActionCache`.

use std::sync::Arc;

use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::record::{RecordKey, RecordStore};
use longshore_proto::{Message as _, reapi};
use tonic::{Code, Request, Response, Status};

use super::{digests, instance};
use crate::status::Failure;

/// Results by instance and action. A result is given out only if everything that it names is here.
#[derive(Debug)]
pub(super) struct ActionCache {
    store: Arc<BlobStore>,
    records: Arc<RecordStore>,
}

impl ActionCache {
    pub(super) fn new(store: Arc<BlobStore>, records: Arc<RecordStore>) -> Self {
        Self { store, records }
    }

    /// The result of an action; everything it names is marked used, and so kept from early eviction.
    pub(super) async fn get(
        &self,
        instance: &str,
        action: &Digest,
    ) -> Result<Option<reapi::ActionResult>, Failure> {
        let key = key(instance, action);
        let Some(bytes) = self.records.get(key).await? else { return Ok(None) };
        let Ok(result) = reapi::ActionResult::decode(bytes) else {
            tracing::warn!(%action, "dropping a cached result that cannot be decoded");
            self.records.remove(key).await?;
            return Ok(None);
        };
        let complete = self.missing(action.function(), &result).await?.is_empty();
        Ok(complete.then_some(result))
    }

    pub(super) async fn put(
        &self,
        instance: &str,
        action: &Digest,
        result: &reapi::ActionResult,
    ) -> Result<(), Failure> {
        Ok(self.records.put(key(instance, action), result.encode_to_vec().into()).await?)
    }

    /// What a result names, the contents of its output directories included, and the store lacks.
    async fn missing(
        &self,
        function: DigestFunction,
        result: &reapi::ActionResult,
    ) -> Result<Vec<Digest>, Failure> {
        let mut named = Vec::new();
        let mut trees = Vec::new();
        let digest = |wire: Option<&reapi::Digest>, field: &str| {
            Digest::from_wire(function, wire).map_err(|error| Failure::invalid(format!("{field}: {error}")))
        };
        for file in &result.output_files {
            named.push(digest(file.digest.as_ref(), "output_files.digest")?);
        }
        for directory in &result.output_directories {
            if directory.tree_digest.is_some() {
                trees.push(digest(directory.tree_digest.as_ref(), "output_directories.tree_digest")?);
            }
            if directory.root_directory_digest.is_some() {
                let root = digest(
                    directory.root_directory_digest.as_ref(),
                    "output_directories.root_directory_digest",
                )?;
                self.collect_directories(root, &mut named).await?;
            }
        }
        for (stream, field) in
            [(&result.stdout_digest, "stdout_digest"), (&result.stderr_digest, "stderr_digest")]
        {
            if stream.is_some() {
                named.push(digest(stream.as_ref(), field)?);
            }
        }
        for tree in &trees {
            self.collect_tree(*tree, &mut named).await?;
        }
        Ok(self.store.find_missing(&named))
    }

    /// The files of a Tree message; the message itself too, where it is not here.
    async fn collect_tree(&self, tree: Digest, named: &mut Vec<Digest>) -> Result<(), Failure> {
        named.push(tree);
        let blob = self.store.read_many(vec![tree]).await?.into_iter().next().flatten();
        let Some(message) = blob.and_then(|bytes| reapi::Tree::decode(bytes).ok()) else { return Ok(()) };
        for directory in message.root.iter().chain(&message.children) {
            collect_files(tree.function(), directory, named)?;
        }
        Ok(())
    }

    /// The Directory messages below `root`, and their files.
    async fn collect_directories(&self, root: Digest, named: &mut Vec<Digest>) -> Result<(), Failure> {
        let mut seen = std::collections::HashSet::from([root]);
        let mut level = vec![root];
        while !level.is_empty() {
            named.extend(&level);
            let blobs = self.store.read_many(std::mem::take(&mut level)).await?;
            for directory in
                blobs.into_iter().flatten().filter_map(|bytes| reapi::Directory::decode(bytes).ok())
            {
                collect_files(root.function(), &directory, named)?;
                for child in &directory.directories {
                    let child = Digest::from_wire(root.function(), child.digest.as_ref())?;
                    if seen.insert(child) {
                        level.push(child);
                    }
                }
            }
        }
        Ok(())
    }
}

fn collect_files(
    function: DigestFunction,
    directory: &reapi::Directory,
    named: &mut Vec<Digest>,
) -> Result<(), Failure> {
    for file in &directory.files {
        named.push(Digest::from_wire(function, file.digest.as_ref())?);
    }
    Ok(())
}

/// Where a result is kept: instances never share results, and look-alike hashes of two functions are two actions.
fn key(instance: &str, action: &Digest) -> RecordKey {
    let name = format!("{}\0{}\0{action}", instance, action.function());
    let mut key = RecordKey::default();
    key.copy_from_slice(DigestFunction::Sha256.digest(name.as_bytes()).hash());
    key
}

/// Serves the cache.
#[derive(Clone, Debug)]
pub(super) struct ActionCacheService {
    cache: Arc<ActionCache>,
}

impl ActionCacheService {
    pub(super) fn new(cache: Arc<ActionCache>) -> Self {
        Self { cache }
    }

    async fn get(&self, request: reapi::GetActionResultRequest) -> Result<reapi::ActionResult, Failure> {
        instance::check(&request.instance_name)?;
        let digest = digests::one(request.digest_function, request.action_digest.as_ref(), "action_digest")?;
        let result = self.cache.get(&request.instance_name, &digest).await?;
        result.ok_or_else(|| Failure::new(Code::NotFound, format!("no result of action {digest} is cached")))
    }

    async fn update(
        &self,
        request: reapi::UpdateActionResultRequest,
    ) -> Result<reapi::ActionResult, Failure> {
        instance::check(&request.instance_name)?;
        let digest = digests::one(request.digest_function, request.action_digest.as_ref(), "action_digest")?;
        let result = request.action_result.ok_or_else(|| Failure::invalid("action_result is absent"))?;
        let missing = self.cache.missing(digest.function(), &result).await?;
        if !missing.is_empty() {
            return Err(Failure::missing("what action_result names", &missing));
        }
        self.cache.put(&request.instance_name, &digest, &result).await?;
        Ok(result)
    }
}

#[tonic::async_trait]
impl reapi::action_cache_server::ActionCache for ActionCacheService {
    async fn get_action_result(
        &self,
        call: Request<reapi::GetActionResultRequest>,
    ) -> Result<Response<reapi::ActionResult>, Status> {
        Ok(Response::new(self.get(call.into_inner()).await?))
    }

    async fn update_action_result(
        &self,
        call: Request<reapi::UpdateActionResultRequest>,
    ) -> Result<Response<reapi::ActionResult>, Status> {
        Ok(Response::new(self.update(call.into_inner()).await?))
    }
}
