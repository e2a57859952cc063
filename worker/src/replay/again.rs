//! `longshore replay`: actions that ran once, run again on a server, and compared.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context as _;
use clap::Args;

use super::drive::{Plan, Replay, drive};
use super::look::Look;
use super::pace::{Pace, parse_positive};
use super::prepare::prepare;
use super::print::{check_writable, print};
use super::recording::Recording;
use super::report::{Report, Run};
use super::server::{ServerArgs, is_of_the_server};
use super::tally::Tally;
use super::verdict::Verdict;
use super::{open, tell};
use crate::config::Span;
use crate::signals::Signals;
use crate::status_line::{Bar, say};

/// What blobs on their way take on our disk; larger ones cannot be uploaded.
const STORE_BYTES_MAX: u64 = 4 << 30;
/// Executions at once where each starts at its own time, unless --jobs says otherwise.
const JOBS_OPEN: usize = 1000;
/// Executions at once otherwise.
const JOBS_CLOSED: usize = 16;

/// Run recorded actions again, on any server, and compare the results
///
/// Reads a log of Bazel's (--remote_grpc_log=FILE, or --experimental_remote_grpc_log=FILE in older versions), a list of
/// action digests, a bundle that `longshore record` made, or an action directory that remotetool downloaded. Uploads what
/// the server lacks, where the recording has it, and executes every action with `do_not_cache`.
///
/// Exit codes, the first that applies: 4 executions failed, or the server lacks something or cannot be used; 3 results differ from the
/// recording; 2 the recording, or a part of it, is not what it should be (what could be read was replayed); 5 results of
/// one action differ from each other; 0 all are equal. 1 is an error of longshore's own, 130 an interruption.
#[expect(clippy::doc_markdown, reason = "it is what --help says, and no Markdown")]
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// A log, a list of digests, a bundle or an action directory; - reads a list of digests from stdin.
    #[arg(value_name = "RECORDING")]
    pub recording: PathBuf,

    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,

    /// How many executions there are at once, at most [default: 16; 1000 with --speed and --rate].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), allow_negative_numbers = true)]
    pub jobs: Option<u16>,

    /// How often each action is executed.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    pub repeat: u32,

    /// Start actions at the times that were recorded, so many times as fast.
    #[arg(long, value_name = "FACTOR", value_parser = parse_positive, conflicts_with = "rate", allow_negative_numbers = true)]
    pub speed: Option<f64>,

    /// Start so many actions a second.
    #[arg(long, value_name = "PER_SECOND", value_parser = parse_positive, allow_negative_numbers = true)]
    pub rate: Option<f64>,

    /// Start no execution after that time, such as 90s, 30m or 2h; those that run then are waited for.
    #[arg(long = "for", value_name = "TIME")]
    pub time_max: Option<Span>,

    /// Leave out the first N executions: go on with a replay that was ended, whose report says with which N.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub skip: u64,

    /// Write the report as JSON, too; - writes it to stdout, in place of the text.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl ReplayArgs {
    fn plan(&self) -> Plan {
        let pace = match (self.speed, self.rate) {
            (Some(speed), _) => Pace::Recorded { speed },
            (None, Some(per_second)) => Pace::Rate { per_second },
            (None, None) => Pace::Closed,
        };
        let jobs_default = if pace == Pace::Closed { JOBS_CLOSED } else { JOBS_OPEN };
        Plan {
            pace,
            jobs: self.jobs.map_or(jobs_default, usize::from),
            repeat: self.repeat,
            skip: self.skip,
            time_max: self.time_max.map(|span| span.0),
        }
    }
}

/// Replays a recording and prints what came of it.
///
/// # Errors
/// What longshore itself could not do. What is wrong with the recording or the server is in the exit code, and said.
pub async fn replay(args: ReplayArgs) -> anyhow::Result<ExitCode> {
    if let Some(reason) = args.server.mistake() {
        tell(&reason);
        return Ok(Verdict::BadInput.into());
    }
    let mut recording = match Recording::open(&args.recording) {
        Ok(recording) => recording,
        Err(error) => {
            tell(&error.to_string());
            return Ok(Verdict::BadInput.into());
        }
    };
    if let Some(path) = args.json.as_deref().filter(|path| *path != Path::new("-")) {
        // Not after hours.
        check_writable(path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    // Whoever stops it from here on leaves nothing behind.
    let mut signals = Signals::new()?;
    let Some(server) = open(&args.server, &std::env::temp_dir(), STORE_BYTES_MAX)? else {
        return Ok(Verdict::BadInput.into());
    };
    let bar = Bar::spinner();
    let prepared = tokio::select! {
        prepared = prepare(&server, &recording, &bar) => prepared,
        () = signals.next() => {
            drop(bar);
            say("interrupted before the first execution");
            return Ok(Verdict::Interrupted.into());
        }
    };
    drop(bar);
    let prepared = match prepared {
        Err(error) if is_of_the_server(&error) => {
            tell(&format!("{error:#}"));
            return Ok(Verdict::Errors.into());
        }
        prepared => prepared?,
    };
    let plan = args.plan();
    let mut tally = Tally::new(recording.actions.len(), plan.skip);
    let began = SystemTime::now();
    let replay = Replay { server: &server, recording: &recording, prepared: &prepared, plan };
    let planned = plan.executions(prepared.ready.len());
    if planned == 0 && !prepared.ready.is_empty() {
        say(&format!("--skip {} leaves nothing of {} executions", plan.skip, plan.all(prepared.ready.len())));
        return Ok(Verdict::BadInput.into());
    }
    let bar = Bar::steps(planned);
    drive(&replay, signals.next(), &mut tally, &bar).await;
    drop(bar);
    // The server may be gone by then, or slow.
    let bar = Bar::spinner();
    let mut look = Look::new(&recording, &tally);
    let is_interrupted = tokio::select! {
        () = look.run(&server, &mut recording, &mut tally, &bar) => false,
        () = signals.next() => true,
    };
    drop(bar);
    if is_interrupted {
        say("interrupted: not all folders that differ are looked into");
    }
    let unread = look.unread();
    let remote = server.remote.stats();
    let run = Run { args: &args, began, remote, unread: &unread };
    let report = Report::of(&run, &recording, &prepared, plan, tally);
    tokio::select! {
        printed = print(&report, args.json.as_deref()) => printed?,
        () = signals.next() => {
            say("interrupted: the report is not all written");
            return Ok(Verdict::Interrupted.into());
        }
    }
    if report.verdict() == Verdict::Interrupted {
        say("interrupted: the report is of what had ended");
    }
    Ok(report.verdict().into())
}
