//! What the store is given instead of taking it from the air: threads for system calls, a place to run
//! tasks, and the time.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::channel::oneshot;
use futures::future::BoxFuture;

/// A few dedicated threads for file-system work, fork-join inside.
///
/// Work is handed over as whole plans (a tree to build, a batch of blobs to write), never one hop a system
/// call: at 5 µs a link, the hop would cost more than the call. Jobs must not wait for other jobs.
#[derive(Clone)]
pub struct IoPool(Arc<rayon::ThreadPool>);

impl IoPool {
    /// Uses `pool`, which the caller built and may share.
    pub fn new(pool: Arc<rayon::ThreadPool>) -> Self {
        Self(pool)
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.0.current_num_threads()
    }

    /// Runs `job` on the pool and yields its result. The job runs to its end even if the future is dropped.
    ///
    /// # Panics
    /// If `job` panics.
    pub async fn run<T, F>(&self, job: F) -> T
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        self.0.spawn(move || {
            // A caller that left does not want the result any more.
            let _ = sender.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)));
        });
        match receiver.await.expect("the pool outlives its jobs") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs `job` on the pool with nobody waiting for it.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        self.0.spawn(job);
    }

    /// Runs `job` on the pool, blocking this thread; inside, [`rayon::scope`] forks over the pool's threads.
    pub fn install<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        self.0.install(job)
    }
}

impl fmt::Debug for IoPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoPool").field("threads", &self.threads()).finish()
    }
}

/// Runs tasks that must go on when the caller that started them has left.
pub trait Executor: Send + Sync + 'static {
    /// Starts `task`.
    fn spawn(&self, task: BoxFuture<'static, ()>);
}

/// The time, and waiting for it.
pub trait Clock: Send + Sync + 'static {
    /// The time of day.
    fn now(&self) -> SystemTime;

    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// All of it, as it is handed to the store.
#[derive(Clone)]
pub struct Environment {
    /// Threads for system calls.
    pub io: IoPool,
    /// Where tasks run.
    pub executor: Arc<dyn Executor>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").field("io", &self.io).finish_non_exhaustive()
    }
}
