//! The command line, and the environment variables behind it.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand};

use crate::config::MachineOptions;
use crate::frontend::embedded::Endpoint;
use crate::replay::{RecordArgs, ReplayArgs};

const LONG_ABOUT: &str = "\
A Remote Execution API endpoint that runs actions on this machine.

Without arguments, longshore listens on loopback, stores in the user's cache directory and runs as many actions at \
once as the machine has cores. Point Bazel at it:

    bazel build --remote_executor=grpc://127.0.0.1:8980 //...

It is the cache, the action cache, the scheduler and the worker of one machine. Ctrl-C lets running actions end and \
stops; a second Ctrl-C stops at once. LONGSHORE_LOG sets what is logged: error, warn (the default at a terminal), info \
(the default elsewhere: a line for each action) or debug.";

const WORKER_ABOUT: &str = "\
Works for schedulers elsewhere: takes actions from them, runs them here, and puts outputs where their clients read.

The file says which schedulers, and `longshore worker --print-config` prints one in which every field is explained. \
SIGTERM or Ctrl-C lets running actions end, reports them and stops; a second one gives them back at once.";

/// What `longshore` is told on its command line.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "longshore",
    version,
    about = "A Remote Execution API endpoint that runs actions on this machine.",
    long_about = LONG_ABOUT,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What the standalone mode is told.
    #[command(flatten)]
    pub standalone: StandaloneArgs,

    /// Another mode.
    #[command(subcommand)]
    pub mode: Option<Mode>,
}

/// What longshore can be or do beside standalone.
#[derive(Clone, Debug, Subcommand)]
pub enum Mode {
    /// Works for schedulers elsewhere, as a file says.
    #[command(long_about = WORKER_ABOUT)]
    Worker(WorkerArgs),
    #[expect(missing_docs, reason = "what is said of it stands with its arguments")]
    Record(RecordArgs),
    #[expect(missing_docs, reason = "what is said of it stands with its arguments")]
    Replay(ReplayArgs),
}

/// What `longshore worker` is told.
#[derive(Args, Clone, Debug)]
pub struct WorkerArgs {
    /// The configuration; the flags below go before what it says.
    #[arg(long, value_name = "FILE", env = "LONGSHORE_CONFIG", required_unless_present = "print_config")]
    pub config: Option<PathBuf>,

    /// Print a configuration in which every field is explained, and stop.
    #[arg(long)]
    pub print_config: bool,

    /// Its part of the machine.
    #[command(flatten)]
    pub machine: MachineOptions,
}

/// What the standalone mode is told.
#[derive(Args, Clone, Debug)]
pub struct StandaloneArgs {
    /// Where to listen; port 0 takes a free one. A Unix socket is created with mode 0600.
    #[arg(
        long,
        value_name = "ADDR:PORT|unix:PATH",
        default_value = "127.0.0.1:8980",
        env = "LONGSHORE_LISTEN"
    )]
    pub listen: Endpoint,

    /// Its part of the machine.
    #[command(flatten)]
    pub machine: MachineOptions,

    /// Run actions whatever `OSFamily` and `ISA` their platform asks for, as Bazel's reference worker does [default: those
    /// that ask for another machine than this are refused].
    #[arg(long, env = "LONGSHORE_ANY_PLATFORM", value_parser = BoolishValueParser::new())]
    pub any_platform: bool,

    /// Allow an address in --listen that other machines can reach. There is no authentication: ANYONE WHO REACHES
    /// THE PORT RUNS COMMANDS on this machine and can read and write its cache.
    #[arg(long, env = "LONGSHORE_ALLOW_REMOTE_CLIENTS", value_parser = BoolishValueParser::new())]
    pub allow_remote_clients: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    // The binary's name, which is not the package's.
    #[test]
    fn the_version_is_longshores() {
        assert_eq!(Cli::command().render_version(), concat!("longshore ", env!("CARGO_PKG_VERSION"), "\n"));
    }

    // A flag before the word belongs to the other mode, and would be passed over.
    #[test]
    fn modes_do_not_mix() {
        let parse = |arguments: &str| Cli::try_parse_from(arguments.split(' '));
        assert!(parse("longshore --jobs 3").unwrap().mode.is_none());
        assert!(parse("longshore worker --config x --jobs 3").unwrap().mode.is_some());
        assert!(parse("longshore worker --print-config").is_ok());
        assert!(parse("longshore --jobs 3 worker --config x").is_err());
        assert!(parse("longshore worker").is_err());
    }

    #[test]
    fn endpoints_are_addresses_or_sockets() {
        assert!("127.0.0.1:0".parse::<Endpoint>().unwrap().is_local());
        assert!("[::1]:80".parse::<Endpoint>().unwrap().is_local());
        assert!("unix:/run/x".parse::<Endpoint>().unwrap().is_local());
        assert!(!"0.0.0.0:80".parse::<Endpoint>().unwrap().is_local());
        for text in ["", "unix:", "127.0.0.1", ":8980", "example.org:80"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
