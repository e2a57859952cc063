//! The command line, and the environment variables behind it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use clap::builder::BoolishValueParser;

use crate::frontend::embedded::Endpoint;

const LONG_ABOUT: &str = "\
A Remote Execution API endpoint that runs actions on this machine.

Without arguments, longshore listens on loopback, stores in the user's cache directory and runs as many actions at \
once as the machine has cores. Point Bazel at it:

    bazel build --remote_executor=grpc://127.0.0.1:8980 //...

It is the cache, the action cache, the scheduler and the worker of one machine. Ctrl-C lets running actions end and \
stops; a second Ctrl-C stops at once. LONGSHORE_LOG sets what is logged: error, warn, info (the default) or debug.";

/// What `longshore` is told on its command line.
#[derive(Clone, Debug, Parser)]
#[command(
    version,
    about = "A Remote Execution API endpoint that runs actions on this machine.",
    long_about = LONG_ABOUT,
    max_term_width = 100
)]
pub struct Cli {
    /// Where to listen; port 0 takes a free one. A Unix socket is created with mode 0600.
    #[arg(
        long,
        value_name = "ADDR:PORT|unix:PATH",
        default_value = "127.0.0.1:8980",
        env = "LONGSHORE_LISTEN"
    )]
    pub listen: Endpoint,

    /// Where to store; created if need be, used by one longshore at a time [default: the user's cache directory,
    /// ~/.cache/longshore].
    #[arg(long, value_name = "DIR", env = "LONGSHORE_ROOT")]
    pub root: Option<PathBuf>,

    /// How many actions run at once [default: one a core].
    #[arg(long, value_name = "N", env = "LONGSHORE_JOBS", value_parser = parse_jobs)]
    pub jobs: Option<u16>,

    /// What the store may take on the disk, such as 50GB or 10GiB [default: half of what the store has and the disk
    /// has free].
    #[arg(long, value_name = "SIZE", env = "LONGSHORE_MAX_SIZE", value_parser = parse_size)]
    pub max_size: Option<u64>,

    /// As root: the user that actions run as, by name [default: nobody]. Say root only if actions may do everything:
    /// they can then change what is cached, too.
    #[arg(long, value_name = "USER", env = "LONGSHORE_ACTION_USER")]
    pub action_user: Option<String>,

    /// How long a command may run whose action names no timeout, such as 90s, 15m or 2h [default: as long as
    /// --max-timeout allows].
    #[arg(long, value_name = "TIME", env = "LONGSHORE_DEFAULT_TIMEOUT", value_parser = parse_time)]
    pub default_timeout: Option<Duration>,

    /// The longest timeout that an action may name; one that names more is refused [default: any].
    #[arg(long, value_name = "TIME", env = "LONGSHORE_MAX_TIMEOUT", value_parser = parse_time)]
    pub max_timeout: Option<Duration>,

    /// Tell commands their platform in a variable of this name, as NAME=VALUE,NAME=VALUE. Bazel's reference worker
    /// does so in `BAZEL_REMOTE_PLATFORM` [default: commands get the variables of their Command and no more].
    #[arg(long, value_name = "VARIABLE", env = "LONGSHORE_PLATFORM_VARIABLE", value_parser = parse_variable)]
    pub platform_variable: Option<String>,

    /// What an action may write to its standard output, and to its standard error; one that writes more is killed.
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "1GiB",
        env = "LONGSHORE_MAX_LOG_SIZE",
        value_parser = parse_size
    )]
    pub max_log_size: u64,

    /// Allow an address in --listen that other machines can reach. There is no authentication: ANYONE WHO REACHES
    /// THE PORT RUNS COMMANDS on this machine and can read and write its cache.
    #[arg(long, env = "LONGSHORE_ALLOW_REMOTE_CLIENTS", value_parser = BoolishValueParser::new())]
    pub allow_remote_clients: bool,
}

fn parse_jobs(text: &str) -> Result<u16, String> {
    let jobs = text.trim().parse().ok().filter(|jobs| *jobs > 0);
    jobs.ok_or_else(|| format!("expected a number from 1 to {}", u16::MAX))
}

/// The smallest store that is of any use, in bytes.
const SIZE_MIN: u64 = 1 << 20;

/// Parses `50GB`, `10GiB`, `1048576`: a number and a unit, of 1000 or of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err("expected a number with kB, MB, GB, TB, KiB, MiB, GiB or TiB".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| "expected a number such as 50GB or 1.5TiB".to_owned())?;
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "digits and a dot make no negative number, and a size needs no precision of one byte"
    )]
    let bytes = (number * factor as f64) as u64;
    if bytes < SIZE_MIN {
        return Err(format!("{bytes} bytes are too few; at least 1MiB"));
    }
    Ok(bytes)
}

/// Parses `90s`, `15m`, `2h`: a whole number and a unit.
fn parse_time(text: &str) -> Result<Duration, String> {
    let expected = || "expected a time such as 90s, 15m or 2h".to_owned();
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        _ => return Err(expected()),
    };
    let number: u64 = number.parse().map_err(|_| expected())?;
    match number.checked_mul(seconds) {
        Some(seconds @ 1..) => Ok(Duration::from_secs(seconds)),
        _ => Err(expected()),
    }
}

/// A name that a shell takes for a variable.
fn parse_variable(text: &str) -> Result<String, String> {
    let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    if text.starts_with(is_letter) && text.chars().all(|c| is_letter(c) || c.is_ascii_digit()) {
        Ok(text.to_owned())
    } else {
        Err("expected the name of a variable, such as BAZEL_REMOTE_PLATFORM".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_units_of_1000_and_of_1024() {
        let cases = [
            ("50GB", 50_000_000_000),
            ("10GiB", 10 << 30),
            ("1.5tib", 3 << 39),
            ("2000000", 2_000_000),
            ("3 M", 3_000_000),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "-5GB", "5 parsecs", "1..2GB", "12", "0GB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_have_units() {
        for (text, seconds) in [("90s", 90), ("15m", 900), (" 2h ", 7200)] {
            assert_eq!(parse_time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in
            ["", "s", "5", "0s", "-1s", "1.5s", "1d", "1 s", "99999999999999999999s", "5124095576030432h"]
        {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn at_least_one_action_runs() {
        assert_eq!((parse_jobs("1"), parse_jobs("65535")), (Ok(1), Ok(65535)));
        for text in ["", "0", "-1", "65536", "all"] {
            assert!(parse_jobs(text).is_err(), "{text}");
        }
    }

    #[test]
    fn variables_have_names_that_shells_take() {
        for text in ["A", "_", "BAZEL_REMOTE_PLATFORM", "a1"] {
            assert_eq!(parse_variable(text), Ok(text.to_owned()));
        }
        for text in ["", "1a", "A=B", "A B", "Ä"] {
            assert!(parse_variable(text).is_err(), "{text}");
        }
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
