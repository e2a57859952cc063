//! What longshore may take of its machine: the same options in every mode, as flags, as variables and in a file.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::de::{Deserialize, Deserializer, Error as _};

use super::values::{Jobs, Name, Size, Span, Variable};

/// What an action may write to each of its streams, if nothing else is said, in bytes.
const LOG_BYTES_MAX: u64 = 1 << 30;
/// How long running actions may go on after the first signal to stop, if nothing else is said.
const DRAIN_TIME: Duration = Duration::from_mins(10);

/// What longshore may take of its machine, and how it runs actions there.
#[derive(Args, Clone, Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MachineOptions {
    /// Where to store; created if need be, used by one longshore at a time [default: the user's cache directory,
    /// ~/.cache/longshore].
    #[arg(long, value_name = "DIR", env = "LONGSHORE_ROOT")]
    #[serde(deserialize_with = "folder")]
    pub root: Option<PathBuf>,

    /// How many actions run at once [default: one a core].
    #[arg(long, value_name = "N", env = "LONGSHORE_JOBS", allow_negative_numbers = true)]
    pub jobs: Option<Jobs>,

    /// What the store may take on the disk, such as 50GB or 10GiB [default: half of what the store has and the disk
    /// has free].
    #[arg(long, value_name = "SIZE", env = "LONGSHORE_MAX_SIZE", allow_negative_numbers = true)]
    pub max_size: Option<Size>,

    /// What results say of where they come from, and a scheduler knows this worker by [default: the machine's name].
    #[arg(long, value_name = "NAME", env = "LONGSHORE_NAME")]
    pub name: Option<Name>,

    /// As root: the user that actions run as, by name [default: nobody]. Say root only if actions may do everything:
    /// they can then change what is cached, too.
    #[arg(long, value_name = "USER", env = "LONGSHORE_ACTION_USER")]
    pub action_user: Option<String>,

    /// How long a command may run whose action names no timeout, such as 90s, 15m or 2h [default: as long as
    /// --max-timeout allows].
    #[arg(long, value_name = "TIME", env = "LONGSHORE_DEFAULT_TIMEOUT")]
    pub default_timeout: Option<Span>,

    /// The longest timeout that an action may name; one that names more is refused [default: any].
    #[arg(long, value_name = "TIME", env = "LONGSHORE_MAX_TIMEOUT")]
    pub max_timeout: Option<Span>,

    /// Tell commands their platform in a variable of this name, as NAME=VALUE,NAME=VALUE. Bazel's reference worker
    /// does so in `BAZEL_REMOTE_PLATFORM` [default: commands get the variables of their Command and no more].
    #[arg(long, value_name = "VARIABLE", env = "LONGSHORE_PLATFORM_VARIABLE")]
    pub platform_variable: Option<Variable>,

    /// What an action may write to its standard output, and to its standard error; one that writes more is killed
    /// [default: 1GiB].
    #[arg(long, value_name = "SIZE", env = "LONGSHORE_MAX_LOG_SIZE")]
    pub max_log_size: Option<Size>,

    /// How long running actions may go on after the first signal to stop [default: 10m].
    #[arg(long, value_name = "TIME", env = "LONGSHORE_DRAIN_TIME")]
    pub drain_time: Option<Span>,
}

/// Reads a path that is not empty, as the command line does.
fn folder<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.as_os_str().is_empty() {
        return Err(D::Error::custom("expected a folder such as /var/cache/longshore"));
    }
    Ok(Some(path))
}

impl MachineOptions {
    /// These options, and where they say nothing, those of `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            root: self.root.or(other.root),
            jobs: self.jobs.or(other.jobs),
            max_size: self.max_size.or(other.max_size),
            name: self.name.or(other.name),
            action_user: self.action_user.or(other.action_user),
            default_timeout: self.default_timeout.or(other.default_timeout),
            max_timeout: self.max_timeout.or(other.max_timeout),
            platform_variable: self.platform_variable.or(other.platform_variable),
            max_log_size: self.max_log_size.or(other.max_log_size),
            drain_time: self.drain_time.or(other.drain_time),
        }
    }

    /// What an action may write to each of its streams.
    pub fn log_bytes_max(&self) -> u64 {
        self.max_log_size.map_or(LOG_BYTES_MAX, |size| size.bytes)
    }

    /// How long running actions may go on after the first signal to stop.
    pub fn drain_time(&self) -> Duration {
        self.drain_time.map_or(DRAIN_TIME, |time| time.0)
    }
}
