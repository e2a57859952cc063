//! A bug that one call meets is that call's: its client hears `INTERNAL`, and every other call goes on.
//!
//! What panics later, in the middle of a stream, ends that stream without a status; actions have a guard of their own
//! in the pump.

use std::panic::AssertUnwindSafe;
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tower::Layer;

/// Makes a panic in a call to the services the status of that call.
#[derive(Clone, Copy, Debug)]
pub struct PanicLayer;

impl<S> Layer<S> for PanicLayer {
    type Service = CatchPanics<S>;

    fn layer(&self, services: S) -> CatchPanics<S> {
        CatchPanics { services }
    }
}

/// The services behind a [`PanicLayer`].
#[derive(Clone, Debug)]
pub struct CatchPanics<S> {
    services: S,
}

impl<S> Service<http::Request<Body>> for CatchPanics<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.services.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // Safe to go on with: no lock is poisoned, and what a call leaves behind undoes itself when dropped.
        let services = AssertUnwindSafe(|| self.services.call(request));
        match std::panic::catch_unwind(services) {
            Ok(call) => AssertUnwindSafe(call)
                .catch_unwind()
                .map(|ended| ended.unwrap_or_else(|_| Ok(broken())))
                .boxed(),
            Err(_) => std::future::ready(Ok(broken())).boxed(),
        }
    }
}

fn broken() -> http::Response<Body> {
    // The panic itself has been printed, with its place.
    tracing::error!("a call panicked");
    Status::internal("a bug in longshore: this call panicked").into_http()
}
