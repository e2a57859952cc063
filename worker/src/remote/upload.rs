//! Uploads: ask what is missing, send that and nothing else.
//!
//! Digests come with the blobs and are not computed again. What the server is known to have is not even asked for.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures::{StreamExt as _, TryStreamExt as _};
use longshore_cas_store::blob::{BlobPin, StoreError};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::reapi;
use tonic::Code;

use super::limits::ServerLimits;
use super::{Remote, RemoteError, frames};

/// Requests that carry blobs and are in flight at once, of all actions.
pub(super) const UPLOADS_IN_FLIGHT_MAX: usize = 16;
/// Digests in one question for what is missing.
const DIGESTS_A_QUESTION_MAX: usize = 2_000;
/// Questions of one upload at once.
const QUESTIONS_IN_FLIGHT_MAX: usize = 4;

impl Remote {
    /// Completes when the server has every blob of `pins`, which are in this client's store.
    pub async fn upload(&self, pins: &[BlobPin]) -> Result<(), RemoteError> {
        let pins: HashMap<Digest, BlobPin> = pins
            .iter()
            .filter(|pin| !pin.digest().is_empty())
            .map(|pin| (*pin.digest(), pin.clone()))
            .collect();
        let mut unknown: Vec<_> = pins.keys().copied().collect();
        unknown.sort_unstable();
        self.shared.known.sift(&mut unknown, self.caller.clock().now(), self.caller.turns());
        if unknown.is_empty() {
            return Ok(());
        }
        let limits = self.caller.limits().await?;
        let missing = self.find_missing(&unknown).await?;
        if let Some(reason) = missing.iter().find_map(|digest| limits.refusal(digest)) {
            let (operation, origin) = ("upload", self.caller.origin().to_owned());
            return Err(RemoteError::Refused { operation, origin, code: Code::InvalidArgument, reason });
        }
        let missing = missing.iter().filter_map(|digest| pins.get(digest)).cloned();
        let sends = loads(missing, &limits).into_iter().map(|load| self.send(load));
        futures::stream::iter(sends).buffer_unordered(UPLOADS_IN_FLIGHT_MAX).try_collect().await
    }

    /// Which of those blobs the server lacks.
    pub async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, RemoteError> {
        self.caller.limits().await?;
        let mut by_function: BTreeMap<DigestFunction, Vec<Digest>> = BTreeMap::new();
        for digest in digests {
            by_function.entry(digest.function()).or_default().push(*digest);
        }
        let mut questions: Vec<Vec<Digest>> = Vec::new();
        for digests in by_function.into_values() {
            questions.extend(digests.chunks(DIGESTS_A_QUESTION_MAX).map(<[_]>::to_vec));
        }
        let asked = questions.into_iter().map(|question| self.ask_missing(question));
        let missing: Vec<_> =
            futures::stream::iter(asked).buffer_unordered(QUESTIONS_IN_FLIGHT_MAX).try_collect().await?;
        Ok(missing.concat())
    }

    async fn ask_missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, RemoteError> {
        let function = digests[0].function();
        let request = reapi::FindMissingBlobsRequest {
            instance_name: self.caller.instance_name(),
            blob_digests: digests.iter().map(Digest::to_wire).collect(),
            digest_function: function.to_wire().into(),
        };
        let call = || {
            let mut client = self.caller.cas();
            let send = |request| async move { client.find_missing_blobs(request).await };
            self.caller.unary(request.clone(), send)
        };
        let answer = self.caller.retried("FindMissingBlobs", call).await?;
        let parse = |wire: &reapi::Digest| Digest::from_wire(function, Some(wire)).ok();
        let named: Option<HashSet<_>> = answer.missing_blob_digests.iter().map(parse).collect();
        // What cannot be read may mean any of them, and what was not asked for none.
        let is_missing = |digest: &Digest| named.as_ref().is_none_or(|named| named.contains(digest));
        let (missing, present): (Vec<_>, Vec<_>) = digests.into_iter().partition(is_missing);
        self.learn(&present);
        Ok(missing)
    }

    async fn send(&self, load: Load) -> Result<(), RemoteError> {
        let _place = self.shared.uploads.acquire().await.expect("it is never closed");
        match load {
            Load::Large(pin) => self.write(&pin).await,
            Load::Batch(pins) => {
                for pin in self.update(&pins).await? {
                    self.write(&pin).await?;
                }
                Ok(())
            }
        }
    }

    /// Sends a batch; returns those that are to be sent alone.
    async fn update(&self, pins: &[BlobPin]) -> Result<Vec<BlobPin>, RemoteError> {
        let limits = self.caller.limits().await?;
        let digests: Vec<_> = pins.iter().map(|pin| *pin.digest()).collect();
        let blobs = self.shared.store.read_many(digests.clone()).await?;
        let mut requests = Vec::with_capacity(pins.len());
        for (digest, data) in digests.iter().zip(blobs) {
            let data = data.ok_or(StoreError::NotFound(*digest))?;
            let is_packed = limits.is_compressed_in_batch(digest);
            let packed = is_packed.then(|| frames::pack(&data).ok()).flatten();
            let compressor = match packed {
                Some(_) => reapi::compressor::Value::Zstd,
                None => reapi::compressor::Value::Identity,
            };
            requests.push(reapi::batch_update_blobs_request::Request {
                digest: Some(digest.to_wire()),
                data: packed.unwrap_or_else(|| data.into()),
                compressor: compressor.into(),
            });
        }
        let function = digests[0].function();
        let request = reapi::BatchUpdateBlobsRequest {
            instance_name: self.caller.instance_name(),
            requests,
            digest_function: function.to_wire().into(),
        };
        let call = || {
            let mut client = self.caller.cas();
            let send = |request| async move { client.batch_update_blobs(request).await };
            self.caller.unary(request.clone(), send)
        };
        let answer = match self.caller.retried("BatchUpdateBlobs", call).await {
            // The batch is what it will not have; it may have the blobs.
            Err(RemoteError::Refused {
                code: Code::InvalidArgument | Code::ResourceExhausted | Code::OutOfRange | Code::Unimplemented,
                ..
            }) => return Ok(pins.to_vec()),
            answer => answer?,
        };
        let is_fine = |entry: &reapi::batch_update_blobs_response::Response| {
            entry.status.as_ref().is_none_or(|status| status.code == 0)
        };
        let entries = answer.responses.iter().filter(|entry| is_fine(entry));
        let sent: HashSet<_> =
            entries.filter_map(|entry| Digest::from_wire(function, entry.digest.as_ref()).ok()).collect();
        self.learn(&sent);
        Ok(pins.iter().filter(|pin| !sent.contains(pin.digest())).cloned().collect())
    }
}

/// What one request carries.
enum Load {
    Batch(Vec<BlobPin>),
    Large(BlobPin),
}

/// Small blobs gathered into batches by one function each, large ones alone and first: they take longest.
fn loads(pins: impl Iterator<Item = BlobPin>, limits: &ServerLimits) -> Vec<Load> {
    let (small, large): (Vec<_>, Vec<_>) = pins.partition(|pin| limits.is_small(pin.digest()));
    let mut loads: Vec<_> = large.into_iter().map(Load::Large).collect();
    let mut batch: Vec<BlobPin> = Vec::new();
    let mut batch_bytes = 0;
    for pin in small {
        let cost_bytes = ServerLimits::cost(pin.digest());
        let is_other = batch.last().is_some_and(|last| last.digest().function() != pin.digest().function());
        if is_other || batch_bytes + cost_bytes > limits.batch_bytes_max() {
            loads.push(Load::Batch(std::mem::take(&mut batch)));
            batch_bytes = 0;
        }
        batch_bytes += cost_bytes;
        batch.push(pin);
    }
    loads.push(Load::Batch(batch));
    loads.retain(|load| !matches!(load, Load::Batch(batch) if batch.is_empty()));
    loads
}
