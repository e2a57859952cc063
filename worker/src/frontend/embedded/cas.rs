//! The service `ContentAddressableStorage`.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt as _};
use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::Digest;
use longshore_proto::reapi::content_addressable_storage_server::ContentAddressableStorage;
use longshore_proto::{Message as _, reapi, rpc};
use tonic::{Code, Request, Response, Status};

use super::limits::{BATCH_BYTES_MAX, PAGE_MAX, RESPONSE_BYTES_MAX};
use super::{digests, instance};
use crate::status::Failure;

/// Serves the store.
#[derive(Clone, Debug)]
pub(super) struct CasService {
    store: Arc<BlobStore>,
}

type TreeStream = BoxStream<'static, Result<reapi::GetTreeResponse, Status>>;

impl CasService {
    pub(super) fn new(store: Arc<BlobStore>) -> Self {
        Self { store }
    }

    async fn update(
        &self,
        request: reapi::BatchUpdateBlobsRequest,
    ) -> Result<reapi::BatchUpdateBlobsResponse, Failure> {
        instance::check(&request.instance_name)?;
        check_batch(request.requests.iter().map(|blob| blob.data.len() as u64).sum())?;
        let first = request.requests.iter().find_map(|blob| blob.digest.as_ref());
        let function = digests::function(request.digest_function, first)?;
        let mut responses = Vec::with_capacity(request.requests.len());
        let mut blobs = Vec::new();
        let mut places = Vec::new();
        for blob in request.requests {
            let status = match Digest::from_wire(function, blob.digest.as_ref()) {
                Err(error) => Failure::from(error).to_rpc(),
                Ok(_) if blob.compressor != 0 => {
                    Failure::invalid(format!("compressor {} is not supported", blob.compressor)).to_rpc()
                }
                Ok(digest) => {
                    places.push(responses.len());
                    blobs.push((digest, blob.data.into()));
                    crate::status::ok()
                }
            };
            let digest = blob.digest;
            responses.push(reapi::batch_update_blobs_response::Response { digest, status: Some(status) });
        }
        let outcomes = self.store.put_many(blobs).await;
        for (place, outcome) in places.into_iter().zip(outcomes) {
            if let Err(error) = outcome {
                responses[place].status = Some(Failure::from(error).to_rpc());
            }
        }
        Ok(reapi::BatchUpdateBlobsResponse { responses })
    }

    async fn read(
        &self,
        request: reapi::BatchReadBlobsRequest,
    ) -> Result<reapi::BatchReadBlobsResponse, Failure> {
        instance::check(&request.instance_name)?;
        let wanted = digests::all(request.digest_function, &request.digests, "digests")?;
        check_batch(wanted.iter().fold(0, |sum: u64, digest| sum.saturating_add(digest.size_bytes())))?;
        let blobs = self.store.read_many(wanted.clone()).await?;
        let answer = |(digest, blob): (&Digest, Option<bytes::Bytes>)| {
            let status = match blob {
                Some(_) => rpc::Status::default(),
                None => Failure::new(Code::NotFound, format!("blob {digest} is not here")).to_rpc(),
            };
            reapi::batch_read_blobs_response::Response {
                digest: Some(digest.to_wire()),
                data: blob.unwrap_or_default().into(),
                status: Some(status),
                ..Default::default()
            }
        };
        Ok(reapi::BatchReadBlobsResponse { responses: wanted.iter().zip(blobs).map(answer).collect() })
    }

    async fn tree(&self, request: reapi::GetTreeRequest) -> Result<TreeStream, Failure> {
        instance::check(&request.instance_name)?;
        let root = digests::one(request.digest_function, request.root_digest.as_ref(), "root_digest")?;
        let page_max = match usize::try_from(request.page_size) {
            Ok(0) => PAGE_MAX,
            Ok(size) => size.min(PAGE_MAX),
            Err(_) => return Err(Failure::invalid(format!("page_size {} is negative", request.page_size))),
        };
        let skipped = match request.page_token.as_str() {
            "" => 0,
            token => token
                .parse()
                .map_err(|_| Failure::invalid(format!("page_token {token:?} is not one of ours")))?,
        };
        let mut walk = TreeWalk::new(self.store.clone(), root, page_max);
        match walk.read(root).await? {
            None => return Err(Failure::new(Code::NotFound, format!("Directory {root} is not here"))),
            Some(message) => {
                reapi::Directory::decode(message).map_err(|error| {
                    Failure::invalid(format!("root_digest {root}: is not a Directory: {error}"))
                })?;
            }
        }
        walk.skip(skipped).await?;
        let pages = futures::stream::unfold(Some(walk), async |walk| {
            let mut walk = walk?;
            match walk.page().await {
                Ok(page) => {
                    let next = (!page.next_page_token.is_empty()).then_some(walk);
                    Some((Ok(page), next))
                }
                Err(failure) => Some((Err(failure.to_tonic()), None)),
            }
        });
        Ok(pages.boxed())
    }
}

fn check_batch(size_bytes: u64) -> Result<(), Failure> {
    if size_bytes > BATCH_BYTES_MAX {
        let message =
            format!("the batch has {size_bytes} bytes, max_batch_total_size_bytes is {BATCH_BYTES_MAX}");
        return Err(Failure::invalid(message));
    }
    Ok(())
}

/// A walk over the distinct Directories of a tree, the root first, each before its children.
///
/// A page token is the count of Directories before the page: the walk is the same each time, because digests are.
struct TreeWalk {
    store: Arc<BlobStore>,
    queue: VecDeque<Digest>,
    seen: HashSet<Digest>,
    page_max: usize,
    given: usize,
}

impl TreeWalk {
    fn new(store: Arc<BlobStore>, root: Digest, page_max: usize) -> Self {
        Self { store, queue: VecDeque::from([root]), seen: HashSet::from([root]), page_max, given: 0 }
    }

    async fn read(&self, digest: Digest) -> Result<Option<bytes::Bytes>, Failure> {
        Ok(self.store.read_many(vec![digest]).await?.into_iter().next().flatten())
    }

    /// The next Directory and its encoded size. Those that are missing or none are left out.
    async fn next(&mut self) -> Result<Option<(reapi::Directory, usize)>, Failure> {
        while let Some(digest) = self.queue.pop_front() {
            let Some(message) = self.read(digest).await? else { continue };
            let size = message.len();
            let Ok(directory) = reapi::Directory::decode(message) else { continue };
            for child in &directory.directories {
                if let Ok(child) = Digest::from_wire(digest.function(), child.digest.as_ref())
                    && self.seen.insert(child)
                {
                    self.queue.push_back(child);
                }
            }
            self.given += 1;
            return Ok(Some((directory, size)));
        }
        Ok(None)
    }

    async fn skip(&mut self, count: usize) -> Result<(), Failure> {
        while self.given < count {
            if self.next().await?.is_none() {
                return Err(Failure::invalid(format!("page_token {count} is beyond the end of the tree")));
            }
        }
        Ok(())
    }

    async fn page(&mut self) -> Result<reapi::GetTreeResponse, Failure> {
        let mut page = reapi::GetTreeResponse::default();
        let mut bytes = 0;
        while page.directories.len() < self.page_max && bytes < RESPONSE_BYTES_MAX {
            let Some((directory, size)) = self.next().await? else { return Ok(page) };
            bytes += size;
            page.directories.push(directory);
        }
        if !self.queue.is_empty() {
            page.next_page_token = self.given.to_string();
        }
        Ok(page)
    }
}

#[tonic::async_trait]
impl ContentAddressableStorage for CasService {
    type GetTreeStream = TreeStream;
    type GetChunkMappingStream = BoxStream<'static, Result<reapi::GetChunkMappingResponse, Status>>;

    async fn find_missing_blobs(
        &self,
        call: Request<reapi::FindMissingBlobsRequest>,
    ) -> Result<Response<reapi::FindMissingBlobsResponse>, Status> {
        let request = call.into_inner();
        instance::check(&request.instance_name)?;
        let asked = digests::all(request.digest_function, &request.blob_digests, "blob_digests")?;
        let missing = self.store.find_missing(&asked);
        let missing_blob_digests = missing.iter().map(Digest::to_wire).collect();
        Ok(Response::new(reapi::FindMissingBlobsResponse { missing_blob_digests }))
    }

    async fn batch_update_blobs(
        &self,
        call: Request<reapi::BatchUpdateBlobsRequest>,
    ) -> Result<Response<reapi::BatchUpdateBlobsResponse>, Status> {
        Ok(Response::new(self.update(call.into_inner()).await?))
    }

    async fn batch_read_blobs(
        &self,
        call: Request<reapi::BatchReadBlobsRequest>,
    ) -> Result<Response<reapi::BatchReadBlobsResponse>, Status> {
        Ok(Response::new(self.read(call.into_inner()).await?))
    }

    async fn get_tree(&self, call: Request<reapi::GetTreeRequest>) -> Result<Response<TreeStream>, Status> {
        Ok(Response::new(self.tree(call.into_inner()).await?))
    }

    async fn split_blob(
        &self,
        _call: Request<reapi::SplitBlobRequest>,
    ) -> Result<Response<reapi::SplitBlobResponse>, Status> {
        Err(no_chunking())
    }

    async fn splice_blob(
        &self,
        _call: Request<reapi::SpliceBlobRequest>,
    ) -> Result<Response<reapi::SpliceBlobResponse>, Status> {
        Err(no_chunking())
    }

    async fn get_chunk_mapping(
        &self,
        _call: Request<reapi::GetChunkMappingRequest>,
    ) -> Result<Response<Self::GetChunkMappingStream>, Status> {
        Err(no_chunking())
    }

    async fn register_chunk_mapping(
        &self,
        _call: Request<tonic::Streaming<reapi::RegisterChunkMappingRequest>>,
    ) -> Result<Response<reapi::RegisterChunkMappingResponse>, Status> {
        Err(no_chunking())
    }
}

fn no_chunking() -> Status {
    Status::unimplemented("blobs are not chunked; Capabilities says so")
}
