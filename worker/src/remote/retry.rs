//! What is tried again, when, and how often.
//!
//! An outage (`UNAVAILABLE`, or a connection that breaks) is waited out by the clock: a server that is gone for minutes
//! must not cost an action that has run. Other passing faults have a number of attempts each, and a budget that all calls
//! share: a server that fails every call hears at most a few times more of them. What is the request's own fault is never
//! repeated.

use std::time::{Duration, SystemTime};

use longshore_proto::error_details::retry_delay;
use longshore_proto::{Message as _, rpc};
use parking_lot::Mutex;
use tonic::{Code, Status};

use crate::connect::{Backoff, is_broken};

/// Attempts at a call that fails with anything but an outage.
const ATTEMPTS_MAX: u32 = 5;
/// The pauses between attempts.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(10));
/// Retries that calls may use up before successes earn new ones.
const BUDGET_MAX: f64 = 100.0;
/// What a success earns.
const BUDGET_EARNED: f64 = 0.1;

/// Whether a failure can pass by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nobody is there.
    Outage,
    /// Something went wrong over there.
    Passing,
    /// It will be the same again.
    Lasting,
}

/// What a status is, and when the server wants to be asked again.
pub(super) fn kind(status: &Status) -> (Kind, Option<Duration>) {
    let delay = rpc::Status::decode(status.details()).ok().as_ref().and_then(retry_delay);
    let kind = match status.code() {
        // Behind something that accepts connections for a server that is gone, that is all that there is to see.
        _ if is_broken(status) => Kind::Outage,
        Code::Unavailable => Kind::Outage,
        Code::ResourceExhausted if delay.is_some() => Kind::Passing,
        // A server that ends resets its streams, which tonic calls cancelled.
        Code::Aborted | Code::Internal | Code::Unknown | Code::DeadlineExceeded | Code::Cancelled => {
            Kind::Passing
        }
        _ => Kind::Lasting,
    };
    (kind, delay)
}

/// The retries that all calls share.
pub(super) struct Budget(Mutex<f64>);

impl Budget {
    pub(super) fn new() -> Self {
        Self(Mutex::new(BUDGET_MAX))
    }

    fn earn(&self) {
        let mut left = self.0.lock();
        *left = (*left + BUDGET_EARNED).min(BUDGET_MAX);
    }

    fn spend(&self) -> bool {
        let mut left = self.0.lock();
        let is_left = *left >= 1.0;
        if is_left {
            *left -= 1.0;
        }
        is_left
    }
}

/// The attempts at one call.
pub(super) struct Attempts<'b> {
    budget: &'b Budget,
    outage_max: Duration,
    outage_since: Option<SystemTime>,
    failed: u32,
    has_another_token: bool,
    /// Failures in a row, of any kind.
    backoff: Backoff,
}

impl<'b> Attempts<'b> {
    pub(super) fn new(budget: &'b Budget, outage_max: Duration) -> Self {
        Self { budget, outage_max, outage_since: None, failed: 0, has_another_token: false, backoff: BACKOFF }
    }

    /// The call has come on: what failed before was another fault.
    pub(super) fn progressed(&mut self) {
        (self.outage_since, self.failed, self.backoff) = (None, 0, BACKOFF);
    }

    /// The call has succeeded.
    pub(super) fn succeeded(&self) {
        self.budget.earn();
    }

    /// The token was refused: how long to wait before another one is tried; nothing if one was tried before.
    pub(super) fn with_another_token(&mut self) -> Option<Duration> {
        let is_first = !std::mem::replace(&mut self.has_another_token, true);
        is_first.then(|| self.backoff.failed())
    }

    /// How long to wait before the next attempt; nothing if there must be none.
    pub(super) fn failed(&mut self, status: &Status, now: SystemTime) -> Option<Duration> {
        let (kind, delay) = kind(status);
        let may = match kind {
            Kind::Outage => {
                let since = *self.outage_since.get_or_insert(now);
                now.duration_since(since).unwrap_or_default() < self.outage_max
            }
            Kind::Passing => {
                self.failed += 1;
                self.failed < ATTEMPTS_MAX && self.budget.spend()
            }
            Kind::Lasting => false,
        };
        let pause = self.backoff.failed();
        // A server that asks for no pause at all would be asked without end.
        may.then(|| delay.map_or(pause, |delay| delay.min(self.outage_max).max(pause)))
    }
}

#[cfg(test)]
mod tests {
    use longshore_proto::error_details::{Detail as _, RetryInfo};
    use longshore_proto::protobuf;

    use super::*;

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    #[test]
    fn what_is_the_requests_fault_is_never_repeated() {
        let budget = Budget::new();
        for code in [
            Code::InvalidArgument,
            Code::NotFound,
            Code::PermissionDenied,
            Code::Unauthenticated,
            Code::Unimplemented,
            Code::ResourceExhausted,
        ] {
            let mut attempts = Attempts::new(&budget, Duration::from_mins(1));
            assert_eq!(attempts.failed(&Status::new(code, ""), start()), None, "{code:?}");
        }
    }

    fn come_back_in(seconds: i64, code: Code) -> Status {
        let info = RetryInfo { retry_delay: Some(protobuf::Duration { seconds, nanos: 0 }) };
        let details = rpc::Status { details: vec![info.to_any()], ..Default::default() }.encode_to_vec();
        Status::with_details(code, "", details.into())
    }

    #[test]
    fn the_server_says_when_to_come_back() {
        let budget = Budget::new();
        let mut attempts = Attempts::new(&budget, Duration::from_mins(1));
        let status = come_back_in(3, Code::ResourceExhausted);
        assert_eq!(attempts.failed(&status, start()), Some(Duration::from_secs(3)));
    }

    // "At once", said for as long as an outage may last, would be a call without end.
    #[test]
    fn there_is_a_pause_in_any_case() {
        let budget = Budget::new();
        let mut attempts = Attempts::new(&budget, Duration::from_mins(1));
        let pauses: Duration =
            (0..20).filter_map(|_| attempts.failed(&come_back_in(0, Code::Unavailable), start())).sum();
        assert!(pauses > Duration::from_mins(1), "{pauses:?}");
    }

    // Nobody said anything about the request: whatever its code, it is made again as long as an outage may last.
    #[test]
    fn a_connection_that_breaks_is_an_outage() {
        let budget = Budget::new();
        let mut attempts = Attempts::new(&budget, Duration::from_mins(5));
        let broken = || Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
        assert_ne!(broken().code(), Code::Unavailable);
        for second in 0..300 {
            assert!(attempts.failed(&broken(), start() + Duration::from_secs(second)).is_some());
        }
        assert_eq!(attempts.failed(&broken(), start() + Duration::from_mins(5)), None);
    }

    // An outage lasts as long as it may, and no attempt counts against it.
    #[test]
    fn an_outage_is_waited_out_by_the_clock() {
        let budget = Budget::new();
        let mut attempts = Attempts::new(&budget, Duration::from_mins(5));
        let gone = Status::unavailable("");
        for second in 0..300 {
            let pause = attempts.failed(&gone, start() + Duration::from_secs(second));
            assert!(pause.is_some_and(|pause| pause <= Duration::from_secs(10)), "after {second} s");
        }
        assert_eq!(attempts.failed(&gone, start() + Duration::from_mins(5)), None);
    }

    #[test]
    fn passing_faults_have_attempts_and_all_calls_one_budget() {
        let budget = Budget::new();
        let fault = Status::internal("");
        let retries = |budget| {
            let mut attempts = Attempts::new(budget, Duration::from_mins(1));
            std::iter::from_fn(|| attempts.failed(&fault, start())).count()
        };
        assert_eq!(retries(&budget), 4);
        let all: usize = (0..100).map(|_| retries(&budget)).sum();
        assert_eq!(all, 96, "the budget is a hundred");
        Attempts::new(&budget, Duration::ZERO).succeeded();
        assert_eq!(retries(&budget), 0, "a success earns a tenth of one");
    }
}
