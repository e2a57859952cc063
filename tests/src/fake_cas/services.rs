//! The services with one answer a call, and `GetTree`.

use std::collections::HashSet;
use std::sync::Arc;

use futures::stream::BoxStream;
use longshore_proto::reapi::action_cache_server::ActionCache;
use longshore_proto::reapi::capabilities_server::Capabilities;
use longshore_proto::reapi::content_addressable_storage_server::ContentAddressableStorage;
use longshore_proto::{Message as _, reapi, rpc};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Call, Fault, Method, State, corrupted};

/// Every service.
#[derive(Clone, Debug)]
pub(super) struct Service(pub(super) Arc<State>);

/// The call of a method that names those blobs.
pub(super) fn call<'d>(
    method: Method,
    headers: &MetadataMap,
    digests: impl IntoIterator<Item = &'d reapi::Digest>,
) -> Call {
    let (mut hashes, mut size_bytes) = (Vec::new(), 0);
    for digest in digests {
        hashes.push(digest.hash.clone());
        size_bytes += digest.size_bytes;
    }
    Call {
        method,
        hashes,
        digest_function: 0,
        size_bytes,
        resource_name: String::new(),
        offset: 0,
        instance_name: String::new(),
        headers: headers.clone(),
    }
}

#[tonic::async_trait]
impl Capabilities for Service {
    async fn get_capabilities(
        &self,
        request: Request<reapi::GetCapabilitiesRequest>,
    ) -> Result<Response<reapi::ServerCapabilities>, Status> {
        let instance_name = request.get_ref().instance_name.clone();
        let call = Call { instance_name, ..call(Method::GetCapabilities, request.metadata(), []) };
        self.0.enter(call).await?;
        Ok(Response::new(self.0.lock().capabilities.clone()))
    }
}

#[tonic::async_trait]
impl ActionCache for Service {
    async fn get_action_result(
        &self,
        request: Request<reapi::GetActionResultRequest>,
    ) -> Result<Response<reapi::ActionResult>, Status> {
        let (headers, request) = (request.metadata().clone(), request.into_inner());
        let call = Call {
            digest_function: request.digest_function,
            instance_name: request.instance_name.clone(),
            ..call(Method::GetActionResult, &headers, &request.action_digest)
        };
        self.0.enter(call).await?;
        let hash = request.action_digest.unwrap_or_default().hash;
        let result = self.0.lock().of(&request.instance_name).results.get(&hash).cloned();
        result.map(Response::new).ok_or_else(|| Status::not_found("no result"))
    }

    async fn update_action_result(
        &self,
        request: Request<reapi::UpdateActionResultRequest>,
    ) -> Result<Response<reapi::ActionResult>, Status> {
        let (headers, request) = (request.metadata().clone(), request.into_inner());
        let call = Call {
            digest_function: request.digest_function,
            instance_name: request.instance_name.clone(),
            ..call(Method::UpdateActionResult, &headers, &request.action_digest)
        };
        self.0.enter(call).await?;
        let hash = request.action_digest.unwrap_or_default().hash;
        let result = request.action_result.unwrap_or_default();
        self.0.lock().of(&request.instance_name).results.insert(hash, result.clone());
        Ok(Response::new(result))
    }
}

#[tonic::async_trait]
impl ContentAddressableStorage for Service {
    async fn find_missing_blobs(
        &self,
        request: Request<reapi::FindMissingBlobsRequest>,
    ) -> Result<Response<reapi::FindMissingBlobsResponse>, Status> {
        let (headers, request) = (request.metadata().clone(), request.into_inner());
        let call = Call {
            digest_function: request.digest_function,
            instance_name: request.instance_name.clone(),
            ..call(Method::FindMissingBlobs, &headers, &request.blob_digests)
        };
        self.0.enter(call).await?;
        let mut inner = self.0.lock();
        let blobs = &inner.of(&request.instance_name).blobs;
        let missing = request.blob_digests.into_iter().filter(|digest| !blobs.contains_key(&digest.hash));
        Ok(Response::new(reapi::FindMissingBlobsResponse { missing_blob_digests: missing.collect() }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<reapi::BatchUpdateBlobsRequest>,
    ) -> Result<Response<reapi::BatchUpdateBlobsResponse>, Status> {
        let (headers, request) = (request.metadata().clone(), request.into_inner());
        let digests: Vec<_> = request.requests.iter().filter_map(|entry| entry.digest.clone()).collect();
        let call = Call {
            digest_function: request.digest_function,
            instance_name: request.instance_name.clone(),
            ..call(Method::BatchUpdateBlobs, &headers, &digests)
        };
        let fault = self.0.enter(call).await?;
        let mut inner = self.0.lock();
        let blobs = &mut inner.of(&request.instance_name).blobs;
        let mut responses = Vec::new();
        for entry in request.requests {
            let digest = entry.digest.clone().unwrap_or_default();
            let code = if let Some(Fault::Entries(code)) = fault { code } else { Code::Ok };
            if code == Code::Ok {
                let data = if entry.compressor == reapi::compressor::Value::Zstd as i32 {
                    zstd::decode_all(&entry.data[..])
                        .map_err(|error| Status::invalid_argument(error.to_string()))?
                } else {
                    entry.data
                };
                blobs.insert(digest.hash.clone(), data.into());
            }
            responses.push(reapi::batch_update_blobs_response::Response {
                digest: Some(digest),
                status: Some(rpc::Status { code: code.into(), ..Default::default() }),
            });
        }
        Ok(Response::new(reapi::BatchUpdateBlobsResponse { responses }))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<reapi::BatchReadBlobsRequest>,
    ) -> Result<Response<reapi::BatchReadBlobsResponse>, Status> {
        let (headers, request) = (request.metadata().clone(), request.into_inner());
        let call = Call {
            digest_function: request.digest_function,
            instance_name: request.instance_name.clone(),
            ..call(Method::BatchReadBlobs, &headers, &request.digests)
        };
        let fault = self.0.enter(call).await?;
        let mut inner = self.0.lock();
        let blobs = &inner.of(&request.instance_name).blobs;
        let is_zstd = request.acceptable_compressors.contains(&(reapi::compressor::Value::Zstd as i32));
        let mut responses = Vec::new();
        for digest in request.digests {
            let Some(data) = blobs.get(&digest.hash) else {
                responses.push(entry(digest, Vec::new(), Code::NotFound));
                continue;
            };
            let (data, code) = match &fault {
                Some(Fault::Corrupt) => (corrupted(data), Code::Ok),
                Some(Fault::Truncate(len)) => (data.slice(..data.len().min(*len)), Code::Ok),
                Some(Fault::Entries(code)) => (bytes::Bytes::new(), *code),
                _ => (data.clone(), Code::Ok),
            };
            let mut response = entry(digest, data.to_vec(), code);
            if is_zstd {
                response.data = zstd::encode_all(&data[..], 1)?;
                response.compressor = reapi::compressor::Value::Zstd.into();
            }
            responses.push(response);
        }
        Ok(Response::new(reapi::BatchReadBlobsResponse { responses }))
    }

    type GetTreeStream = BoxStream<'static, Result<reapi::GetTreeResponse, Status>>;

    async fn get_tree(
        &self,
        request: Request<reapi::GetTreeRequest>,
    ) -> Result<Response<Self::GetTreeStream>, Status> {
        let (headers, request) = (request.metadata().clone(), request.into_inner());
        let call = Call {
            digest_function: request.digest_function,
            instance_name: request.instance_name.clone(),
            ..call(Method::GetTree, &headers, &request.root_digest)
        };
        let fault = self.0.enter(call).await?;
        let mut inner = self.0.lock();
        let blobs = &inner.of(&request.instance_name).blobs;
        let mut hashes = vec![request.root_digest.unwrap_or_default().hash];
        let mut seen = HashSet::new();
        let mut directories = Vec::new();
        while let Some(hash) = hashes.pop() {
            let Some(data) = blobs.get(&hash) else { continue };
            if seen.insert(hash) {
                let directory = reapi::Directory::decode(data.clone())
                    .map_err(|error| Status::invalid_argument(error.to_string()))?;
                hashes
                    .extend(directory.directories.iter().filter_map(|node| Some(node.digest.clone()?.hash)));
                directories.push(directory);
            }
        }
        if matches!(fault, Some(Fault::Corrupt)) {
            let name = "unasked".to_owned();
            let strange = reapi::SymlinkNode { target: name.clone(), name, node_properties: None };
            for directory in &mut directories {
                directory.symlinks = vec![strange.clone()];
            }
        }
        let page_len = usize::try_from(request.page_size).ok().filter(|len| *len > 0).unwrap_or(1_000);
        let page = |page: &[reapi::Directory]| {
            Ok(reapi::GetTreeResponse { directories: page.to_vec(), ..Default::default() })
        };
        let pages: Vec<_> = directories.chunks(page_len).map(page).collect();
        Ok(Response::new(Box::pin(futures::stream::iter(pages))))
    }

    async fn split_blob(
        &self,
        _: Request<reapi::SplitBlobRequest>,
    ) -> Result<Response<reapi::SplitBlobResponse>, Status> {
        Err(Status::unimplemented("SplitBlob"))
    }

    async fn splice_blob(
        &self,
        _: Request<reapi::SpliceBlobRequest>,
    ) -> Result<Response<reapi::SpliceBlobResponse>, Status> {
        Err(Status::unimplemented("SpliceBlob"))
    }

    type GetChunkMappingStream = BoxStream<'static, Result<reapi::GetChunkMappingResponse, Status>>;

    async fn get_chunk_mapping(
        &self,
        _: Request<reapi::GetChunkMappingRequest>,
    ) -> Result<Response<Self::GetChunkMappingStream>, Status> {
        Err(Status::unimplemented("GetChunkMapping"))
    }

    async fn register_chunk_mapping(
        &self,
        _: Request<Streaming<reapi::RegisterChunkMappingRequest>>,
    ) -> Result<Response<reapi::RegisterChunkMappingResponse>, Status> {
        Err(Status::unimplemented("RegisterChunkMapping"))
    }
}

fn entry(digest: reapi::Digest, data: Vec<u8>, code: Code) -> reapi::batch_read_blobs_response::Response {
    reapi::batch_read_blobs_response::Response {
        digest: Some(digest),
        data,
        status: Some(rpc::Status { code: code.into(), ..Default::default() }),
        ..Default::default()
    }
}
