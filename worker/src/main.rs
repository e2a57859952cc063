//! The `longshore` binary: wiring, nothing else.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use longshore_worker::cli::{self, Cli};
use longshore_worker::environment::Threads;
use longshore_worker::{cluster, config, replay, run, standalone, status_line};
use nix::sys::stat::{Mode, umask};

fn main() -> ExitCode {
    run::run_if_helper();
    match start(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            // Whoever read it may have gone.
            let _ = writeln!(std::io::stderr(), "longshore: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    // What people make by commands is theirs; elsewhere, modes are given where files are created, in full.
    if !matches!(cli.mode, Some(cli::Mode::Record(_) | cli::Mode::Replay(_))) {
        umask(Mode::empty());
    }
    status_line::start_logging()?;
    match cli.mode {
        None => {
            let prepared = standalone::prepare(cli.standalone)?;
            run_on(prepared.threads(), standalone::run(prepared))?;
        }
        Some(cli::Mode::Worker(args)) if args.print_config => {
            status_line::unless_gone(std::io::stdout().write_all(config::REFERENCE.as_bytes()))?;
        }
        Some(cli::Mode::Worker(args)) => {
            let prepared = cluster::prepare(args)?;
            run_on(prepared.threads(), cluster::run(prepared))?;
        }
        Some(cli::Mode::Record(args)) => {
            return run_on(Threads::of_this_machine(), replay::record(args));
        }
        Some(cli::Mode::Replay(args)) => {
            return run_on(Threads::of_this_machine(), replay::replay(args));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn run_on<T>(threads: Threads, mode: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.runtime)
        .max_blocking_threads(threads.blocking)
        .enable_all()
        .build()?;
    let ended = runtime.block_on(mode);
    // What is still being verified when somebody stops it is not waited for.
    runtime.shutdown_background();
    ended
}
