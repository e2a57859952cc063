//! The `longshore` binary: wiring, nothing else.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use longshore_worker::cli::Cli;
use longshore_worker::{run, standalone, status_line};
use nix::sys::stat::{Mode, umask};

fn main() -> ExitCode {
    run::run_if_helper();
    match start(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever read it may have gone.
            let _ = writeln!(std::io::stderr(), "longshore: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    // Modes are given where files are created, in full.
    umask(Mode::empty());
    status_line::start_logging()?;
    let prepared = standalone::prepare(cli)?;
    let threads = prepared.threads();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.runtime)
        .max_blocking_threads(threads.blocking)
        .enable_all()
        .build()?;
    runtime.block_on(standalone::run(prepared))
}
