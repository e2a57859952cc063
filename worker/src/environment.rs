//! What the store is given, and what the process takes of the machine at most: threads and open files.
//!
//! The number of threads depends on the cores and the configuration alone, not on connections of clients, actions or
//! uploads.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use futures::future::BoxFuture;
use longshore_cas_store::io::{Clock, Environment, Executor, IoPool};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Handle;

/// The fewest threads for file-system work: calls wait for the disk, so even one core has use for several.
const IO_THREADS_MIN: usize = 4;

/// Threads for gRPC and timers; the work is done by the I/O threads and by the actions.
const RUNTIME_THREADS_MAX: usize = 4;
/// Threads for what may block and is no file-system work: giving up the root.
const BLOCKING_THREADS_MAX: usize = 2;
/// Connections for one scheduler: to itself, and two to its CAS.
const CONNECTIONS_A_SCHEDULER: usize = 3;
/// What of a connection may block for as long as a server elsewhere pleases: the lookup of its name, and reading its token.
const BLOCKING_A_CONNECTION: usize = 2;

/// Open files of the store and of trees that are being built.
const FILES_BASE: u64 = 256;
/// Open files of one action that runs.
const FILES_AN_ACTION: u64 = 16;
/// The most connections at once.
const CONNECTIONS_MAX: u64 = 1024;
/// The most uploads at once, with those that broke off and are kept.
const UPLOADS_MAX: u64 = 2048;
/// The fewest of either that are of any use.
const CONNECTIONS_MIN: u64 = 16;

/// The threads of this process, by kind, beside the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    /// Serve the wire and timers.
    pub runtime: usize,
    /// Wait for what is no file-system work; started when needed.
    pub blocking: usize,
    /// Make system calls on files.
    pub io: usize,
}

impl Threads {
    /// As many as suit this machine.
    pub fn of_this_machine() -> Self {
        let cores = cores();
        Self {
            runtime: cores.min(RUNTIME_THREADS_MAX),
            blocking: BLOCKING_THREADS_MAX,
            io: cores.max(IO_THREADS_MIN),
        }
    }

    /// With so many schedulers elsewhere, of which none is to wait for what another one's connections wait for.
    pub(crate) fn and_schedulers(self, count: usize) -> Self {
        let blocking = self.blocking + count * CONNECTIONS_A_SCHEDULER * BLOCKING_A_CONNECTION;
        Self { blocking, ..self }
    }

    /// All of them, with the first one.
    pub fn total(&self) -> usize {
        1 + self.runtime + self.blocking + self.io
    }
}

/// The cores of this machine that are ours to use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How many files may be open at once, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenFiles {
    pub(crate) limit: u64,
    pub(crate) connections_max: usize,
    pub(crate) uploads_max: usize,
}

impl OpenFiles {
    /// Raises the limit as far as it may be raised, and divides it up for `jobs` actions at once.
    ///
    /// Processes that are started later inherit the limit.
    pub(crate) fn raise_limit(jobs: usize) -> anyhow::Result<Self> {
        let (_, limit) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
        setrlimit(Resource::RLIMIT_NOFILE, limit, limit).context("cannot raise the limit of open files")?;
        Self::divide(limit, jobs)
    }

    fn divide(limit: u64, jobs: usize) -> anyhow::Result<Self> {
        let reserved = FILES_BASE + FILES_AN_ACTION * jobs as u64;
        let left = limit.saturating_sub(reserved);
        let connections = (left / 2).min(CONNECTIONS_MAX);
        if connections < CONNECTIONS_MIN {
            bail!(
                "{limit} open files are too few for {jobs} actions at once, which need {}: raise the limit \
                 (ulimit -Hn, LimitNOFILE=) or lower --jobs",
                reserved + 2 * CONNECTIONS_MIN
            );
        }
        let uploads = (left - connections).min(UPLOADS_MAX);
        Ok(Self {
            limit,
            connections_max: usize::try_from(connections)?,
            uploads_max: usize::try_from(uploads)?,
        })
    }
}

/// Builds the environment; tasks go to the runtime that this is called in.
///
/// # Errors
/// Threads that cannot be started.
pub(crate) fn environment(threads: Threads) -> Result<Environment, rayon::ThreadPoolBuildError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.io)
        .thread_name(|index| format!("io-{index}"))
        .build()?;
    Ok(Environment {
        io: IoPool::new(Arc::new(pool)),
        executor: Arc::new(TokioExecutor::current()),
        clock: Arc::new(MachineClock),
    })
}

/// Runs tasks on a runtime of tokio.
pub struct TokioExecutor(Handle);

impl TokioExecutor {
    /// On the runtime that this is called in.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn current() -> Self {
        Self(Handle::current())
    }
}

impl Executor for TokioExecutor {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.0.spawn(task);
    }
}

/// The time of the machine, and tokio's timers.
pub struct MachineClock;

impl Clock for MachineClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_actions_need_is_not_given_to_connections() {
        let divide = |limit, jobs| {
            OpenFiles::divide(limit, jobs).ok().map(|files| (files.connections_max, files.uploads_max))
        };
        assert_eq!(divide(1 << 20, 64), Some((1024, 2048)));
        assert_eq!(divide(4096, 4), Some((1024, 2048)));
        assert_eq!(divide(1024, 4), Some((352, 352)));
        assert_eq!(divide(256 + 16 + 32, 1), Some((16, 16)));
        assert_eq!(divide(256 + 16 + 31, 1), None);
        assert_eq!(divide(1024, 1000), None);
        assert_eq!(divide(u64::MAX, u16::MAX.into()), Some((1024, 2048)));
    }
}
