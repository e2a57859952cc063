//! The `ContentAddressableStorage` service: a thin door to the store.
//!
//! Chunked blobs are not offered: those methods say so, and the capabilities do not announce them.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::Digest;
use longshore_proto::reapi;
use longshore_proto::reapi::content_addressable_storage_server::ContentAddressableStorage;
use tonic::{Request, Response, Status, Streaming};

use super::batch;
use super::digests::all;
use super::limits::WALK_STATE_BYTES;
use super::share::Share;
use super::tree_pages::TreePages;
use crate::frontend::instance;

/// The `ContentAddressableStorage` service.
#[derive(Clone, Debug)]
pub(super) struct CasService {
    store: Arc<BlobStore>,
}

impl CasService {
    pub(super) fn new(store: Arc<BlobStore>) -> Self {
        Self { store }
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
        Ok(Response::new(batch::update(&self.store, request).await?))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<reapi::BatchReadBlobsRequest>,
    ) -> Result<Response<reapi::BatchReadBlobsResponse>, Status> {
        let request = request.into_inner();
        instance::check(&request.instance_name)?;
        Ok(Response::new(batch::read(&self.store, &request).await?))
    }

    type GetTreeStream = BoxStream<'static, Result<reapi::GetTreeResponse, Status>>;

    async fn get_tree(
        &self,
        request: Request<reapi::GetTreeRequest>,
    ) -> Result<Response<Self::GetTreeStream>, Status> {
        let share = Share::of(&request);
        let request = request.into_inner();
        instance::check(&request.instance_name)?;
        let pages = TreePages::new(self.store.clone(), &request)?;
        let room = share.state(WALK_STATE_BYTES).await?;
        let pages = stream::try_unfold((pages, room), |(mut pages, room)| async move {
            let page = pages.next().await?;
            Ok(page.map(|page| (page, (pages, room))))
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
