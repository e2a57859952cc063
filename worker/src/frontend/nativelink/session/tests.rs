use std::collections::BTreeSet;

use longshore_proto::{reapi, rpc};
use proptest::prelude::*;
use tonic::Code;

use super::*;

fn start_of_time() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_hours(1)
}

/// A request for action `action`.
fn request(operation: &str, action: u8) -> Request {
    Request {
        operation: operation.to_owned(),
        instance_name: "main".to_owned(),
        action_digest: DigestFunction::Sha256.digest(&[action]),
        skip_cache_lookup: false,
        queued: start_of_time(),
    }
}

/// A reply that tells where it comes from.
fn reply(code: Code) -> Reply {
    let status = rpc::Status { code: code as i32, ..Default::default() };
    let response = reapi::ExecuteResponse { status: Some(status), ..Default::default() };
    Reply::new(response, DigestFunction::Sha256)
}

fn registered() -> Session {
    let mut session = Session::default();
    session.registered(start_of_time());
    session
}

/// The messages in short: the operation, and what is said of it.
fn said(session: &mut Session) -> Vec<(String, &'static str)> {
    let messages = std::iter::from_fn(|| session.next_message());
    let short = |message| match message {
        Update::ExecuteComplete(complete) => (complete.operation_id, "ran"),
        Update::ExecuteResult(result) => {
            let said = match result.result.unwrap() {
                Outcome::ExecuteResponse(_) => "result",
                Outcome::InternalError(status) => match Code::from(status.code) {
                    Code::Cancelled => "killed",
                    Code::ResourceExhausted => "declined",
                    _ => "retry",
                },
            };
            (result.operation_id, said)
        }
        other => panic!("{other:?}"),
    };
    messages.map(short).collect()
}

fn says(session: &mut Session, expected: &[(&str, &'static str)]) {
    let expected: Vec<_> =
        expected.iter().map(|(operation, said)| ((*operation).to_owned(), *said)).collect();
    assert_eq!(said(session), expected);
}

fn take(session: &mut Session) -> Taken {
    session.take().expect("a task")
}

#[test]
fn an_operation_is_run_and_answered_once_however_often_it_is_started() {
    let mut session = registered();
    let now = start_of_time();
    session.start(request("a", 1), now);
    let task = take(&mut session);
    session.start(request("a", 1), now);
    assert!(!session.has_queued());
    session.ran(&task.name);
    session.completed(&task.name, reply(Code::Ok), now);
    says(&mut session, &[("a", "ran"), ("a", "result")]);
}

// The scheduler starts it again while the result is on its way: a second one would be of nothing that it waits for.
#[test]
fn a_start_that_crosses_the_result_is_not_answered() {
    let mut session = registered();
    let now = start_of_time();
    session.start(request("a", 1), now);
    let task = take(&mut session);
    session.completed(&task.name, reply(Code::Ok), now);
    session.start(request("a", 1), now);
    says(&mut session, &[("a", "result")]);
    assert!(!session.has_queued());
}

// What runs when a stream is lost goes on; its result waits until the scheduler has asked for it again.
#[test]
fn a_result_outlives_the_stream() {
    let mut session = registered();
    let now = start_of_time();
    for (operation, action) in [("a", 1), ("b", 2)] {
        session.start(request(operation, action), now);
    }
    let [a, b] = [take(&mut session), take(&mut session)];
    session.ran(&a.name);
    session.lost(now);
    session.completed(&a.name, reply(Code::Ok), now);
    assert!(session.undelivered() > 0);
    session.registered(now);
    says(&mut session, &[]);
    session.start(request("a", 1), now);
    session.start(request("b", 2), now);
    says(&mut session, &[("a", "result")]);
    session.ran(&b.name);
    session.completed(&b.name, reply(Code::Ok), now);
    says(&mut session, &[("b", "ran"), ("b", "result")]);
    assert!(session.undelivered() == 0 && !session.has_queued());
}

// A restarted scheduler knows other ids only.
#[test]
fn a_client_that_asks_anew_gets_what_ran_for_it() {
    let mut session = registered();
    let now = start_of_time();
    for (operation, action) in [("a", 1), ("b", 2), ("c", 3)] {
        session.start(request(operation, action), now);
    }
    let [a, b, c] = [take(&mut session), take(&mut session), take(&mut session)];
    session.lost(now);
    session.completed(&a.name, reply(Code::Ok), now);
    session.registered(now);
    session.start(request("x", 1), now);
    session.start(request("y", 2), now);
    session.start(Request { skip_cache_lookup: true, ..request("z", 3) }, now);
    session.completed(&b.name, reply(Code::Ok), now);
    says(&mut session, &[("x", "result"), ("y", "result")]);
    assert_eq!(take(&mut session).request.operation, "z", "it asked for a run of its own");
    assert!(!c.cancelled.is_cancelled());
}

// A result that somebody has is nobody else's.
#[test]
fn a_result_that_was_sent_is_for_its_own_operation_alone() {
    let mut session = registered();
    let now = start_of_time();
    session.start(request("a", 1), now);
    let a = take(&mut session);
    session.completed(&a.name, reply(Code::Ok), now);
    session.start(request("b", 1), now);
    says(&mut session, &[("a", "result")]);
    session.lost(now);
    session.registered(now);
    session.start(request("c", 1), now);
    session.start(request("a", 1), now);
    says(&mut session, &[("a", "result")]);
    assert_eq!(take(&mut session).request.operation, "c");
}

#[test]
fn what_nobody_asks_for_is_given_up() {
    let mut session = registered();
    let now = start_of_time();
    session.start(request("a", 1), now);
    session.start(request("b", 2), now);
    let [a, b] = [take(&mut session), take(&mut session)];
    session.lost(now);
    session.completed(&a.name, reply(Code::Ok), now);
    session.tick(now + Duration::from_hours(1));
    assert!(session.undelivered() > 0 && !b.cancelled.is_cancelled(), "the scheduler is away");
    let back = now + Duration::from_hours(1);
    session.registered(back);
    session.tick(back + CLAIM_TIME_MAX - Duration::from_millis(1));
    assert!(session.undelivered() > 0 && !b.cancelled.is_cancelled());
    session.tick(back + CLAIM_TIME_MAX);
    assert!(session.undelivered() == 0 && b.cancelled.is_cancelled());
    session.completed(&b.name, reply(Code::Cancelled), back);
    says(&mut session, &[]);
}

#[test]
fn a_killed_action_is_answered_and_may_be_started_again() {
    let mut session = registered();
    let now = start_of_time();
    for operation in ["a", "b", "c"] {
        session.start(request(operation, operation.as_bytes()[0]), now);
    }
    let [a, b] = [take(&mut session), take(&mut session)];
    for operation in ["c", "a", "b", "nobody"] {
        session.kill(operation);
    }
    assert!(a.cancelled.is_cancelled() && b.cancelled.is_cancelled() && !session.has_queued());
    says(&mut session, &[("c", "killed")]);
    session.start(request("b", b'b'), now);
    session.completed(&a.name, reply(Code::Ok), now);
    session.completed(&b.name, reply(Code::Cancelled), now);
    says(&mut session, &[("a", "killed")]);
    let again = take(&mut session);
    assert!(!again.cancelled.is_cancelled());
    session.completed(&again.name, reply(Code::Ok), now);
    says(&mut session, &[("b", "result")]);
}

#[test]
fn draining_gives_back_what_has_not_begun() {
    let mut session = registered();
    let now = start_of_time();
    session.start(request("a", 1), now);
    let a = take(&mut session);
    session.start(request("b", 2), now);
    session.drain();
    session.start(request("c", 3), now);
    assert!(session.take().is_none());
    session.completed(&a.name, reply(Code::Ok), now);
    // Nothing is held: declining it would bring it back at once.
    session.start(request("d", 4), now);
    says(&mut session, &[("b", "declined"), ("c", "declined"), ("a", "result")]);
}

// An error of ours is tried again: what comes next under that id is a new run.
#[test]
fn what_is_tried_again_runs_again() {
    let mut session = registered();
    let now = start_of_time();
    for _ in 0..3 {
        session.start(request("a", 1), now);
        let a = take(&mut session);
        session.completed(&a.name, reply(Code::Unavailable), now);
        says(&mut session, &[("a", "retry")]);
    }
}

#[test]
fn sent_results_are_not_kept_without_bound() {
    let mut session = registered();
    let now = start_of_time();
    for number in 0..3 * SENT_MAX {
        session.start(request(&number.to_string(), 1), now);
        let task = take(&mut session);
        session.completed(&task.name, reply(Code::Ok), now);
    }
    assert_eq!(session.kept.len(), SENT_MAX);
    session.tick(now + DELIVERY_TIME_MAX);
    assert_eq!(session.kept.len(), 0);
}

/// What can happen, to operations and tasks by number.
#[derive(Clone, Copy, Debug)]
enum Event {
    Start { operation: u8, skips: bool },
    Kill(u8),
    Deliver,
    Take,
    Ran(usize),
    Complete(usize, Code),
    Lose,
    Restart,
    Register,
    Pass(u64),
    Drain,
}

fn event() -> impl Strategy<Value = Event> {
    let code =
        prop_oneof![3 => Just(Code::Ok), 1 => Just(Code::Unavailable), 1 => Just(Code::InvalidArgument)];
    prop_oneof![
        6 => (0..16_u8, any::<bool>()).prop_map(|(operation, skips)| Event::Start { operation, skips }),
        2 => (0..16_u8).prop_map(Event::Kill),
        6 => Just(Event::Deliver),
        4 => Just(Event::Take),
        2 => (0..4_usize).prop_map(Event::Ran),
        4 => (0..4_usize, code).prop_map(|(task, code)| Event::Complete(task, code)),
        1 => Just(Event::Lose),
        1 => Just(Event::Restart),
        3 => Just(Event::Register),
        1 => (0..12_u64).prop_map(Event::Pass),
        // Rare, for nothing comes after it.
        1 => prop_oneof![20 => Just(Event::Deliver), 1 => Just(Event::Drain)],
    ]
}

/// What is said of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Ran,
    Response,
    Error,
}

/// The scheduler, and the slots of the worker, as simply as can be said.
#[derive(Default)]
struct Model {
    session: Session,
    now: Duration,
    is_registered: bool,
    /// Changes the ids of operations.
    restarts: u32,
    /// What the scheduler waits for; whether it has asked for its end.
    held: BTreeMap<String, bool>,
    /// What has ended for its client, and is not started again.
    finished: BTreeSet<String>,
    /// On the way to the scheduler.
    messages: VecDeque<(String, Word)>,
    running: Vec<Taken>,
}

impl Model {
    fn now(&self) -> SystemTime {
        start_of_time() + self.now
    }

    fn collect(&mut self) {
        while let Some(message) = self.session.next_message() {
            let message = match message {
                Update::ExecuteComplete(complete) => (complete.operation_id, Word::Ran),
                Update::ExecuteResult(result) => {
                    let is_response = matches!(result.result, Some(Outcome::ExecuteResponse(_)));
                    (result.operation_id, if is_response { Word::Response } else { Word::Error })
                }
                other => panic!("{other:?}"),
            };
            assert!(self.is_registered, "said without a stream");
            self.messages.push_back(message);
        }
    }

    /// The scheduler reads a message: it throws a worker out that speaks of what it does not wait for.
    fn deliver(&mut self) {
        let Some((operation, word)) = self.messages.pop_front() else { return };
        assert!(self.held.contains_key(&operation), "{operation} is nothing that the scheduler waits for");
        if word != Word::Ran {
            self.held.remove(&operation);
        }
        if word == Word::Response {
            self.finished.insert(operation);
        }
    }

    fn step(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Start { operation, skips } if self.is_registered => {
                let id = format!("{}-{operation}", self.restarts);
                // A start may cross a response; where it crosses an error, the scheduler starts it a third time.
                let is_failing = self.messages.contains(&(id.clone(), Word::Error));
                if !is_failing && !self.finished.contains(&id) {
                    self.held.insert(id.clone(), false);
                    let skip_cache_lookup = skips;
                    self.session.start(Request { skip_cache_lookup, ..request(&id, operation) }, now);
                }
            }
            Event::Kill(operation) => {
                let id = format!("{}-{operation}", self.restarts);
                if let Some(killed) = self.held.get_mut(&id).filter(|killed| !**killed) {
                    *killed = true;
                    self.session.kill(&id);
                }
            }
            Event::Deliver => self.deliver(),
            Event::Take => {
                if let Some(task) = self.session.take() {
                    self.running.push(task);
                    let names: BTreeSet<_> = self.running.iter().map(|task| &task.name).collect();
                    assert_eq!(names.len(), self.running.len(), "two of one name");
                }
            }
            Event::Ran(at) => {
                if let Some(task) = self.running.get(at) {
                    self.session.ran(&task.name);
                }
            }
            Event::Complete(at, code) if at < self.running.len() => {
                let task = self.running.remove(at);
                let code = if task.cancelled.is_cancelled() { Code::Cancelled } else { code };
                self.session.completed(&task.name, reply(code), now);
            }
            Event::Lose | Event::Restart => {
                self.restarts += u32::from(matches!(event, Event::Restart));
                self.is_registered = false;
                self.held.clear();
                self.messages.clear();
                self.session.lost(now);
            }
            Event::Register if !self.is_registered => {
                self.is_registered = true;
                self.session.registered(now);
            }
            Event::Pass(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.session.tick(self.now());
            }
            Event::Drain => self.session.drain(),
            Event::Start { .. } | Event::Complete(..) | Event::Register => {}
        }
        self.collect();
    }

    /// Nothing new happens, and everything comes to its end.
    fn settle(&mut self) {
        self.step(Event::Register);
        while self.session.has_queued() || !self.running.is_empty() || !self.messages.is_empty() {
            for event in [Event::Take, Event::Complete(0, Code::Ok), Event::Deliver] {
                self.step(event);
            }
        }
    }
}

proptest! {
    // The scheduler is told of what it waits for, of all of it, and of nothing else.
    #[test]
    fn every_start_is_answered_once(events in proptest::collection::vec(event(), 0..120)) {
        let mut model = Model::default();
        for event in events {
            model.step(event);
        }
        model.settle();
        if !model.session.is_draining() {
            prop_assert!(model.held.is_empty(), "{:?} is not answered", model.held);
        }
        prop_assert_eq!(model.session.running(), 0);
        model.step(Event::Pass(60));
        prop_assert!(model.session.undelivered() == 0);
    }
}
