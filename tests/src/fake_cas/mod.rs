//! A CAS and an action cache in this process, which does what a test tells it to: it fails, stalls, truncates, sends
//! wrong bytes, lacks methods; and it remembers every call.
//!
//! It keeps blobs in memory and checks nothing that a client should: what arrives wrong stays wrong and is found.

mod bytes;
mod execution;
mod services;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::bytes::Bytes;
use anyhow::{Context as _, Result};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::bytestream::byte_stream_server::ByteStreamServer;
use longshore_proto::reapi;
use longshore_proto::reapi::action_cache_server::ActionCacheServer;
use longshore_proto::reapi::capabilities_server::CapabilitiesServer;
use longshore_proto::reapi::content_addressable_storage_server::ContentAddressableStorageServer;
use longshore_proto::reapi::execution_server::ExecutionServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Status};

use crate::tree::Blob;

/// A method that can be made to misbehave, and whose calls are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "they are named after the methods")]
pub enum Method {
    GetCapabilities,
    FindMissingBlobs,
    BatchReadBlobs,
    BatchUpdateBlobs,
    GetTree,
    Read,
    Write,
    QueryWriteStatus,
    GetActionResult,
    UpdateActionResult,
    Execute,
    WaitExecution,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::GetCapabilities,
        Self::FindMissingBlobs,
        Self::BatchReadBlobs,
        Self::BatchUpdateBlobs,
        Self::GetTree,
        Self::Read,
        Self::Write,
        Self::QueryWriteStatus,
        Self::GetActionResult,
        Self::UpdateActionResult,
        Self::Execute,
        Self::WaitExecution,
    ];
}

/// How a stream of `Execute` or `WaitExecution` goes.
#[derive(Clone, Debug)]
pub enum Told {
    /// It says that the operation of that name goes on, and ends so.
    Breaks(String, Status),
    /// It says so and ends, as if that was all.
    Ends(String),
    /// The action has that result.
    Done(Box<reapi::ActionResult>),
}

/// What goes wrong with one call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It fails.
    Fail(Status),
    /// Reads end, as if all was well, after that many bytes; entries of batches lose their data.
    Truncate(usize),
    /// Reads fail after that many bytes.
    Break(usize),
    /// A byte is another one; trees are others.
    Corrupt,
    /// Reads begin at the beginning, whatever was asked for.
    Anew,
    /// Entries of batches are refused with that code.
    Entries(Code),
    /// Writes are answered at once with that size.
    Commit(i64),
}

/// A call that was made.
#[derive(Clone, Debug)]
pub struct Call {
    /// Which.
    pub method: Method,
    /// The hashes of the blobs that it names, in its order.
    pub hashes: Vec<String>,
    /// `digest_function`, where the method has it.
    pub digest_function: i32,
    /// The sum of the sizes of those blobs.
    pub size_bytes: i64,
    /// The resource name, of ByteStream's; the operation's, of `WaitExecution`'s.
    pub resource_name: String,
    /// Where a read or a write begins.
    pub offset: i64,
    /// `instance_name`, or what the resource name says, where the method has either.
    pub instance_name: String,
    /// Its headers.
    pub headers: MetadataMap,
}

/// The server; it ends when this is dropped.
#[derive(Debug)]
pub struct FakeCas {
    uri: String,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    inner: Mutex<Inner>,
    /// The number of calls that have arrived.
    arrived: watch::Sender<usize>,
    /// Methods whose calls wait.
    held: watch::Sender<HashSet<Method>>,
}

#[derive(Debug, Default)]
struct Inner {
    capabilities: reapi::ServerCapabilities,
    /// What every instance has that has nothing of its own.
    common: Holdings,
    /// By instance name.
    apart: HashMap<String, Holdings>,
    calls: Vec<Call>,
    once: HashMap<Method, VecDeque<Fault>>,
    always: HashMap<Method, Fault>,
    committed: HashMap<String, Bytes>,
    /// How streams of executions go; the last one stays.
    told: VecDeque<Told>,
}

/// What an instance has, by hashes.
#[derive(Debug, Default)]
struct Holdings {
    blobs: HashMap<String, Bytes>,
    results: HashMap<String, reapi::ActionResult>,
}

impl Inner {
    fn of(&mut self, instance_name: &str) -> &mut Holdings {
        self.apart.get_mut(instance_name).unwrap_or(&mut self.common)
    }
}

impl FakeCas {
    /// Starts one that announces nothing: a server of REAPI 2.0.
    pub async fn start() -> Result<Self> {
        Self::with(reapi::CacheCapabilities::default()).await
    }

    /// Starts one that announces zstd.
    pub async fn with_zstd() -> Result<Self> {
        let zstd = vec![reapi::compressor::Value::Zstd as i32];
        Self::with(reapi::CacheCapabilities {
            supported_compressors: zstd.clone(),
            supported_batch_update_compressors: zstd,
            ..Default::default()
        })
        .await
    }

    /// Starts one that executes, too: its streams go like these, one after the other, and then like the last one.
    pub async fn executing(told: impl IntoIterator<Item = Told>) -> Result<Self> {
        Self::serve(reapi::CacheCapabilities::default(), Some(told.into_iter().collect())).await
    }

    /// Starts one that announces that.
    pub async fn with(cache: reapi::CacheCapabilities) -> Result<Self> {
        Self::serve(cache, None).await
    }

    async fn serve(cache: reapi::CacheCapabilities, told: Option<VecDeque<Told>>) -> Result<Self> {
        let state = Arc::new(State::default());
        state.lock().capabilities.cache_capabilities = Some(cache);
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a port")?;
        let uri = format!("grpc://{}", listener.local_addr().context("the port")?);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let service = services::Service(state.clone());
        let execution = told.map(|told| {
            state.lock().told = told;
            ExecutionServer::new(service.clone())
        });
        let decode_bytes_max = 16 << 20;
        let router = tonic::transport::Server::builder()
            .add_optional_service(execution)
            .add_service(CapabilitiesServer::new(service.clone()))
            .add_service(ActionCacheServer::new(service.clone()))
            .add_service(
                ContentAddressableStorageServer::new(service.clone())
                    .max_decoding_message_size(decode_bytes_max),
            )
            .add_service(ByteStreamServer::new(service).max_decoding_message_size(decode_bytes_max));
        let task = tokio::spawn(async move {
            // It ends by being aborted; a listener that fails shows in the test.
            let _ = router.serve_with_incoming(incoming).await;
        });
        Ok(Self { uri, state, task })
    }

    /// Where it listens.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Adds a blob.
    pub fn put(&self, data: impl Into<Bytes>) -> Digest {
        let data = data.into();
        let digest = DigestFunction::Sha256.digest(&data);
        self.put_all(&[(digest, data)]);
        digest
    }

    /// Adds blobs as they are, right or wrong.
    pub fn put_all<'b>(&self, blobs: impl IntoIterator<Item = &'b Blob>) {
        self.state.lock().common.blobs.extend(by_hash(blobs));
    }

    /// Adds blobs to an instance that shares nothing with others from now on.
    pub fn put_in<'b>(&self, instance_name: &str, blobs: impl IntoIterator<Item = &'b Blob>) {
        let mut inner = self.state.lock();
        inner.apart.entry(instance_name.to_owned()).or_default().blobs.extend(by_hash(blobs));
    }

    /// Removes a blob.
    pub fn evict(&self, digest: &Digest) {
        self.state.lock().common.blobs.remove(&digest.hash_hex());
    }

    /// What it has under that digest.
    pub fn blob(&self, digest: &Digest) -> Option<Bytes> {
        self.blob_in("", digest)
    }

    /// What that instance has under that digest.
    pub fn blob_in(&self, instance_name: &str, digest: &Digest) -> Option<Bytes> {
        self.state.lock().of(instance_name).blobs.get(&digest.hash_hex()).cloned()
    }

    /// The result that it has for that action.
    pub fn result(&self, action: &Digest) -> Option<reapi::ActionResult> {
        self.result_in("", action)
    }

    /// The result that that instance has for that action.
    pub fn result_in(&self, instance_name: &str, action: &Digest) -> Option<reapi::ActionResult> {
        self.state.lock().of(instance_name).results.get(&action.hash_hex()).cloned()
    }

    /// The next call of `method` goes wrong; those after it as other faults say.
    pub fn once(&self, method: Method, fault: Fault) {
        self.state.lock().once.entry(method).or_default().push_back(fault);
    }

    /// Every call of `method` goes wrong.
    pub fn always(&self, method: Method, fault: Fault) {
        self.state.lock().always.insert(method, fault);
    }

    /// Calls of `method` go as they should again.
    pub fn heal(&self, method: Method) {
        let mut inner = self.state.lock();
        inner.always.remove(&method);
        inner.once.remove(&method);
    }

    /// The calls of `method` so far.
    pub fn calls(&self, method: Method) -> Vec<Call> {
        self.state.lock().calls.iter().filter(|call| call.method == method).cloned().collect()
    }

    /// Every call so far.
    pub fn all_calls(&self) -> Vec<Call> {
        self.state.lock().calls.clone()
    }

    /// Lets calls of `method` wait from now on.
    pub fn hold(&self, method: Method) {
        self.state.held.send_modify(|held| {
            held.insert(method);
        });
    }

    /// Lets those that wait go on.
    pub fn release(&self, method: Method) {
        self.state.held.send_modify(|held| {
            held.remove(&method);
        });
    }

    /// Completes when `count` calls of `method` have arrived.
    pub async fn arrived(&self, method: Method, count: usize) {
        let mut arrived = self.state.arrived.subscribe();
        while self.calls(method).len() < count {
            arrived.changed().await.expect("the state outlives this");
        }
    }
}

impl Drop for FakeCas {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a call, waits while its method is held, and says what goes wrong with it.
    async fn enter(&self, call: Call) -> Result<Option<Fault>, Status> {
        let method = call.method;
        self.lock().calls.push(call);
        self.arrived.send_modify(|count| *count += 1);
        let mut held = self.held.subscribe();
        held.wait_for(|held| !held.contains(&method)).await.map_err(|_| Status::cancelled("ending"))?;
        let fault = {
            let mut inner = self.lock();
            let once = inner.once.get_mut(&method).and_then(VecDeque::pop_front);
            once.or_else(|| inner.always.get(&method).cloned())
        };
        match fault {
            Some(Fault::Fail(status)) => Err(status),
            fault => Ok(fault),
        }
    }
}

fn by_hash<'b>(blobs: impl IntoIterator<Item = &'b Blob>) -> impl Iterator<Item = (String, Bytes)> {
    blobs.into_iter().map(|(digest, data)| (digest.hash_hex(), data.clone()))
}

/// Data with a byte that is another one.
fn corrupted(data: &Bytes) -> Bytes {
    let mut data = data.to_vec();
    if let Some(byte) = data.last_mut() {
        *byte ^= 1;
    }
    data.into()
}
