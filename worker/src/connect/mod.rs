//! Connections to servers elsewhere: where to, how trusted, by which token, and how long to wait after a failure. And how
//! every connection writes, those of our own server too.
//!
//! The module knows no service: whoever makes a client of one takes a [`Link`]'s channel, and its requests.

mod backoff;
mod blocking;
mod broken;
mod channel;
mod gathered;
mod lookup;
mod pings;
mod token;
mod trust;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use longshore_cas_store::io::Clock;
use tonic::transport::Channel;
use tonic::{Request, Status};

pub use backoff::Backoff;
pub use broken::{causes, is_broken, reason};
pub use channel::{Target, target};
pub use gathered::Gathered;
pub use pings::Pings;

use token::Token;

/// Who is trusted, and who we are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// A PEM file with the certificates of authorities; without one, those that the system trusts.
    pub authorities: Option<PathBuf>,
    /// PEM files with our certificate chain and its key, for servers that ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name in the server's certificate, where it is not the endpoint's host.
    pub server_name: Option<String>,
}

/// What is configured makes no connection.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot use {what}: {reason}")]
pub struct ConnectError {
    /// The option and its value.
    pub what: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The way to one server. Clones share the connection, which is made when it is first used, and again whenever it
/// must.
#[derive(Clone)]
pub struct Link {
    origin: Arc<str>,
    channel: Channel,
    turns: Arc<AtomicU64>,
    token: Option<Arc<Token>>,
}

impl Link {
    /// The way to `endpoint`: `grpc://HOST:PORT`, `grpcs://HOST:PORT` (TLS) or `unix:PATH`; `http` and `https` mean the
    /// same as the first two. `token_file` has a bearer token, and is read again as that ages. `pings` is what such a
    /// server makes of pings, by which a peer that has vanished is found out.
    pub fn open(
        endpoint: &str,
        tls: &TlsOptions,
        token_file: Option<&Path>,
        pings: Pings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConnectError> {
        let turns = Arc::default();
        Ok(Self {
            origin: endpoint.into(),
            channel: channel::open(endpoint, tls, pings, &turns)?,
            turns,
            token: token_file.map(|path| Arc::new(Token::new(path, clock))),
        })
    }

    /// Where it leads, for logs and errors.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// What a client of a service is made from.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// How often a connection has begun or ended: what was learnt of a server holds as long as that stays the same.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// The server has refused the token. Whether there is one, which may be another by the next request.
    pub fn token_was_refused(&self) -> bool {
        self.token.as_ref().inspect(|token| token.refused()).is_some()
    }

    /// A request with the headers that all have.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` if there is no token where there should be one.
    pub async fn request<Q>(&self, message: Q) -> Result<Request<Q>, Status> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.header().await?);
        }
        Ok(request)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("origin", &self.origin).finish_non_exhaustive()
    }
}
