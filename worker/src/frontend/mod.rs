//! Where work comes from: one trait, an implementation a scheduler protocol.

pub mod embedded;
mod pump;

use futures::future::BoxFuture;
use longshore_proto::reapi;

use crate::action::Assignment;

pub use pump::pump;

/// A scheduler as the worker sees it.
///
/// Invariants that every implementation keeps:
/// 1. each assignment is yielded once, and completed once;
/// 2. `next` is cancel safe: an assignment is not lost when its future is dropped;
/// 3. after `next` has yielded nothing, it yields nothing again.
pub trait WorkSource: Send + Sync + 'static {
    /// The next action to run; nothing once the source has shut down.
    fn next(&self) -> BoxFuture<'_, Option<Assignment>>;

    /// Reports the result of an assignment, and completes when the scheduler has it.
    fn complete(&self, operation: String, response: reapi::ExecuteResponse) -> BoxFuture<'_, ()>;
}
