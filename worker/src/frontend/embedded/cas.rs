//! The `ContentAddressableStorage` service: a thin door to the store.
//!
//! Chunked blobs are not offered: those methods say so, and the capabilities do not announce them.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::reapi::content_addressable_storage_server::ContentAddressableStorage;
use longshore_proto::reapi::{
    self, batch_read_blobs_response, batch_update_blobs_request, batch_update_blobs_response, compressor,
};
use tonic::{Code, Request, Response, Status, Streaming};

use super::digests::{all, digest, function_of};
use super::instance;
use super::limits::BATCH_BYTES_MAX;
use super::tree_pages::TreePages;
use crate::status::{self, Failure};

/// The `ContentAddressableStorage` service.
#[derive(Clone, Debug)]
pub(super) struct CasService {
    store: Arc<BlobStore>,
}

impl CasService {
    pub(super) fn new(store: Arc<BlobStore>) -> Self {
        Self { store }
    }

    /// Stores the entries that are well formed; one outcome each, in order.
    async fn store_entries(
        &self,
        function: DigestFunction,
        entries: Vec<batch_update_blobs_request::Request>,
    ) -> Vec<batch_update_blobs_response::Response> {
        let mut outcomes = Vec::with_capacity(entries.len());
        let (mut blobs, mut places) = (Vec::new(), Vec::new());
        for (index, entry) in entries.into_iter().enumerate() {
            let checked = check_entry(function, index, &entry);
            outcomes.push((entry.digest, checked.clone().map(drop)));
            if let Ok(digest) = checked {
                blobs.push((digest, Bytes::from(entry.data)));
                places.push(index);
            }
        }
        for (index, stored) in places.into_iter().zip(self.store.put_many(blobs).await) {
            outcomes[index].1 = stored.map(drop).map_err(Failure::from);
        }
        let response = |(digest, outcome): (_, Result<(), Failure>)| batch_update_blobs_response::Response {
            digest,
            status: Some(outcome.map_or_else(|failure| failure.to_rpc(), |()| status::ok())),
        };
        outcomes.into_iter().map(response).collect()
    }
}

fn check_entry(
    function: DigestFunction,
    index: usize,
    entry: &batch_update_blobs_request::Request,
) -> Result<Digest, Failure> {
    if entry.compressor != compressor::Value::Identity as i32 {
        let compressor = entry.compressor;
        return Err(Failure::invalid(format!("requests[{index}].compressor: {compressor} is not offered")));
    }
    digest(function, &format!("requests[{index}].digest"), entry.digest.as_ref())
}

/// Refuses a batch whose blobs are larger together than announced.
fn check_batch(sizes_bytes: impl Iterator<Item = u64>) -> Result<(), Failure> {
    let total_bytes = sizes_bytes.fold(0, u64::saturating_add);
    if total_bytes > BATCH_BYTES_MAX {
        return Err(Failure::invalid(format!(
            "the blobs of the batch have {total_bytes} bytes, at most {BATCH_BYTES_MAX} are taken"
        )));
    }
    Ok(())
}

fn read_outcome(digest: &Digest, content: Option<Bytes>) -> batch_read_blobs_response::Response {
    let status = match &content {
        Some(_) => status::ok(),
        None => Failure::new(Code::NotFound, format!("blob {digest} is not in the store")).to_rpc(),
    };
    batch_read_blobs_response::Response {
        digest: Some(digest.to_wire()),
        data: content.unwrap_or_default().into(),
        compressor: compressor::Value::Identity as i32,
        status: Some(status),
    }
}

fn no_chunks() -> Status {
    Status::unimplemented("chunked blobs are not offered")
}

#[tonic::async_trait]
impl ContentAddressableStorage for CasService {
    async fn find_missing_blobs(
        &self,
        request: Request<reapi::FindMissingBlobsRequest>,
    ) -> Result<Response<reapi::FindMissingBlobsResponse>, Status> {
        let request = request.into_inner();
        instance::check(&request.instance_name)?;
        let digests = all(request.digest_function, &request.blob_digests, "blob_digests")?;
        let missing = self.store.find_missing(&digests);
        let missing_blob_digests = missing.iter().map(Digest::to_wire).collect();
        Ok(Response::new(reapi::FindMissingBlobsResponse { missing_blob_digests }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<reapi::BatchUpdateBlobsRequest>,
    ) -> Result<Response<reapi::BatchUpdateBlobsResponse>, Status> {
        let request = request.into_inner();
        instance::check(&request.instance_name)?;
        let digests = request.requests.iter().filter_map(|entry| entry.digest.as_ref());
        let function = function_of(request.digest_function, digests)?;
        check_batch(request.requests.iter().map(|entry| entry.data.len() as u64))?;
        let responses = self.store_entries(function, request.requests).await;
        Ok(Response::new(reapi::BatchUpdateBlobsResponse { responses }))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<reapi::BatchReadBlobsRequest>,
    ) -> Result<Response<reapi::BatchReadBlobsResponse>, Status> {
        let request = request.into_inner();
        instance::check(&request.instance_name)?;
        let digests = all(request.digest_function, &request.digests, "digests")?;
        check_batch(digests.iter().map(Digest::size_bytes))?;
        let contents = self.store.read_many(digests.clone()).await.map_err(Failure::from)?;
        let responses =
            digests.iter().zip(contents).map(|(digest, content)| read_outcome(digest, content)).collect();
        Ok(Response::new(reapi::BatchReadBlobsResponse { responses }))
    }

    type GetTreeStream = BoxStream<'static, Result<reapi::GetTreeResponse, Status>>;

    async fn get_tree(
        &self,
        request: Request<reapi::GetTreeRequest>,
    ) -> Result<Response<Self::GetTreeStream>, Status> {
        let request = request.into_inner();
        instance::check(&request.instance_name)?;
        let pages = TreePages::new(self.store.clone(), &request)?;
        let pages = stream::try_unfold(pages, |mut pages| async move {
            let page = pages.next().await?;
            Ok(page.map(|page| (page, pages)))
        });
        Ok(Response::new(pages.boxed()))
    }

    async fn split_blob(
        &self,
        _request: Request<reapi::SplitBlobRequest>,
    ) -> Result<Response<reapi::SplitBlobResponse>, Status> {
        Err(no_chunks())
    }

    type GetChunkMappingStream = BoxStream<'static, Result<reapi::GetChunkMappingResponse, Status>>;

    async fn get_chunk_mapping(
        &self,
        _request: Request<reapi::GetChunkMappingRequest>,
    ) -> Result<Response<Self::GetChunkMappingStream>, Status> {
        Err(no_chunks())
    }

    async fn splice_blob(
        &self,
        _request: Request<reapi::SpliceBlobRequest>,
    ) -> Result<Response<reapi::SpliceBlobResponse>, Status> {
        Err(no_chunks())
    }

    async fn register_chunk_mapping(
        &self,
        _request: Request<Streaming<reapi::RegisterChunkMappingRequest>>,
    ) -> Result<Response<reapi::RegisterChunkMappingResponse>, Status> {
        Err(no_chunks())
    }
}
