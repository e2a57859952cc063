//! Batches: many small blobs in one message, in and out.
//!
//! A batch as a whole is refused where it is larger than announced; everything else is an entry's own matter. What
//! goes out fits into a message that peers accept by default, digests and statuses counted. Compression happens beside
//! the async threads, and what is decompressed is bounded by the digest, which counts towards the batch.

use std::sync::Arc;

use bytes::Bytes;
use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::reapi::{
    self, batch_read_blobs_response, batch_update_blobs_request, batch_update_blobs_response, compressor,
};
use longshore_proto::{Message as _, rpc};
use tonic::Code;

use super::compression::{decompress, smaller};
use super::digests::{all, digest, function_of};
use super::limits::{BATCH_BYTES_MAX, MESSAGE_BYTES_MAX};
use crate::status::{self, Failure};

const IDENTITY: i32 = compressor::Value::Identity as i32;
const ZSTD: i32 = compressor::Value::Zstd as i32;

/// What the tag and the length of an entry take in a response, at most.
const FIELD_BYTES_MAX: usize = 8;

/// Stores the blobs of a request; one outcome each, in order.
pub(super) async fn update(
    store: &Arc<BlobStore>,
    request: reapi::BatchUpdateBlobsRequest,
) -> Result<reapi::BatchUpdateBlobsResponse, Failure> {
    let digests = request.requests.iter().filter_map(|entry| entry.digest.as_ref());
    let is_compressed = request.requests.iter().any(|entry| entry.compressor == ZSTD);
    let function = function_of(request.digest_function, digests)?;
    check_total("requests", request.requests.iter().map(size_of_entry))?;
    let digests: Vec<_> = request.requests.iter().map(|entry| entry.digest.clone()).collect();
    let unpack = move || {
        let entries = request.requests.into_iter().enumerate();
        entries.map(|(index, entry)| unpack(function, index, entry)).collect::<Vec<_>>()
    };
    let unpacked = beside_if(is_compressed, unpack).await?;
    let mut outcomes = Vec::with_capacity(unpacked.len());
    let (mut blobs, mut places) = (Vec::new(), Vec::new());
    for (index, (digest, blob)) in digests.into_iter().zip(unpacked).enumerate() {
        let blob = blob.map(|blob| {
            blobs.push(blob);
            places.push(index);
        });
        outcomes.push((digest, blob));
    }
    // Clients at once may bring more than a small store holds: none of them waits for what another one has just brought.
    for (index, stored) in places.into_iter().zip(store.store_many(blobs).await) {
        let named = |failure: Failure| failure.within(&format!("requests[{index}]"));
        outcomes[index].1 = stored.map_err(|error| named(error.into()));
    }
    let response = |(digest, outcome): (_, Result<(), Failure>)| batch_update_blobs_response::Response {
        digest,
        status: Some(outcome.map_or_else(|failure| failure.to_rpc(), |()| status::ok())),
    };
    Ok(reapi::BatchUpdateBlobsResponse { responses: outcomes.into_iter().map(response).collect() })
}

/// Reads the blobs of a request; one answer each, in order.
pub(super) async fn read(
    store: &Arc<BlobStore>,
    request: &reapi::BatchReadBlobsRequest,
) -> Result<reapi::BatchReadBlobsResponse, Failure> {
    let digests = all(request.digest_function, &request.digests, "digests")?;
    check_total("digests", digests.iter().map(Digest::size_bytes))?;
    let contents = store.read_many(digests.clone()).await?;
    let compress = request.acceptable_compressors.contains(&ZSTD);
    let answers = move || {
        let answers = digests.iter().zip(contents);
        answers.map(|(digest, content)| answer(digest, content, compress)).collect::<Vec<_>>()
    };
    let mut responses = beside_if(compress, answers).await?;
    fit(&mut responses)?;
    Ok(reapi::BatchReadBlobsResponse { responses })
}

/// Does work off the async threads if it is much.
async fn beside_if<T: Send + 'static>(
    is_much: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    if !is_much {
        return Ok(work());
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::internal(format!("compression: {error}")))
}

/// What an entry counts towards the batch: what is sent, or what it will become.
fn size_of_entry(entry: &batch_update_blobs_request::Request) -> u64 {
    let sent_bytes = entry.data.len() as u64;
    let announced_bytes = entry.digest.as_ref().map_or(0, |digest| digest.size_bytes);
    match u64::try_from(announced_bytes) {
        Ok(announced_bytes) if entry.compressor == ZSTD => sent_bytes.max(announced_bytes),
        _ => sent_bytes,
    }
}

/// The blob of one entry.
fn unpack(
    function: DigestFunction,
    index: usize,
    entry: batch_update_blobs_request::Request,
) -> Result<(Digest, Bytes), Failure> {
    if ![IDENTITY, ZSTD].contains(&entry.compressor) {
        let name = compressor::Value::try_from(entry.compressor)
            .map_or_else(|_| entry.compressor.to_string(), |value| value.as_str_name().to_owned());
        return Err(Failure::invalid(format!("requests[{index}].compressor: {name} is not offered")));
    }
    let digest = digest(function, &format!("requests[{index}].digest"), entry.digest.as_ref())?;
    if entry.compressor == IDENTITY {
        return Ok((digest, entry.data.into()));
    }
    let data = decompress(&entry.data, digest.size_bytes());
    let data = data.map_err(|error| Failure::invalid(format!("requests[{index}].data: {error}")))?;
    Ok((digest, data.into()))
}

/// Refuses a batch whose blobs are larger together than announced.
fn check_total(field: &str, sizes_bytes: impl Iterator<Item = u64>) -> Result<(), Failure> {
    let total_bytes = sizes_bytes.fold(0, u64::saturating_add);
    if total_bytes > BATCH_BYTES_MAX {
        return Err(Failure::invalid(format!(
            "{field}: the blobs have {total_bytes} bytes together, a batch has at most {BATCH_BYTES_MAX}"
        )));
    }
    Ok(())
}

/// The digest stands beside the message, which therefore does not repeat it: there may be thousands of them.
fn answer(digest: &Digest, content: Option<Bytes>, compress: bool) -> batch_read_blobs_response::Response {
    let status = match &content {
        Some(_) => status::ok(),
        None => Failure::new(Code::NotFound, "the blob is not in the store").to_rpc(),
    };
    let content = content.unwrap_or_default();
    let compressed = if compress { smaller(&content) } else { None };
    let (compressor, data) =
        compressed.map_or_else(|| (IDENTITY, content.into()), |compressed| (ZSTD, compressed));
    batch_read_blobs_response::Response {
        digest: Some(digest.to_wire()),
        data,
        compressor,
        status: Some(status),
    }
}

/// Takes the data out of those answers that no longer fit into the message.
fn fit(responses: &mut [batch_read_blobs_response::Response]) -> Result<(), Failure> {
    if responses.iter().map(bytes_of).sum::<usize>() <= MESSAGE_BYTES_MAX {
        return Ok(());
    }
    let refused = too_much();
    // As if every answer were refused: then whatever is left is for data.
    let bare_bytes = |response: &batch_read_blobs_response::Response| {
        bytes_of(response) - response.data.len() + refused.encoded_len()
    };
    let bare_bytes = responses.iter().map(bare_bytes).sum();
    let left_bytes = MESSAGE_BYTES_MAX.checked_sub(bare_bytes);
    let mut left_bytes = left_bytes.ok_or_else(|| {
        Failure::invalid(format!(
            "digests: the answers to {} digests do not fit into a message",
            responses.len()
        ))
    })?;
    for response in responses.iter_mut().filter(|response| !response.data.is_empty()) {
        if let Some(left) = left_bytes.checked_sub(response.data.len()) {
            left_bytes = left;
        } else {
            response.data = Vec::new();
            response.status = Some(refused.clone());
        }
    }
    Ok(())
}

fn bytes_of(response: &batch_read_blobs_response::Response) -> usize {
    response.encoded_len() + FIELD_BYTES_MAX
}

fn too_much() -> rpc::Status {
    Failure::new(Code::ResourceExhausted, "does not fit into this response").to_rpc()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(count: usize, data_bytes: usize) -> Vec<batch_read_blobs_response::Response> {
        let digest = DigestFunction::Sha512.digest(b"x");
        (0..count).map(|_| answer(&digest, Some(vec![7; data_bytes].into()), false)).collect()
    }

    // Neither a frame that lies about its size nor one that goes on is a reason to take more memory.
    #[test]
    fn decompressed_data_is_bounded_by_the_digest() {
        let zeros = vec![0; 1 << 20];
        let bomb = zstd::bulk::compress(&zeros, 19).unwrap();
        assert_eq!(decompress(&bomb, 1 << 20).unwrap(), zeros);
        assert!(decompress(&bomb, 1000).unwrap_err().to_string().contains("1000"));
        let two_frames = [bomb.clone(), bomb.clone()].concat();
        assert_eq!(decompress(&two_frames, 2 << 20).unwrap().len(), 2 << 20);
        assert!(decompress(&two_frames, 1 << 20).is_err());
        for junk in [&b"junk"[..], &bomb[..bomb.len() - 1], b""] {
            assert!(decompress(junk, 1 << 20).is_err(), "{junk:?}");
        }
        assert_eq!(decompress(b"", 0).unwrap(), b"");
    }

    // What a client asked for must not be lost in a message that it refuses.
    #[test]
    fn answers_fit_into_a_message_or_say_that_they_do_not() {
        for (count, data_bytes, expect_all) in [(1, 3 << 20, true), (4_000, 800, true), (20_000, 180, false)]
        {
            let mut responses = answers(count, data_bytes);
            fit(&mut responses).unwrap();
            let refused = Code::ResourceExhausted as i32;
            let full = responses.iter().filter(|response| response.data.len() == data_bytes).count();
            let empty =
                responses.iter().filter(|response| response.status.as_ref().unwrap().code == refused).count();
            assert_eq!(full + empty, count);
            assert_eq!(full == count, expect_all, "{count} answers of {data_bytes} bytes");
            assert!(full > 0);
            let message = reapi::BatchReadBlobsResponse { responses };
            assert!(message.encoded_len() <= MESSAGE_BYTES_MAX);
        }
        let error = fit(&mut answers(40_000, 0)).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
    }
}
