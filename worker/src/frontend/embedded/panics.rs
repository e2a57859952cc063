//! A bug that one call meets is that call's: its client hears `INTERNAL`, and every other call goes on.
//!
//! What panics later, in the middle of a stream, ends that stream without a status; actions have a guard of their own
//! in the pump.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http;

use super::around::{Answer, Around, Services};

/// Makes a panic in a call to the services the status of that call.
#[derive(Clone, Copy, Debug)]
pub struct CatchPanics;

impl Around for CatchPanics {
    fn call<S: Services>(&self, services: &mut S, request: http::Request<Body>) -> Answer<S> {
        // Safe to go on with: no lock is poisoned, and what a call leaves behind undoes itself when dropped.
        let call = AssertUnwindSafe(|| services.call(request));
        match std::panic::catch_unwind(call) {
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
