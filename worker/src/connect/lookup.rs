//! The addresses of an endpoint's host, as the system knows them.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::{FutureExt as _, TryFutureExt as _};
use hyper_util::client::legacy::connect::dns::Name;
use tower::Service;

use super::blocking::Blocking;

/// What a lookup comes to.
type Found = Result<Vec<SocketAddr>, Arc<io::Error>>;

/// Looks up the name of one endpoint, once at a time: a connection attempt that gives up leaves its lookup to the next.
#[derive(Clone, Default)]
pub(super) struct Lookup(Blocking<Found>);

impl Service<Name> for Lookup {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Arc<io::Error>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let look_up = move || Ok((name.as_str(), 0).to_socket_addrs()?.collect());
        let (found, _) = self.0.join(look_up);
        found.map_ok(Vec::into_iter).boxed()
    }
}
