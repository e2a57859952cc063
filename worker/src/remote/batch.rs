//! `BatchReadBlobs`: many small blobs by one call, stored by one job of the pool.
//!
//! What a batch does not bring in order (an entry without data, a wrong byte, a batch that the server will not have)
//! is asked for once more, a blob at a time.

use std::collections::HashMap;

use bytes::Bytes;
use futures::StreamExt as _;
use longshore_cas_store::blob::StoreError;
use longshore_cas_store::digest::Digest;
use longshore_cas_store::source::FetchError;
use longshore_proto::reapi;
use tonic::Code;

use super::error::RemoteError;
use super::fetch::{Flight, failed, stored};
use super::limits::ServerLimits;
use super::{Remote, frames, stream};

/// Blobs of one batch that are read alone at once.
const ALONE_IN_FLIGHT_MAX: usize = 8;

/// Reads `digests`, all by one function, and delivers the fate of each.
pub(super) async fn read(remote: &Remote, flight: &mut Flight, digests: Vec<Digest>) {
    if digests.is_empty() {
        return;
    }
    let answer = match remote.caller.limits().await {
        Ok(limits) => ask(remote, &limits, &digests).await,
        Err(error) => Err(error),
    };
    let alone = match answer {
        Ok(answer) => take(remote, flight, digests, answer).await,
        // The batch is what it will not have; it may have the blobs.
        Err(RemoteError::Refused {
            code: Code::InvalidArgument | Code::ResourceExhausted | Code::OutOfRange | Code::Unimplemented,
            ..
        }) => digests,
        Err(error) => {
            let error = remote.caller.unavailable(&error);
            for digest in digests {
                flight.deliver(&failed(digest, error.clone()));
            }
            return;
        }
    };
    let reads = alone.into_iter().map(|digest| async move { (digest, stream::read(remote, digest).await) });
    let mut reads = futures::stream::iter(reads).buffer_unordered(ALONE_IN_FLIGHT_MAX);
    while let Some((digest, fetched)) = reads.next().await {
        flight.end(digest, fetched.as_ref());
    }
}

async fn ask(
    remote: &Remote,
    limits: &ServerLimits,
    digests: &[Digest],
) -> Result<reapi::BatchReadBlobsResponse, RemoteError> {
    let request = reapi::BatchReadBlobsRequest {
        instance_name: remote.caller.instance_name(),
        digests: digests.iter().map(Digest::to_wire).collect(),
        acceptable_compressors: limits.acceptable_compressors(),
        digest_function: digests[0].function().to_wire().into(),
    };
    let clock = remote.caller.clock();
    let call = || async {
        let started = clock.now();
        let mut client = remote.caller.cas();
        let send = |request| async move { client.batch_read_blobs(request).await };
        let answer = remote.caller.unary(request.clone(), send).await;
        match &answer {
            Ok(_) => {
                remote.shared.fetches.answered(clock.now().duration_since(started).unwrap_or_default());
            }
            Err(_) => remote.shared.fetches.failed(),
        }
        answer
    };
    remote.caller.retried("BatchReadBlobs", call).await
}

/// Stores what came; returns what is to be read alone.
async fn take(
    remote: &Remote,
    flight: &mut Flight,
    digests: Vec<Digest>,
    answer: reapi::BatchReadBlobsResponse,
) -> Vec<Digest> {
    let mut entries: HashMap<Digest, reapi::batch_read_blobs_response::Response> = HashMap::new();
    for entry in answer.responses {
        if let Ok(digest) = Digest::from_wire(digests[0].function(), entry.digest.as_ref()) {
            entries.entry(digest).or_insert(entry);
        }
    }
    let mut alone = Vec::new();
    let mut blobs = Vec::with_capacity(digests.len());
    for digest in digests {
        match entries.remove(&digest).map(|entry| content(&digest, entry)) {
            Some(Ok(data)) => blobs.push((digest, data)),
            Some(Err(Fault::Missing)) => flight.deliver(&failed(digest, FetchError::Missing)),
            Some(Err(Fault::Wrong(reason))) => {
                tracing::warn!(origin = remote.caller.origin(), "blob {digest} {reason}");
                alone.push(digest);
            }
            Some(Err(Fault::Refused)) | None => alone.push(digest),
        }
    }
    let wanted: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
    let outcomes = remote.shared.store.put_many(blobs).await;
    for (digest, outcome) in wanted.into_iter().zip(outcomes) {
        match outcome {
            Err(StoreError::Mismatch { found, .. }) => {
                tracing::warn!(origin = remote.caller.origin(), "blob {digest} came with {found}");
                alone.push(digest);
            }
            outcome => flight.deliver(&stored(digest, outcome)),
        }
    }
    alone
}

enum Fault {
    Missing,
    Refused,
    Wrong(String),
}

/// The bytes of an entry.
fn content(digest: &Digest, entry: reapi::batch_read_blobs_response::Response) -> Result<Bytes, Fault> {
    let status = entry.status.unwrap_or_default();
    match Code::from(status.code) {
        Code::Ok => {}
        Code::NotFound => return Err(Fault::Missing),
        _ => return Err(Fault::Refused),
    }
    match reapi::compressor::Value::try_from(entry.compressor) {
        Ok(reapi::compressor::Value::Identity) => Ok(entry.data.into()),
        Ok(reapi::compressor::Value::Zstd) => frames::expand(digest, &entry.data).map_err(Fault::Wrong),
        _ => Err(Fault::Wrong(format!("came with compressor {}", entry.compressor))),
    }
}
