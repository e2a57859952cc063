//! Listening: TCP on loopback, or a Unix socket that only its owner may use.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use futures::Future;
use longshore_proto::bytestream::byte_stream_server::ByteStreamServer;
use longshore_proto::longrunning::operations_server::OperationsServer;
use longshore_proto::reapi::action_cache_server::ActionCacheServer;
use longshore_proto::reapi::capabilities_server::CapabilitiesServer;
use longshore_proto::reapi::content_addressable_storage_server::ContentAddressableStorageServer;
use longshore_proto::reapi::execution_server::ExecutionServer;
use tokio::net::{TcpListener, UnixListener, UnixSocket};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthService;

use super::Embedded;
use super::action_cache::ActionCacheService;
use super::around::AroundLayer;
use super::bytestream::ByteStreamService;
use super::calls::Calls;
use super::capabilities::CapabilitiesService;
use super::cas::CasService;
use super::connections::incoming;
use super::execution::ExecutionService;
use super::limits::{
    CONNECTION_WINDOW_BYTES, DECODE_BYTES_MAX, HEADER_BYTES_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT,
    PENDING_RESETS_MAX, STREAM_WINDOW_BYTES, STREAMS_MAX,
};
use super::panics::CatchPanics;
use super::share::Shares;

/// Connections to a socket that wait to be accepted.
const SOCKET_BACKLOG: u32 = 1024;

/// Where to listen: `ADDR:PORT` or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Endpoint {
    /// Whether only this machine's own users can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("a path is missing behind unix:".to_owned()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                "expected ADDR:PORT with a numeric address, such as 127.0.0.1:8980, or unix:PATH".to_owned()
            }),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "grpc://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why an endpoint cannot be listened at.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {endpoint}")]
pub struct ListenError {
    endpoint: Endpoint,
    #[source]
    source: io::Error,
}

/// A bound endpoint: connections wait from now on.
#[derive(Debug)]
pub struct Listener {
    endpoint: Endpoint,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Binds. A Unix socket that nobody answers at any more is replaced; a new one has mode 0600.
    ///
    /// The path of a socket becomes absolute: clients run in other folders.
    pub async fn bind(endpoint: Endpoint) -> Result<Self, ListenError> {
        let endpoint = match endpoint {
            Endpoint::Unix(path) => Endpoint::Unix(std::path::absolute(&path).unwrap_or(path)),
            tcp @ Endpoint::Tcp(_) => tcp,
        };
        let bound = match &endpoint {
            Endpoint::Tcp(address) => TcpListener::bind(address).await.and_then(|listener| {
                let address = listener.local_addr()?;
                Ok(Self { endpoint: Endpoint::Tcp(address), socket: Socket::Tcp(listener) })
            }),
            Endpoint::Unix(path) => bind_unix(path)
                .await
                .map(|listener| Self { endpoint: endpoint.clone(), socket: Socket::Unix(listener) }),
        };
        bound.map_err(|source| ListenError { endpoint, source })
    }

    /// Where it listens; a port of 0 has become a real one.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        let answers = tokio::net::UnixStream::connect(path).await.is_ok();
        if answers || !metadata.file_type().is_socket() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    // Made under another name, so that whoever finds it can connect. Who watches for that name cannot, either, before
    // the mode is set: until then nobody listens. The name is short: the kernel bounds the length of the path.
    let unready = path.with_file_name(format!(".{}", std::process::id()));
    let socket = UnixSocket::new_stream()?;
    socket.bind(&unready)?;
    let ready = std::fs::set_permissions(&unready, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| socket.listen(SOCKET_BACKLOG))
        .and_then(|listener| std::fs::rename(&unready, path).map(|()| listener));
    if ready.is_err() {
        let _ = std::fs::remove_file(&unready);
    }
    ready
}

/// How much may be open at once, each with a file of its own.
#[derive(Clone, Copy, Debug)]
pub struct Transfers {
    /// Connections; others wait.
    pub connections_max: usize,
    /// Uploads, with those that broke off; the one that has stood still longest gives way to another.
    pub uploads_max: usize,
}

impl Embedded {
    /// Serves until `stop` completes, then lets calls under way end.
    pub async fn serve(
        &self,
        listener: Listener,
        Transfers { connections_max, uploads_max }: Transfers,
        stop: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let mut server = Server::builder()
            .layer(AroundLayer(Calls))
            .layer(AroundLayer(Shares))
            .layer(AroundLayer(CatchPanics))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(STREAMS_MAX)
            .http2_max_header_list_size(HEADER_BYTES_MAX)
            .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT));
        let clock = self.environment.clock.clone();
        let router = server.add_routes(self.routes(uploads_max));
        match listener.socket {
            Socket::Tcp(listener) => {
                router.serve_with_incoming_shutdown(incoming(listener, connections_max, clock), stop).await
            }
            Socket::Unix(listener) => {
                router.serve_with_incoming_shutdown(incoming(listener, connections_max, clock), stop).await
            }
        }
    }

    fn routes(&self, uploads_max: usize) -> Routes {
        let execution = ExecutionService {
            store: self.store.clone(),
            cache: self.cache.clone(),
            scheduler: self.scheduler.clone(),
        };
        let cas = CasService::new(self.store.clone());
        let byte_stream = ByteStreamService::new(self.store.clone(), &self.environment, uploads_max);
        let action_cache = ActionCacheService::new(self.cache.clone());
        let health = HealthServer::new(HealthService::from_health_reporter(self.health.clone()));
        Routes::new(ExecutionServer::new(execution.clone()).max_decoding_message_size(DECODE_BYTES_MAX))
            .add_service(OperationsServer::new(execution))
            .add_service(health)
            .add_service(
                ContentAddressableStorageServer::new(cas).max_decoding_message_size(DECODE_BYTES_MAX),
            )
            .add_service(ByteStreamServer::new(byte_stream).max_decoding_message_size(DECODE_BYTES_MAX))
            .add_service(ActionCacheServer::new(action_cache).max_decoding_message_size(DECODE_BYTES_MAX))
            .add_service(CapabilitiesServer::new(CapabilitiesService { store: self.store.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `sun_path` without its end (unix(7)).
    const PATH_BYTES_MAX: usize = 107;

    #[tokio::test]
    async fn a_socket_may_have_as_long_a_path_as_the_kernel_takes() {
        let folder = tempfile::tempdir().unwrap();
        let folder_bytes = folder.path().as_os_str().len();
        let path = folder.path().join("s".repeat(PATH_BYTES_MAX - folder_bytes - 1));
        Listener::bind(Endpoint::Unix(path.clone())).await.unwrap();
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
