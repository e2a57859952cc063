//! The `longshore` binary: wiring, nothing else.

use std::process::ExitCode;

use clap::Parser as _;
use longshore_worker::cli::Cli;
use longshore_worker::{run, standalone, status_line};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};

/// Threads for gRPC and timers; the work is done by the I/O threads and by the actions.
const RUNTIME_THREADS_MAX: usize = 4;
/// Threads for what may block and is no file-system work: giving up the root.
const BLOCKING_THREADS_MAX: usize = 2;

fn main() -> ExitCode {
    run::run_if_helper();
    match start(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("longshore: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    // Modes are given where files are created, in full.
    umask(Mode::empty());
    let prepared = standalone::prepare(cli)?;
    // Only now: actions keep the limit that longshore was started with.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    status_line::start_logging();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(RUNTIME_THREADS_MAX))
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()?;
    runtime.block_on(standalone::run(prepared))
}
