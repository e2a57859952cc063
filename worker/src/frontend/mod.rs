//! Where work comes from: one trait, an implementation a scheduler protocol.

pub mod bots;
pub mod buildbarn;
pub mod embedded;
mod instance;
pub mod nativelink;
mod pump;
mod reports;

use std::sync::Arc;

use futures::future::BoxFuture;
use longshore_cas_store::io::Clock;
use longshore_proto::reapi;

use crate::action::Assignment;
use crate::connect::Link;

pub use crate::connect::Backoff;
pub use pump::{Slots, pump};

/// A scheduler as the worker sees it.
///
/// An implementation drives its protocol by itself, from when it is made: it keeps its session, reports the progress
/// that an [`Assignment`] publishes, and fires an assignment's `cancelled` when the scheduler wants it no more. A
/// connection that is lost costs no assignment: the result is reported when there is one again.
///
/// Invariants that every implementation keeps:
/// 1. each assignment is yielded once, and completed once;
/// 2. `next` is cancel safe: an assignment is not lost when its future is dropped;
/// 3. after `next` has yielded nothing, it yields nothing again.
pub trait WorkSource: Send + Sync + 'static {
    /// The next action to run; nothing once the source drains and has nothing left to yield.
    fn next(&self) -> BoxFuture<'_, Option<Assignment>>;

    /// Reports the result of an assignment, and completes when the scheduler has it.
    fn complete(&self, operation: String, response: reapi::ExecuteResponse) -> BoxFuture<'_, ()>;

    /// Takes no more on, and says so to the scheduler; what was taken on goes on, and is reported.
    fn drain(&self);

    /// Leaves the scheduler, which hears of it where the protocol has a word for it; comes after `drain` and after the
    /// last completion, or in the middle of those that are given up.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// What the frontend of a scheduler elsewhere starts from.
#[derive(Clone)]
pub struct SchedulerOptions {
    /// The way to it.
    pub link: Link,
    /// The instance that the worker serves.
    pub instance_name: String,
    /// What this worker is called, the same after a restart.
    pub worker_name: String,
    /// Properties and their values, in the order of the configuration.
    pub platform: Vec<(String, String)>,
    /// How many actions it is offered at once.
    pub capacity: usize,
    /// The time.
    pub clock: Arc<dyn Clock>,
}
