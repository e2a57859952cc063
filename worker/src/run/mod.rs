//! Running commands: a helper process that starts, bounds, kills and reaps them.
//!
//! Longshore never forks an action itself: a multi-threaded process that forks leaks descriptors into children.
//! The [`Spawner`] asks a single-threaded helper process for *keepers*. A keeper starts a command, bounds, kills and
//! reaps it with everything that descends from it, and reports when nothing is left alive. That report is the proof
//! that nobody can still write the command's outputs, and that the keeper is free for another one: a few are kept. It
//! all ends with longshore: a keeper whose socket closes kills what it keeps.

mod child;
mod helper;
mod identity;
mod idle;
mod keeper;
mod kill;
mod passing;
mod spawner;
mod sys;
mod wire;

use std::ffi::CString;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

pub use helper::run_if_helper;
pub use identity::{Cover, DEFAULT_ACTION_USER, Identity, IdentityError};
pub use spawner::{Spawner, SpawnerOptions};

/// Where a program without a slash is looked up if the Command sets no `PATH`. The action does not see it.
pub const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Runs one command to its end, whatever that is.
pub trait Runner: Send + Sync + 'static {
    /// Runs `spec`; when `cancelled` fires, kills it. On return every descendant of the command is dead.
    ///
    /// Dropping the future kills the command too, in the background.
    fn run(&self, spec: RunSpec, cancelled: CancellationToken)
    -> BoxFuture<'_, Result<RunOutcome, RunError>>;
}

/// What to run, and in what.
#[derive(Debug)]
pub struct RunSpec {
    /// The arguments; the first names the program, which is looked up as REAPI's `Command.arguments` says.
    pub arguments: Vec<CString>,
    /// The whole environment as `NAME=value`; nothing is added to it.
    pub environment: Vec<CString>,
    /// The working directory, an absolute path.
    pub working_directory: PathBuf,
    /// Where stdout goes.
    pub stdout: File,
    /// Where stderr goes.
    pub stderr: File,
    /// How long the command may run; nothing for no bound.
    pub timeout: Option<Duration>,
}

/// How a command ended, and what it took.
#[derive(Clone, Debug)]
pub struct RunOutcome {
    /// How it ended.
    pub verdict: Verdict,
    /// When it was started.
    pub started: SystemTime,
    /// When it had ended and every descendant was dead.
    pub completed: SystemTime,
    /// How long it ran, by the clock that the timeout is measured with.
    pub duration: Duration,
    /// What it and its descendants used.
    pub usage: Usage,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It exited with that code.
    Exited(i32),
    /// That signal killed it.
    Signaled(i32),
    /// The timeout passed and it was killed.
    TimedOut,
    /// It was cancelled and killed.
    Cancelled,
}

/// Resources of a command and the descendants that it waited for (`getrusage`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time in user mode.
    pub user_time: Duration,
    /// Processor time in the kernel.
    pub system_time: Duration,
    /// The largest resident set of one process, in bytes.
    pub resident_bytes_max: u64,
}

/// Why a command was not run, or its end is not known.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RunError {
    /// The program cannot be executed: the client's error.
    #[error("Command.arguments[0]: cannot execute {program:?}: {reason}")]
    Program {
        /// `arguments[0]`.
        program: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Arguments and environment are larger than the kernel takes: the client's error.
    #[error("Command.arguments and environment_variables: too long, {0} bytes in all")]
    TooLong(usize),
    /// The worker could not start it.
    #[error("cannot start the command: {stage}: {errno}")]
    Start {
        /// Which step failed.
        stage: String,
        /// Why.
        errno: nix::errno::Errno,
    },
    /// The helper process is gone, or the command's keeper was killed.
    #[error("the command was lost: {0}")]
    Lost(String),
}
