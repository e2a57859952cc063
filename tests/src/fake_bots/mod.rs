//! A server of the Bots API as a bot meets it, in this process: it leases what a test offers, holds bots to the
//! protocol, and fails, loses its replies or forgets sessions when it is told to.
//!
//! It does what `BuildGrid` was seen to do: by the handshake of 0.4.4, leases are given, several at once; by that of
//! 0.2.0, they are offered, one at a time. A poll waits for work while the bot has room, for 80 % of its deadline, and
//! not at all if those are less than 3 s. A lease that is taken back wakes nobody; it is gone from the
//! replies of 0.4.4, and cancelled in those of 0.2.0. `INTERNAL` and `UNAVAILABLE` are
//! tried again, up to five times, by the same bot, when it asks the next time. It knows one bot at a time.

mod model;
mod service;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::DigestFunction;
use longshore_proto::bots::bots_server::BotsServer;
use longshore_proto::{Message as _, bots, protobuf, reapi};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::transport::server::{Server, ServerTlsConfig, TcpIncoming};

use model::Model;

/// The type URL of an Action in a lease.
pub const ACTION_URL: &str = "type.googleapis.com/build.bazel.remote.execution.v2.Action";
/// The type URL of a Digest in a lease.
pub const DIGEST_URL: &str = "type.googleapis.com/build.bazel.remote.execution.v2.Digest";

/// How long whatever is waited for may take; commands of tests that are to be killed take longer.
const PATIENCE: Duration = Duration::from_mins(2);

/// Who says first that a lease is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// The server, as in `BuildGrid` 0.4.4.
    Given,
    /// The bot, as in `BuildGrid` 0.2.0.
    Offered,
}

/// What goes wrong with one call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It fails, and nothing of it was looked at.
    Refuse(Status),
    /// It is taken in, and fails.
    Lose(Status),
    /// It is taken in, and not answered.
    Silence,
    /// It is answered with a reply from before what it says.
    Stale,
    /// It crosses leases that are given to the bot, whatever it says.
    Crossed,
}

/// A call that was made.
#[derive(Clone, Debug)]
pub struct Call {
    /// `parent` of the call that opens a session; nothing in those that update one.
    pub parent: Option<String>,
    /// The session as the bot has it.
    pub session: bots::BotSession,
    /// Its headers.
    pub headers: MetadataMap,
}

/// The server; it ends when this is dropped.
#[derive(Debug)]
pub struct FakeBots {
    uri: String,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    inner: Mutex<Inner>,
    /// Counts what has happened.
    changed: watch::Sender<u64>,
    /// Counts what a poll that waits is woken by.
    woken: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    model: Model,
    calls: Vec<Call>,
    faults: VecDeque<Fault>,
    mistakes: Vec<String>,
    function: DigestFunction,
}

impl FakeBots {
    /// Starts one on a free port.
    pub async fn start(handshake: Handshake) -> Result<Self> {
        Self::start_at("127.0.0.1:0", handshake).await
    }

    /// Starts one at that address.
    pub async fn start_at(address: &str, handshake: Handshake) -> Result<Self> {
        Self::start_as(address, handshake, Server::builder()).await
    }

    /// Starts one that speaks TLS, and only with bots that `tls` has it trust.
    pub async fn start_with_tls(handshake: Handshake, tls: ServerTlsConfig) -> Result<Self> {
        Self::start_as("127.0.0.1:0", handshake, Server::builder().tls_config(tls)?).await
    }

    async fn start_as(address: &str, handshake: Handshake, server: Server) -> Result<Self> {
        let inner = Inner {
            model: Model::new(handshake),
            calls: Vec::new(),
            faults: VecDeque::new(),
            mistakes: Vec::new(),
            function: DigestFunction::Sha256,
        };
        let state =
            State { inner: Mutex::new(inner), changed: watch::Sender::new(0), woken: watch::Sender::new(0) };
        let listener = TcpListener::bind(address).await.context("a port")?;
        let uri = format!("grpc://{}", listener.local_addr().context("the port")?);
        let state = Arc::new(state);
        let task = serve(server, listener, state.clone());
        Ok(Self { uri, state, task })
    }

    /// Where it listens.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// A client wants that Action executed.
    pub fn submit(&self, id: &str, action: &reapi::Action) {
        self.submit_payload(id, ACTION_URL, action.encode_to_vec());
    }

    /// A lease has just that in it.
    pub fn submit_payload(&self, id: &str, type_url: &str, value: Vec<u8>) {
        let payload = protobuf::Any { type_url: type_url.to_owned(), value };
        self.state.change(|inner| inner.model.submit(id, payload));
        self.state.wake();
    }

    /// What its clients make digests with; it names them beside the leases.
    pub fn set_function(&self, function: DigestFunction) {
        self.state.change(|inner| inner.function = function);
    }

    /// The client of a lease does not want it any more. Polls that wait go on waiting.
    pub fn take_back(&self, id: &str) {
        self.state.change(|inner| inner.model.take_back(id));
    }

    /// Forgets the session, as after a silence that was too long; what was leased in it is given out again.
    pub fn forget(&self) {
        self.state.change(|inner| inner.model.forget());
        self.state.wake();
    }

    /// The next call goes wrong; those after it as other faults say.
    pub fn once(&self, fault: Fault) {
        self.state.change(|inner| inner.faults.push_back(fault));
        // A poll that waits was there before.
        self.state.wake();
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.state.lock().calls.clone()
    }

    /// What bots must not do, and did.
    pub fn mistakes(&self) -> Vec<String> {
        self.state.lock().mistakes.clone()
    }

    /// Every result that has arrived of that lease, final or not.
    pub fn results(&self, id: &str) -> Vec<bots::Lease> {
        self.state.lock().model.results(id)
    }

    /// The final result of a lease, once it is there.
    pub async fn finished(&self, id: &str) -> bots::Lease {
        self.when(|inner| inner.model.finished(id)).await
    }

    /// Completes when the bot has said that a lease is active.
    pub async fn accepted(&self, id: &str) {
        self.when(|inner| inner.model.is_accepted(id).then_some(())).await;
    }

    /// Completes with the first call that is like that.
    pub async fn called(&self, is_it: impl Fn(&Call) -> bool) -> Call {
        self.when(|inner| inner.calls.iter().find(|call| is_it(call)).cloned()).await
    }

    /// Completes when there are more calls than `count`.
    pub async fn called_since(&self, count: usize) {
        self.when(|inner| (inner.calls.len() > count).then_some(())).await;
    }

    /// Completes when that many faults or fewer are left.
    pub async fn faults_left(&self, count: usize) {
        self.when(|inner| (inner.faults.len() <= count).then_some(())).await;
    }

    async fn when<T>(&self, found: impl Fn(&Inner) -> Option<T>) -> T {
        let found = async {
            let mut changed = self.state.changed.subscribe();
            loop {
                if let Some(found) = found(&self.state.lock()) {
                    return found;
                }
                changed.changed().await.expect("the state outlives this");
            }
        };
        let found = tokio::time::timeout(PATIENCE, found).await;
        found.unwrap_or_else(|_| panic!("what is waited for has not come in {PATIENCE:?}"))
    }
}

impl Drop for FakeBots {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn serve(mut server: Server, listener: TcpListener, state: Arc<State>) -> tokio::task::JoinHandle<()> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let router = server.add_service(BotsServer::new(service::Service(state)));
    tokio::spawn(async move {
        // It ends by being aborted; a listener that fails shows in the test.
        let _ = router.serve_with_incoming(incoming).await;
    })
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_modify(|count| *count += 1);
        result
    }

    fn wake(&self) {
        self.woken.send_modify(|count| *count += 1);
    }
}
