//! A client of every service that longshore serves, on one connection.
//!
//! It does what a well-behaved client does: ask what is missing, upload that, execute, and read the outputs.
//! Tests of the wire itself take the raw services ([`Client::cas`] and the like) and break the rules.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::bytestream::byte_stream_client::ByteStreamClient;
use longshore_proto::longrunning::operations_client::OperationsClient;
use longshore_proto::reapi::action_cache_client::ActionCacheClient;
use longshore_proto::reapi::capabilities_client::CapabilitiesClient;
use longshore_proto::reapi::content_addressable_storage_client::ContentAddressableStorageClient;
use longshore_proto::reapi::execution_client::ExecutionClient;
use longshore_proto::{Message as _, bytestream, longrunning, reapi};
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use crate::action::TestAction;
use crate::tree::Blob;

/// The most bytes of blobs in one batch: below the 4 MiB that a gRPC message has by default.
const BATCH_BYTES_MAX: u64 = 3 << 20;

/// The size of one message of a stream.
const CHUNK_BYTES: usize = 64 << 10;

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(2);

/// A client of one longshore.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    function: DigestFunction,
}

impl Client {
    /// Connects to an `http:` or a `unix:` URI.
    pub async fn connect(uri: &str) -> Result<Self> {
        let endpoint = Endpoint::from_shared(uri.to_owned()).with_context(|| uri.to_owned())?;
        let endpoint = endpoint.tcp_nodelay(true).timeout(REQUEST_TIMEOUT);
        let channel = endpoint.connect().await.with_context(|| format!("connect to {uri}"))?;
        Ok(Self { channel, function: DigestFunction::Sha256 })
    }

    /// The same connection with another digest function.
    #[must_use]
    pub fn with_function(&self, function: DigestFunction) -> Self {
        Self { channel: self.channel.clone(), function }
    }

    /// The digest function of its requests.
    pub fn function(&self) -> DigestFunction {
        self.function
    }

    /// The connection, for raw services.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// `Capabilities`.
    pub fn capabilities(&self) -> CapabilitiesClient<Channel> {
        CapabilitiesClient::new(self.channel())
    }

    /// `ContentAddressableStorage`.
    pub fn cas(&self) -> ContentAddressableStorageClient<Channel> {
        ContentAddressableStorageClient::new(self.channel())
    }

    /// `ByteStream`.
    pub fn byte_stream(&self) -> ByteStreamClient<Channel> {
        ByteStreamClient::new(self.channel())
    }

    /// `ActionCache`.
    pub fn action_cache(&self) -> ActionCacheClient<Channel> {
        ActionCacheClient::new(self.channel())
    }

    /// `Execution`.
    pub fn execution(&self) -> ExecutionClient<Channel> {
        ExecutionClient::new(self.channel())
    }

    /// `Operations`.
    pub fn operations(&self) -> OperationsClient<Channel> {
        OperationsClient::new(self.channel())
    }

    /// The number of its digest function on the wire.
    pub fn wire_function(&self) -> i32 {
        match self.function {
            DigestFunction::Sha256 => reapi::digest_function::Value::Sha256.into(),
            DigestFunction::Sha1 => reapi::digest_function::Value::Sha1.into(),
            DigestFunction::Sha384 => reapi::digest_function::Value::Sha384.into(),
            DigestFunction::Sha512 => reapi::digest_function::Value::Sha512.into(),
            DigestFunction::Blake3 => reapi::digest_function::Value::Blake3.into(),
        }
    }

    /// Which of those digests the server lacks.
    pub async fn missing<'a>(&self, digests: impl IntoIterator<Item = &'a Digest>) -> Result<Vec<Digest>> {
        let request = reapi::FindMissingBlobsRequest {
            blob_digests: digests.into_iter().map(Digest::to_wire).collect(),
            digest_function: self.wire_function(),
            ..Default::default()
        };
        let response = self.cas().find_missing_blobs(request).await.context("FindMissingBlobs")?.into_inner();
        let parse = |wire| Digest::from_wire(self.function, Some(wire)).context("a digest of the server's");
        response.missing_blob_digests.iter().map(parse).collect()
    }

    /// Uploads what the server lacks of `blobs`: small ones in batches, large ones as streams.
    pub async fn upload(&self, blobs: &[Blob]) -> Result<()> {
        let missing = self.missing(blobs.iter().map(|(digest, _)| digest)).await?;
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        for (digest, data) in blobs.iter().filter(|(digest, _)| missing.contains(digest)) {
            if digest.size_bytes() > BATCH_BYTES_MAX {
                self.write(digest, data.clone()).await?;
                continue;
            }
            if batch_bytes + digest.size_bytes() > BATCH_BYTES_MAX {
                self.update(std::mem::take(&mut batch)).await?;
                batch_bytes = 0;
            }
            batch_bytes += digest.size_bytes();
            batch.push((*digest, data.clone()));
        }
        if batch.is_empty() { Ok(()) } else { self.update(batch).await }
    }

    /// Uploads one blob and returns its digest.
    pub async fn put(&self, data: impl Into<Bytes>) -> Result<Digest> {
        let data = data.into();
        let digest = self.function.digest(&data);
        self.upload(&[(digest, data)]).await?;
        Ok(digest)
    }

    /// Reads a whole blob, and checks it.
    pub async fn read(&self, digest: &Digest) -> Result<Bytes> {
        let data = self.read_unverified(digest).await?;
        let found = self.function.digest(&data);
        if found != *digest {
            bail!("asked for {digest:?}, read {found:?}");
        }
        Ok(data)
    }

    /// Reads a whole blob as it comes.
    pub async fn read_unverified(&self, digest: &Digest) -> Result<Bytes> {
        let request = bytestream::ReadRequest { resource_name: self.read_name(digest), ..Default::default() };
        let mut stream = self.byte_stream().read(request).await.context("Read")?.into_inner();
        let mut data = BytesMut::new();
        while let Some(response) = stream.next().await {
            data.extend_from_slice(&response.context("Read")?.data);
        }
        Ok(data.freeze())
    }

    /// The resource name that reads a blob.
    pub fn read_name(&self, digest: &Digest) -> String {
        format!("blobs/{}{}/{}", self.infix(), digest.hash_hex(), digest.size_bytes())
    }

    /// A new resource name that writes a blob.
    pub fn write_name(&self, digest: &Digest) -> String {
        format!("uploads/{}/{}", uuid::Uuid::new_v4(), self.read_name(digest))
    }

    /// Uploads an action and executes it, through the action cache.
    pub async fn run(&self, action: &TestAction) -> Result<reapi::ExecuteResponse> {
        let blobs = action.build(self.function);
        self.upload(&blobs.blobs).await?;
        self.execute(&blobs.digest, false).await
    }

    /// Executes an action that is in the store.
    pub async fn execute(&self, action: &Digest, skip_cache_lookup: bool) -> Result<reapi::ExecuteResponse> {
        let stream = self.start(action, skip_cache_lookup).await.context("Execute")?;
        finished(stream).await
    }

    /// Starts to execute an action, and returns the stream of its operation.
    pub async fn start(
        &self,
        action: &Digest,
        skip_cache_lookup: bool,
    ) -> Result<Streaming<longrunning::Operation>, Status> {
        let request = reapi::ExecuteRequest {
            action_digest: Some(action.to_wire()),
            skip_cache_lookup,
            digest_function: self.wire_function(),
            ..Default::default()
        };
        Ok(self.execution().execute(request).await?.into_inner())
    }

    /// The standard output of an action, inline or not.
    pub async fn stdout(&self, result: &reapi::ActionResult) -> Result<String> {
        self.text(&result.stdout_raw, result.stdout_digest.as_ref()).await
    }

    /// The standard error of an action, inline or not.
    pub async fn stderr(&self, result: &reapi::ActionResult) -> Result<String> {
        self.text(&result.stderr_raw, result.stderr_digest.as_ref()).await
    }

    /// The contents of the output file at `path`.
    pub async fn output_file(&self, result: &reapi::ActionResult, path: &str) -> Result<String> {
        let file = result.output_files.iter().find(|file| file.path == path);
        let file = file.with_context(|| format!("no output {path} in {result:?}"))?;
        self.text(&file.contents, file.digest.as_ref()).await
    }

    /// Contents that a message has inline, or else names.
    async fn text(&self, inline: &[u8], digest: Option<&reapi::Digest>) -> Result<String> {
        let bytes = match digest {
            Some(digest) if inline.is_empty() => {
                self.read(&Digest::from_wire(self.function, Some(digest))?).await?.to_vec()
            }
            _ => inline.to_vec(),
        };
        String::from_utf8(bytes).context("text")
    }

    async fn update(&self, blobs: Vec<Blob>) -> Result<()> {
        let request = |(digest, data): Blob| reapi::batch_update_blobs_request::Request {
            digest: Some(digest.to_wire()),
            data: data.into(),
            ..Default::default()
        };
        let request = reapi::BatchUpdateBlobsRequest {
            requests: blobs.into_iter().map(request).collect(),
            digest_function: self.wire_function(),
            ..Default::default()
        };
        let response = self.cas().batch_update_blobs(request).await.context("BatchUpdateBlobs")?;
        for response in response.into_inner().responses {
            if let Some(status) = response.status.filter(|status| status.code != 0) {
                bail!("BatchUpdateBlobs: {:?}: {status:?}", response.digest);
            }
        }
        Ok(())
    }

    async fn write(&self, digest: &Digest, data: Bytes) -> Result<()> {
        let name = self.write_name(digest);
        let size = data.len();
        let requests = (0..size).step_by(CHUNK_BYTES).map(move |offset| {
            let end = size.min(offset + CHUNK_BYTES);
            bytestream::WriteRequest {
                resource_name: if offset == 0 { name.clone() } else { String::new() },
                write_offset: i64::try_from(offset).expect("a blob in memory"),
                finish_write: end == size,
                data: data.slice(offset..end).into(),
            }
        });
        let response = self.byte_stream().write(futures::stream::iter(requests)).await.context("Write")?;
        if response.get_ref().committed_size != i64::try_from(size)? {
            bail!("Write: {size} bytes, but committed {}", response.get_ref().committed_size);
        }
        Ok(())
    }

    /// What a resource name says of the digest function: nothing for those that the hash's length implies.
    fn infix(&self) -> String {
        match self.function {
            DigestFunction::Blake3 => format!("{}/", self.function.name()),
            _ => String::new(),
        }
    }
}

/// Follows an operation to its end.
pub async fn finished(mut stream: Streaming<longrunning::Operation>) -> Result<reapi::ExecuteResponse> {
    while let Some(operation) = stream.next().await {
        let operation = operation.context("the stream of an operation")?;
        if !operation.done {
            continue;
        }
        return match operation.result {
            Some(longrunning::operation::Result::Response(any)) => {
                reapi::ExecuteResponse::decode(any.value.as_slice()).context("an ExecuteResponse")
            }
            other => bail!("the operation is done without a response: {other:?}"),
        };
    }
    bail!("the stream of an operation ended before the operation was done")
}
