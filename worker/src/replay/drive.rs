//! The executions themselves: as many as there are to be, as many at once as there may be.

use std::time::Duration;

use futures::StreamExt as _;
use longshore_cas_store::digest::Digest;
use longshore_proto::error_details::{Detail as _, PreconditionFailure};
use longshore_proto::reapi;
use tokio::time::{Instant, interval_at, sleep_until};
use tonic::Code;

use super::compare::is_error;
use super::outcome::Outcome;
use super::pace::Pace;
use super::prepare::Prepared;
use super::recording::{RecordedAction, Recording};
use super::server::Server;
use super::tally::{Stop, Tally};
use crate::remote::RemoteError;
use crate::status_line::Bar;

/// Failures in a row after which the server is left alone.
const FAILURES_IN_A_ROW_MAX: u32 = 100;
/// How often one execution is given again what the server has lost.
const SUPPLIES_MAX: u32 = 4;
/// How often a log, which has no bar, hears how far it is.
const LINE_EVERY: Duration = Duration::from_mins(1);

/// What is executed, how often, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) pace: Pace,
    pub(crate) jobs: usize,
    pub(crate) repeat: u32,
    /// How many of the executions are left out, from the first on.
    pub(crate) skip: u64,
    /// After which time none is begun any more.
    pub(crate) time_max: Option<Duration>,
}

impl Plan {
    /// How many executions of so many actions there are to be.
    pub(crate) fn executions(&self, actions: usize) -> u64 {
        self.all(actions).saturating_sub(self.skip)
    }

    /// Those that are left out included.
    pub(crate) fn all(&self, actions: usize) -> u64 {
        actions as u64 * u64::from(self.repeat)
    }
}

/// One execution of one action.
#[derive(Clone, Copy)]
struct Turn {
    /// Of all executions, those that are left out included.
    number: u64,
    /// Of the action, in the recording.
    index: usize,
    uncached: Digest,
    /// Counted from the first one; nothing where it starts as soon as another one has ended.
    start: Option<Duration>,
}

/// How a turn ended.
pub(crate) struct Ended {
    pub(crate) number: u64,
    pub(crate) index: usize,
    /// What there is to compare, or why there is nothing.
    pub(crate) outcome: Result<Outcome, Failure>,
    pub(crate) metadata: Option<reapi::ExecutedActionMetadata>,
    pub(crate) took: Duration,
    /// How much later it began than it should have.
    pub(crate) late: Duration,
}

/// Why an execution has no result.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) reason: String,
}

impl Failure {
    fn new(code: Code, reason: String) -> Self {
        Self { code, reason }
    }
}

/// Executes everything, until the end, until the time is up or until `interrupted`; what ended goes to `tally`.
pub(crate) async fn drive(
    replay: &Replay<'_>,
    interrupted: impl Future<Output = ()>,
    tally: &mut Tally,
    bar: &Bar,
) {
    let started = Instant::now();
    let mut ended = futures::stream::iter(replay.futures_from(started)).buffer_unordered(replay.plan.jobs);
    tokio::pin!(interrupted);
    let mut lines = interval_at(started + LINE_EVERY, LINE_EVERY);
    let stop = loop {
        let ended = tokio::select! {
            ended = ended.next() => ended,
            _ = lines.tick() => {
                bar.line(&replay.progress(tally, started));
                continue;
            }
            () = &mut interrupted => break Some(Stop::Interrupted),
        };
        let Some(ended) = ended else {
            break (tally.executions < replay.planned()).then_some(Stop::Time);
        };
        tally.add(ended);
        bar.step();
        bar.message(&replay.in_short(tally, started));
        if tally.failures_in_a_row >= FAILURES_IN_A_ROW_MAX {
            break Some(Stop::Failures);
        }
    };
    tally.stopped(stop, started.elapsed());
}

/// What the executions have in common.
pub(crate) struct Replay<'r> {
    pub(crate) server: &'r Server,
    pub(crate) recording: &'r Recording,
    pub(crate) prepared: &'r Prepared,
    pub(crate) plan: Plan,
}

impl Replay<'_> {
    fn planned(&self) -> u64 {
        self.plan.executions(self.prepared.ready.len())
    }

    /// The executions that are to be, begun as they are asked for; none of them after the time is up.
    fn futures_from(&self, started: Instant) -> impl Iterator<Item = impl Future<Output = Ended>> {
        let until = self.plan.time_max.map(|time_max| started + time_max);
        let mut turns = self.turns().skip(usize::try_from(self.plan.skip).unwrap_or(usize::MAX)).peekable();
        // Whoever goes on with a replay does not wait for what is left out.
        let begin = turns.peek().and_then(|turn| turn.start).unwrap_or_default();
        let turns = turns
            .map(move |turn| Turn { start: turn.start.map(|start| start.saturating_sub(begin)), ..turn });
        // One whose place becomes free too late begins then, and not when it should have.
        let begins = move |turn: &Turn| {
            let now = Instant::now();
            turn.start.map_or(now, |start| now.max(started + start))
        };
        let turns = turns.take_while(move |turn| until.is_none_or(|until| begins(turn) < until));
        turns.map(move |turn| self.take(turn, started))
    }

    /// What a line of a log says.
    fn progress(&self, tally: &Tally, started: Instant) -> String {
        let (ended, planned) = (tally.executions, self.planned());
        let more = self.in_short(tally, started);
        format!("{ended} of {planned} executions have ended {more}").trim_end().to_owned()
    }

    /// What there is to say beside how many have ended.
    fn in_short(&self, tally: &Tally, started: Instant) -> String {
        let mut parts = Vec::new();
        if tally.failed > 0 {
            parts.push(format!("{} failed", tally.failed));
        }
        if let Some(time_max) = self.plan.time_max {
            let left_s = time_max.saturating_sub(started.elapsed()).as_secs();
            parts.push(format!("{}:{:02} left of the time", left_s / 60, left_s % 60));
        }
        if parts.is_empty() { String::new() } else { format!("({})", parts.join(", ")) }
    }

    /// All executions, a repetition after the other.
    fn turns(&self) -> impl Iterator<Item = Turn> {
        let actions = &self.recording.actions;
        let span = actions.iter().map(|action| action.start).max().unwrap_or_default();
        let repetitions = 0..self.plan.repeat;
        let all = repetitions
            .flat_map(|repetition| self.prepared.ready.iter().map(move |ready| (repetition, *ready)));
        all.zip(0..).map(move |((repetition, (index, uncached)), number)| {
            let start = self.plan.pace.start(number, actions[index].start, span, repetition);
            Turn { number, index, uncached, start }
        })
    }

    async fn take(&self, turn: Turn, started: Instant) -> Ended {
        let due = turn.start.map(|start| started + start);
        if let Some(due) = due {
            sleep_until(due).await;
        }
        let began = Instant::now();
        let late = due.map(|due| began - due).unwrap_or_default();
        let recorded = &self.recording.actions[turn.index];
        let (outcome, metadata) = match self.execute(recorded, turn.uncached).await {
            Ok(response) => {
                let result = response.result.as_ref();
                let metadata = result.and_then(|result| result.execution_metadata.clone());
                (outcome(recorded, &response), metadata)
            }
            Err(failure) => (Err(failure), None),
        };
        Ended { number: turn.number, index: turn.index, outcome, metadata, took: began.elapsed(), late }
    }

    /// Executes one action; what the server has lost of it meanwhile is uploaded again, as every client has to.
    async fn execute(
        &self,
        recorded: &RecordedAction,
        uncached: Digest,
    ) -> Result<reapi::ExecuteResponse, Failure> {
        let mut supplies = 0;
        loop {
            let answer = self.server.remote.execute(&uncached).await;
            let lacks_blobs = match &answer {
                Ok(response) => lacks_blobs(response),
                // The details of what is missing do not come this far.
                Err(error) => matches!(error.code(), Some(Code::FailedPrecondition | Code::NotFound)),
            };
            if lacks_blobs && supplies < SUPPLIES_MAX {
                supplies += 1;
                let resent = self.prepared.supply_again(self.server, recorded, uncached).await;
                if resent.map_err(|error| Failure::new(Code::FailedPrecondition, format!("{error:#}")))? {
                    continue;
                }
            }
            return answer.map_err(|error| {
                let code = error.code().unwrap_or(Code::Unknown);
                Failure::new(code, short(&error, code))
            });
        }
    }
}

/// Without the server's address, which is the same for all, and the code, which stands before it.
fn short(error: &RemoteError, code: Code) -> String {
    match error {
        RemoteError::Unavailable { reason, .. } | RemoteError::Refused { reason, .. } => {
            reason.strip_prefix(&format!("{code:?}: ")).unwrap_or(reason).to_owned()
        }
        other => other.to_string(),
    }
}

fn lacks_blobs(response: &reapi::ExecuteResponse) -> bool {
    let Some(status) = &response.status else { return false };
    let names_blobs = || {
        let failures = status.details.iter().filter_map(PreconditionFailure::from_any);
        failures.flat_map(|failure| failure.violations).any(|violation| violation.r#type == "MISSING")
    };
    status.code == i32::from(Code::FailedPrecondition) && names_blobs()
}

/// What there is to compare of a response.
fn outcome(recorded: &RecordedAction, response: &reapi::ExecuteResponse) -> Result<Outcome, Failure> {
    let outcome = Outcome::of(response, recorded.digest.function())
        .map_err(|error| Failure::new(Code::DataLoss, format!("the server's result: {error}")))?;
    if is_error(&outcome, recorded.outcome.as_ref()) {
        let message = response.status.as_ref().map(|status| status.message.as_str()).unwrap_or_default();
        return Err(Failure::new(outcome.status, message.to_owned()));
    }
    Ok(outcome)
}
