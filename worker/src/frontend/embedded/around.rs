//! The frame of what stands around the services: a tower layer that hands each call on in its own way.

use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tower::Layer;

/// Services that answer calls of gRPC.
pub trait Services:
    Service<http::Request<Body>, Response = http::Response<Body>, Future: Send + 'static, Error: Send + 'static>
{
}

impl<S> Services for S where
    S: Service<
            http::Request<Body>,
            Response = http::Response<Body>,
            Future: Send + 'static,
            Error: Send + 'static,
        >
{
}

/// The answer to a call.
pub type Answer<S> =
    BoxFuture<'static, Result<http::Response<Body>, <S as Service<http::Request<Body>>>::Error>>;

/// What is done around every call.
pub trait Around {
    /// Has `services` answer `request`, and does what is to be done before, meanwhile and after.
    fn call<S: Services>(&self, services: &mut S, request: http::Request<Body>) -> Answer<S>;
}

/// Puts `A` around the services.
#[derive(Clone, Copy, Debug)]
pub struct AroundLayer<A>(pub A);

/// The services, with `A` around them.
#[derive(Clone, Debug)]
pub struct Surrounded<A, S> {
    around: A,
    services: S,
}

impl<A: Around + Clone, S> Layer<S> for AroundLayer<A> {
    type Service = Surrounded<A, S>;

    fn layer(&self, services: S) -> Self::Service {
        Surrounded { around: self.0.clone(), services }
    }
}

impl<A: Around, S: Services> Service<http::Request<Body>> for Surrounded<A, S> {
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Answer<S>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.services.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.around.call(&mut self.services, request)
    }
}
