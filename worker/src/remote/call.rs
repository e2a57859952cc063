//! Calls: what every request carries, and how it is repeated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use longshore_cas_store::io::Clock;
use longshore_cas_store::source::FetchError;
use longshore_proto::bytestream::byte_stream_client::ByteStreamClient;
use longshore_proto::reapi;
use longshore_proto::reapi::action_cache_client::ActionCacheClient;
use longshore_proto::reapi::capabilities_client::CapabilitiesClient;
use longshore_proto::reapi::content_addressable_storage_client::ContentAddressableStorageClient;
use longshore_proto::reapi::execution_client::ExecutionClient;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::error::RemoteError;
use super::limits::ServerLimits;
use super::names;
use super::on_behalf::OnBehalfOf;
use super::options::RemoteOptions;
use super::retry::{Attempts, Budget, Kind, kind};
use crate::connect::{Link, Pings, reason};

/// How long a call with one answer may take.
const UNARY_TIME_MAX: Duration = Duration::from_mins(2);
/// The largest answer that is decoded: a server that announces a batch has room for what is around the blobs.
const DECODE_BYTES_MAX: usize = 16 << 20;

/// Makes calls of one instance of a server. Clones share the connection, the budget and what is known of the instance.
#[derive(Clone)]
pub(super) struct Caller {
    way: Arc<Way>,
    instance: Arc<Instance>,
    on_behalf_of: OnBehalfOf,
}

/// The way to the server, which all instances share.
struct Way {
    link: Link,
    /// For `ByteStream.Write`: a server says nothing as long as it takes a blob, and would not bear the pings.
    write_link: Link,
    clock: Arc<dyn Clock>,
    outage_max: Duration,
    compression: bool,
}

/// What an instance has for itself.
struct Instance {
    name: String,
    budget: Budget,
    limits: OnceCell<Arc<ServerLimits>>,
    /// Questions for the limits that were in vain, and what the last of them came to.
    unlimited: Mutex<(u64, Option<RemoteError>)>,
    retries: AtomicU64,
}

impl Instance {
    fn new(name: String) -> Arc<Self> {
        Arc::new(Self {
            name,
            budget: Budget::new(),
            limits: OnceCell::new(),
            unlimited: Mutex::default(),
            retries: AtomicU64::new(0),
        })
    }
}

impl Caller {
    pub(super) fn open(options: &RemoteOptions, clock: Arc<dyn Clock>) -> Result<Self, RemoteError> {
        let link = |pings| {
            let token_file = options.token_file.as_deref();
            Link::open(&options.endpoint, &options.tls, token_file, pings, clock.clone())
        };
        let (link, write_link) = (link(options.pings)?, link(Pings::RARE)?);
        let RemoteOptions { outage_max, compression, .. } = *options;
        Ok(Self {
            way: Arc::new(Way { link, write_link, clock, outage_max, compression }),
            instance: Instance::new(options.instance_name.clone()),
            on_behalf_of: OnBehalfOf::ourselves(),
        })
    }

    /// For the instance called `suffix` below this one.
    pub(super) fn below(&self, suffix: &str) -> Self {
        Self { instance: Instance::new(names::below(&self.instance.name, suffix)), ..self.clone() }
    }

    pub(super) fn on_behalf_of(&self, on_behalf_of: OnBehalfOf) -> Self {
        Self { on_behalf_of, ..self.clone() }
    }

    /// On whose behalf the calls are made.
    pub(super) fn whom(&self) -> &OnBehalfOf {
        &self.on_behalf_of
    }

    #[cfg(test)]
    pub(super) fn shares_way_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.way, &other.way)
    }

    pub(super) fn origin(&self) -> &str {
        self.way.link.origin()
    }

    pub(super) fn instance_name(&self) -> String {
        self.instance.name.clone()
    }

    pub(super) fn clock(&self) -> &Arc<dyn Clock> {
        &self.way.clock
    }

    pub(super) fn retries(&self) -> u64 {
        self.instance.retries.load(Ordering::Relaxed)
    }

    pub(super) fn cas(&self) -> ContentAddressableStorageClient<Channel> {
        let client = ContentAddressableStorageClient::new(self.way.link.channel());
        client.max_decoding_message_size(DECODE_BYTES_MAX)
    }

    pub(super) fn byte_stream(&self) -> ByteStreamClient<Channel> {
        ByteStreamClient::new(self.way.link.channel()).max_decoding_message_size(DECODE_BYTES_MAX)
    }

    /// For `Write`.
    pub(super) fn byte_stream_writer(&self) -> ByteStreamClient<Channel> {
        ByteStreamClient::new(self.way.write_link.channel())
    }

    /// How often a connection to the server has begun or ended: behind the next one there may be another server.
    pub(super) fn turns(&self) -> u64 {
        self.way.link.turns() + self.way.write_link.turns()
    }

    pub(super) fn action_cache(&self) -> ActionCacheClient<Channel> {
        ActionCacheClient::new(self.way.link.channel()).max_decoding_message_size(DECODE_BYTES_MAX)
    }

    pub(super) fn execution(&self) -> ExecutionClient<Channel> {
        ExecutionClient::new(self.way.link.channel()).max_decoding_message_size(DECODE_BYTES_MAX)
    }

    /// What the server can do: asked before anything else, once. An outage is waited out once for all who ask.
    pub(super) async fn limits(&self) -> Result<Arc<ServerLimits>, RemoteError> {
        let vain = self.instance.unlimited.lock().0;
        let ask = || async {
            if let (now_vain, Some(error)) = &*self.instance.unlimited.lock()
                && *now_vain > vain
            {
                return Err(error.clone());
            }
            let request = reapi::GetCapabilitiesRequest { instance_name: self.instance_name() };
            let ask = || {
                let mut client = CapabilitiesClient::new(self.way.link.channel());
                let send = |request| async move { client.get_capabilities(request).await };
                self.unary(request.clone(), send)
            };
            match self.retried("GetCapabilities", ask).await {
                Ok(answer) => Ok(Arc::new(ServerLimits::of(&answer, self.way.compression))),
                Err(RemoteError::Refused { code: Code::Unimplemented, .. }) => {
                    Ok(Arc::new(ServerLimits::unknown()))
                }
                Err(error) => {
                    let mut unlimited = self.instance.unlimited.lock();
                    *unlimited = (unlimited.0 + 1, Some(error.clone()));
                    Err(error)
                }
            }
        };
        self.instance.limits.get_or_try_init(ask).await.cloned()
    }

    /// One attempt at a call with one answer, which is there in full in [`UNARY_TIME_MAX`].
    pub(super) async fn unary<Q, A, F>(
        &self,
        message: Q,
        send: impl FnOnce(Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut request = self.request(message).await?;
        // The server is to know, and ours bounds what comes after the headers of its answer, too.
        request.set_timeout(UNARY_TIME_MAX);
        let answer = timeout(UNARY_TIME_MAX, send(request)).await;
        Ok(answer.map_err(|_| Status::deadline_exceeded("no answer in time"))??.into_inner())
    }

    /// A request with the headers that all have.
    pub(super) async fn request<Q>(&self, message: Q) -> Result<Request<Q>, Status> {
        let mut request = self.way.link.request(message).await?;
        self.on_behalf_of.add_to(request.metadata_mut());
        Ok(request)
    }

    /// Attempts at a call.
    pub(super) fn attempts(&self) -> Attempts<'_> {
        Attempts::new(&self.instance.budget, self.way.outage_max)
    }

    /// Waits until a failed call may be made again; fails if it must not.
    pub(super) async fn pause(&self, attempts: &mut Attempts<'_>, status: Status) -> Result<(), Status> {
        let pause = match status.code() {
            Code::Unauthenticated => self.renew_token(attempts),
            _ => attempts.failed(&status, self.way.clock.now()),
        };
        let Some(pause) = pause else { return Err(status) };
        tracing::debug!(origin = self.origin(), ?pause, "a call is repeated: {}", reason(&status));
        self.instance.retries.fetch_add(1, Ordering::Relaxed);
        self.way.clock.sleep(pause).await;
        Ok(())
    }

    /// The pause until a call may be made with another token, if the file has one by then: it is tried once.
    fn renew_token(&self, attempts: &mut Attempts<'_>) -> Option<Duration> {
        let refused = [&self.way.link, &self.way.write_link].map(Link::token_was_refused);
        refused.contains(&true).then(|| attempts.with_another_token()).flatten()
    }

    /// Makes a call until it succeeds or must not be made again.
    pub(super) async fn retried<A, F>(
        &self,
        operation: &'static str,
        mut call: impl FnMut() -> F,
    ) -> Result<A, RemoteError>
    where
        F: Future<Output = Result<A, Status>>,
    {
        let mut attempts = self.attempts();
        loop {
            let status = match call().await {
                Ok(answer) => {
                    attempts.succeeded();
                    return Ok(answer);
                }
                Err(status) => status,
            };
            self.pause(&mut attempts, status).await.map_err(|status| self.error(operation, &status))?;
        }
    }

    /// The error of a call that is not made again.
    pub(super) fn error(&self, operation: &'static str, status: &Status) -> RemoteError {
        let (origin, code, reason) = (self.origin().to_owned(), status.code(), reason(status));
        match kind(status).0 {
            Kind::Lasting => RemoteError::Refused { operation, origin, code, reason },
            Kind::Outage | Kind::Passing => RemoteError::Unavailable { operation, origin, code, reason },
        }
    }

    /// The error of a fetch whose call is not made again.
    pub(super) fn unavailable(&self, reason: &impl ToString) -> FetchError {
        FetchError::Unavailable { origin: self.origin().to_owned(), reason: reason.to_string() }
    }

    /// The error of a fetch that brought other bytes.
    pub(super) fn corrupt(&self, reason: &impl ToString) -> FetchError {
        FetchError::Corrupt { origin: self.origin().to_owned(), reason: reason.to_string() }
    }
}
