//! What the store is given: threads for system calls, tokio for its tasks, the time of the machine.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use longshore_cas_store::io::{Clock, Environment, Executor, IoPool};
use tokio::runtime::Handle;

/// The fewest threads for file-system work: calls wait for the disk, so even one core has use for several.
const IO_THREADS_MIN: usize = 4;

/// Builds the environment; tasks go to the runtime that this is called in.
///
/// # Errors
/// Threads that cannot be started.
pub(crate) fn environment() -> Result<Environment, rayon::ThreadPoolBuildError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(cores.max(IO_THREADS_MIN))
        .thread_name(|index| format!("io-{index}"))
        .build()?;
    Ok(Environment {
        io: IoPool::new(Arc::new(pool)),
        executor: Arc::new(TokioExecutor(Handle::current())),
        clock: Arc::new(MachineClock),
    })
}

struct TokioExecutor(Handle);

impl Executor for TokioExecutor {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.0.spawn(task);
    }
}

struct MachineClock;

impl Clock for MachineClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}
