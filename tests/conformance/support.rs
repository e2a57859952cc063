//! What the tests of several rules share: requests to every method, and what to expect of a refusal.

use std::fmt::Debug;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Poll;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::error_details::{Detail as _, PreconditionFailure};
use longshore_proto::{Message, bytestream, protobuf, reapi, rpc};
use longshore_tests::action::TestAction;
use longshore_tests::client::{Client, finished};
use longshore_tests::longshore::Longshore;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

/// The shared longshore, and a client of it.
pub(crate) async fn shared_client() -> Result<(Arc<Longshore>, Client)> {
    let longshore = crate::shared().await?;
    let client = longshore.client().await?;
    Ok((longshore, client))
}

/// The fewest bytes that no other test has: of one byte there are 256 blobs, and somebody may have uploaded them all.
pub(crate) const FEW_BYTES: usize = 16;

/// Bytes that no other test has, `len` of them, if there are [`FEW_BYTES`] at least.
pub(crate) fn unique(len: usize) -> Vec<u8> {
    let seed = uuid::Uuid::new_v4();
    let block = |index: usize| DigestFunction::Sha512.digest(format!("{seed} {index}").as_bytes());
    let blocks = (0..=len / DigestFunction::Sha512.hash_len()).map(block);
    let mut data: Vec<u8> = blocks.flat_map(|block| block.hash().to_vec()).collect();
    data.truncate(len);
    data
}

/// The digest of a blob that nobody has uploaded.
pub(crate) fn absent(function: DigestFunction) -> Digest {
    function.digest(&unique(20))
}

/// The number of a digest function on the wire.
pub(crate) fn wire_of(function: DigestFunction) -> i32 {
    function.to_wire().into()
}

/// Uploads a message and returns its digest.
pub(crate) async fn put_message(client: &Client, message: &impl Message) -> Result<Digest> {
    client.put(message.encode_to_vec()).await
}

/// Checks that a call was refused with `code`, in a message that has all of `words`; returns the status.
#[track_caller]
pub(crate) fn refused<T: Debug>(outcome: Result<T, Status>, code: Code, words: &[&str]) -> Status {
    let status = match outcome {
        Err(status) => status,
        Ok(answer) => panic!("expected {code:?} with {words:?}, got {answer:?}"),
    };
    said(status.code(), status.message(), code, words);
    status
}

/// The same for a status inside a message.
#[track_caller]
pub(crate) fn refused_inside(status: Option<&rpc::Status>, code: Code, words: &[&str]) {
    let status = status.cloned().unwrap_or_default();
    said(Code::from(status.code), &status.message, code, words);
}

#[track_caller]
fn said(found: Code, message: &str, code: Code, words: &[&str]) {
    assert_eq!(found, code, "{message}");
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
}

/// The details of a gRPC error.
pub(crate) fn details(status: &Status) -> Result<Vec<protobuf::Any>> {
    let status = rpc::Status::decode(status.details()).context("grpc-status-details-bin")?;
    Ok(status.details)
}

/// The subjects of the MISSING violations in details, sorted; there must be no other violation and no other detail.
#[track_caller]
pub(crate) fn missing_subjects(details: &[protobuf::Any]) -> Vec<String> {
    let mut subjects = Vec::new();
    for detail in details {
        let failure = PreconditionFailure::from_any(detail);
        let failure = failure.unwrap_or_else(|| panic!("{} beside MISSING", detail.type_url));
        for violation in failure.violations {
            assert_eq!(violation.r#type, "MISSING", "{violation:?}");
            subjects.push(violation.subject);
        }
    }
    subjects.sort();
    subjects
}

/// How a MISSING violation names a blob.
pub(crate) fn subject(digest: &Digest) -> String {
    match digest.function() {
        DigestFunction::Blake3 => format!("blobs/blake3/{digest}"),
        _ => format!("blobs/{digest}"),
    }
}

/// All messages of a stream, or the error that it ends with.
pub(crate) async fn all_of<T>(outcome: Result<Response<Streaming<T>>, Status>) -> Result<Vec<T>, Status> {
    let mut stream = outcome?.into_inner();
    let mut all = Vec::new();
    while let Some(message) = stream.next().await {
        all.push(message?);
    }
    Ok(all)
}

/// Uploads an action and executes it past the cache: the response, wherever the error is.
pub(crate) async fn run_anew(client: &Client, action: &TestAction) -> Result<reapi::ExecuteResponse> {
    let blobs = action.build(client.function());
    client.upload(&blobs.blobs).await?;
    execute(client, &blobs.digest).await
}

/// Executes an action past the cache; a gRPC error is returned as the status of a response.
pub(crate) async fn execute(client: &Client, action: &Digest) -> Result<reapi::ExecuteResponse> {
    match client.start(action, true).await {
        Ok(stream) => finished(stream).await,
        Err(status) => {
            let details = details(&status)?;
            let status =
                rpc::Status { code: status.code().into(), message: status.message().to_owned(), details };
            Ok(reapi::ExecuteResponse { status: Some(status), ..Default::default() })
        }
    }
}

/// The result of an action that ended with exit code 0.
#[track_caller]
pub(crate) fn succeeded(response: &reapi::ExecuteResponse) -> &reapi::ActionResult {
    assert_eq!(response.status.clone().unwrap_or_default().code, 0, "{:?}", response.status);
    let result = response.result.as_ref().unwrap_or_else(|| panic!("no result in {response:?}"));
    assert_eq!(result.exit_code, 0, "{result:?}");
    result
}

/// Every method that takes a digest in a message, each with its answer to `digest`.
pub(crate) async fn every_method(
    client: &Client,
    digest_function: i32,
    digest: Option<&reapi::Digest>,
) -> Vec<(&'static str, Status)> {
    let digest = digest.cloned();
    let list: Vec<_> = digest.iter().cloned().collect();
    let mut answers = Vec::new();
    if !list.is_empty() {
        let find = reapi::FindMissingBlobsRequest {
            blob_digests: list.clone(),
            digest_function,
            ..Default::default()
        };
        answers.push(("FindMissingBlobs", status_of(client.cas().find_missing_blobs(find).await)));
        let read = reapi::BatchReadBlobsRequest { digests: list, digest_function, ..Default::default() };
        answers.push(("BatchReadBlobs", status_of(client.cas().batch_read_blobs(read).await)));
    }
    let entry = reapi::batch_update_blobs_request::Request {
        digest: digest.clone(),
        data: b"data".to_vec(),
        ..Default::default()
    };
    let update =
        reapi::BatchUpdateBlobsRequest { requests: vec![entry], digest_function, ..Default::default() };
    let update = client.cas().batch_update_blobs(update).await.map(|response| {
        let status = response.into_inner().responses.pop().and_then(|entry| entry.status).unwrap_or_default();
        Status::new(Code::from(status.code), status.message)
    });
    answers.push(("BatchUpdateBlobs", update.unwrap_or_else(|status| status)));
    let tree = reapi::GetTreeRequest { root_digest: digest.clone(), digest_function, ..Default::default() };
    answers.push(("GetTree", status_of(all_of(client.cas().get_tree(tree).await).await)));
    let get = reapi::GetActionResultRequest {
        action_digest: digest.clone(),
        digest_function,
        ..Default::default()
    };
    answers.push(("GetActionResult", status_of(client.action_cache().get_action_result(get).await)));
    let put = reapi::UpdateActionResultRequest {
        action_digest: digest.clone(),
        action_result: Some(reapi::ActionResult::default()),
        digest_function,
        ..Default::default()
    };
    answers.push(("UpdateActionResult", status_of(client.action_cache().update_action_result(put).await)));
    let execute = reapi::ExecuteRequest { action_digest: digest, digest_function, ..Default::default() };
    answers.push(("Execute", status_of(all_of(client.execution().execute(execute).await).await)));
    answers
}

/// Both methods of ByteStream that name a blob, each with its answer to `blobs/...`.
pub(crate) async fn every_stream(client: &Client, blob: &str) -> Vec<(&'static str, Status)> {
    let read = bytestream::ReadRequest { resource_name: blob.to_owned(), ..Default::default() };
    let read = status_of(all_of(client.byte_stream().read(read).await).await);
    let write = bytestream::WriteRequest {
        resource_name: format!("uploads/{}/{blob}", uuid::Uuid::new_v4()),
        finish_write: true,
        data: b"data".to_vec(),
        ..Default::default()
    };
    let write = client.byte_stream().write(futures::stream::iter([write])).await;
    vec![("Read", read), ("Write", status_of(write))]
}

fn status_of<T>(outcome: Result<T, Status>) -> Status {
    outcome.err().unwrap_or_else(|| Status::ok(""))
}

/// What a batch may carry, as it is announced.
pub(crate) async fn batch_limit(client: &Client) -> Result<usize> {
    let request = reapi::GetCapabilitiesRequest::default();
    let capabilities = client.capabilities().get_capabilities(request).await?.into_inner();
    let cache = capabilities.cache_capabilities.context("no cache")?;
    Ok(usize::try_from(cache.max_batch_total_size_bytes)?)
}

/// Every file below a folder.
pub(crate) fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() { found.extend(files_in(&path)) } else { found.push(path) }
    }
    found
}

/// Writes over the file that a longshore keeps of a blob.
pub(crate) fn damage(longshore: &Longshore, digest: &Digest, content: &[u8]) -> Result<()> {
    let name = digest.hash_hex();
    let is_of_blob = |path: &&PathBuf| path.to_string_lossy().contains(&name);
    let files = files_in(&longshore.root().join("blobs"));
    let file = files.iter().find(is_of_blob).with_context(|| format!("{digest} has no file"))?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
    fs::write(file, content).with_context(|| file.display().to_string())
}

/// A connection that adds headers as they are, well formed or not.
#[derive(Clone)]
pub(crate) struct WithHeaders {
    channel: Channel,
    headers: http::HeaderMap,
}

impl WithHeaders {
    /// The connection of `client`.
    pub(crate) fn new(client: &Client, headers: &[(&'static str, &str)]) -> Result<Self> {
        let mut map = http::HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse()?);
        }
        Ok(Self { channel: client.channel(), headers: map })
    }
}

impl Service<http::Request<Body>> for WithHeaders {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.channel, context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        request.headers_mut().extend(self.headers.clone());
        self.channel.call(request)
    }
}

/// What the server answers to a call of a method that may not exist.
pub(crate) async fn answer_to(client: &Client, path: &str) -> Result<Code> {
    let request =
        http::Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    let mut channel = client.channel();
    std::future::poll_fn(|context| Service::<http::Request<Body>>::poll_ready(&mut channel, context)).await?;
    let response = channel.call(request.body(Body::empty())?).await?;
    let status = response.headers().get("grpc-status").context("no grpc-status in the headers")?;
    Ok(Code::from_bytes(status.as_bytes()))
}
