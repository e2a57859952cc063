use std::collections::BTreeSet;

use longshore_proto::rpc;
use proptest::prelude::*;

use super::*;

fn session() -> Session {
    Session::new("bot".to_owned(), bots::Worker::default())
}

fn lease(id: &str, state: LeaseState) -> bots::Lease {
    bots::Lease { id: id.to_owned(), state: state.into(), ..Default::default() }
}

fn reply(leases: &[(&str, LeaseState)]) -> bots::BotSession {
    let leases = leases.iter().map(|(id, state)| lease(id, *state)).collect();
    bots::BotSession { name: "main/1".to_owned(), version: "1".to_owned(), leases, ..Default::default() }
}

fn report(code: i32, may_be_retried: bool) -> Report {
    let status = Some(rpc::Status { code, ..Default::default() });
    let lease = bots::Lease { state: LeaseState::Completed.into(), status, ..Default::default() };
    Report { lease, may_be_retried, pause: Duration::ZERO }
}

/// One exchange in which nothing changes on this side.
fn exchange(session: &mut Session, leases: &[(&str, LeaseState)]) -> Changes {
    let call = session.call();
    session.answered(&call, reply(leases))
}

/// The id and state of every lease that is sent.
fn sent(session: &Session) -> Vec<(String, LeaseState)> {
    session.clone().call().message.leases.iter().map(|lease| (lease.id.clone(), lease.state())).collect()
}

/// A session with one lease, `a`, that runs as that operation.
fn running() -> (Session, String) {
    let mut session = session();
    let changes = exchange(&mut session, &[("a", LeaseState::Active)]);
    (session, changes.started[0].operation.clone())
}

// RWB-05: whether a lease is offered or given, it is answered as accepted.
#[test]
fn both_handshakes_end_with_an_active_lease() {
    for state in [LeaseState::Pending, LeaseState::Active] {
        let mut session = session();
        let changes = exchange(&mut session, &[("a", state)]);
        assert_eq!(changes.started.len(), 1);
        assert_eq!(sent(&session), [("a".to_owned(), LeaseState::Active)]);
        let again = exchange(&mut session, &[("a", state)]);
        assert_eq!(again, Changes::default(), "it is started once");
    }
}

#[test]
fn name_and_version_are_echoed() {
    let mut session = session();
    let call = session.call();
    assert!(call.is_first());
    assert_eq!((call.message.version.as_str(), call.message.bot_id.as_str()), ("", "bot"));
    assert!(session.answered(&call, reply(&[])).is_news);
    let call = session.call();
    assert_eq!((call.message.name.as_str(), call.message.version.as_str()), ("main/1", "1"));
    let later = bots::BotSession { version: "2".to_owned(), ..reply(&[]) };
    assert!(!session.answered(&call, later).is_news);
    assert_eq!(session.call().message.version, "2");
}

// Who is answered at once with nothing new waits before the next call: a server must not be asked without end.
#[test]
fn a_session_without_a_name_is_no_news() {
    let mut session = session();
    let call = session.call();
    assert!(!session.answered(&call, bots::BotSession::default()).is_news);
    assert!(session.call().is_first());
}

#[test]
fn a_result_is_reported_until_it_is_acknowledged() {
    let (mut session, operation) = running();
    assert!(session.complete(&operation, report(0, false)));
    for _ in 0..3 {
        assert_eq!(sent(&session), [("a".to_owned(), LeaseState::Completed)]);
        let changes = exchange(&mut session, &[("a", LeaseState::Active)]);
        assert_eq!(changes, Changes::default());
    }
    let changes = exchange(&mut session, &[]);
    assert_eq!((changes.acknowledged, changes.gone), (vec![operation], vec![]));
    assert_eq!(sent(&session), []);
}

// Servers that keep the list as the bot sent it say so by that.
#[test]
fn a_completed_lease_that_comes_back_is_acknowledged() {
    let (mut session, operation) = running();
    assert!(session.complete(&operation, report(0, false)));
    let changes = exchange(&mut session, &[("a", LeaseState::Completed)]);
    assert_eq!(changes.acknowledged, [operation]);
}

#[test]
fn a_lease_that_is_gone_is_cancelled() {
    for leases in [&[][..], &[("a", LeaseState::Cancelled)]] {
        let (mut session, operation) = running();
        let changes = exchange(&mut session, leases);
        assert_eq!((changes.gone, changes.acknowledged), (vec![operation.clone()], vec![]));
        assert!(!session.complete(&operation, report(0, false)), "nobody wants to know");
        assert_eq!(sent(&session), []);
    }
}

// The reply is to what was sent: that it does not know of a result which came later is no acknowledgement.
#[test]
fn a_result_that_overtakes_a_reply_is_reported_all_the_same() {
    let (mut session, operation) = running();
    let call = session.call();
    assert!(session.complete(&operation, report(0, false)));
    assert_eq!(session.answered(&call, reply(&[("a", LeaseState::Active)])), Changes::default());
    assert_eq!(sent(&session), [("a".to_owned(), LeaseState::Completed)]);

    let (mut session, operation) = running();
    let call = session.call();
    assert!(session.complete(&operation, report(0, false)));
    assert_eq!(session.answered(&call, reply(&[])).gone, [operation], "it was taken away before");
}

// A server that retries an action may give it to the same bot in the same breath. It must be run, not answered with
// the failure of the attempt before.
#[test]
fn a_retried_lease_is_another_attempt() {
    let (mut session, first) = running();
    assert!(session.complete(&first, report(14, true)));
    let changes = exchange(&mut session, &[("a", LeaseState::Active)]);
    assert_eq!(changes.acknowledged, vec![first.clone()]);
    let second = &changes.started[0].operation;
    assert_ne!(*second, first);
    assert_eq!(sent(&session), [("a".to_owned(), LeaseState::Active)]);
    assert!(!session.complete(&first, report(0, false)), "the first attempt has been told of");
    assert!(session.complete(second, report(0, false)));

    // An offer is always new, whatever the result was.
    let changes = exchange(&mut session, &[("a", LeaseState::Pending)]);
    assert_eq!((changes.acknowledged.len(), changes.started.len()), (1, 1));
}

#[test]
fn a_lease_that_comes_twice_in_a_reply_is_one() {
    let mut session = session();
    let changes = exchange(&mut session, &[("a", LeaseState::Active), ("a", LeaseState::Active)]);
    assert_eq!(changes.started.len(), 1);
}

// A server that cannot read a call hears nothing of this bot, however often it is made.
#[test]
fn results_that_are_too_many_for_a_call_take_turns() {
    let mut session = session();
    let leases = ["a", "b", "c", "d"].map(|id| (id, LeaseState::Active));
    let started = exchange(&mut session, &leases).started;
    let complete = |session: &mut Session, at: usize| {
        let mut large = report(0, false);
        large.lease.status.as_mut().unwrap().message = "x".repeat(RESULTS_BYTES_MAX * 2 / 5);
        assert!(session.complete(&started[at].operation, large));
    };
    (1..4).for_each(|at| complete(&mut session, at));
    // What may have been heard is told until there is an answer, whatever ends meanwhile.
    for (is_answered, told) in
        [(false, "bc"), (false, "bc"), (true, "bc"), (true, "ab"), (false, "cd"), (true, "cd"), (true, "ab")]
    {
        let call = session.call();
        assert_eq!(call.reported.iter().cloned().collect::<String>(), told);
        assert!(call.message.encoded_len() < 4 << 20, "{}", call.message.encoded_len());
        // Whatever has no turn is still held, or it would be taken for given back.
        let ids: Vec<_> = call.message.leases.iter().map(|lease| lease.id.as_str()).collect();
        assert_eq!((ids, call.is_full()), (vec!["a", "b", "c", "d"], true));
        if is_answered {
            assert_eq!(session.answered(&call, reply(&leases)), Changes::default());
        } else if told == "bc" && session.held["a"].report.is_none() {
            complete(&mut session, 0);
        }
    }

    // What is missing in a reply to a call is acknowledged if that call told of its result.
    let call = session.call();
    assert_eq!(session.answered(&call, reply(&leases[..1])).acknowledged.len(), 2);
    let call = session.call();
    assert!(!call.is_full());
    assert_eq!(session.answered(&call, reply(&[])).acknowledged.len(), 1);
}

// RWB-12.
#[test]
fn a_lost_session_takes_everything_with_it() {
    let (mut session, operation) = running();
    assert_eq!(session.lost(), vec![operation.clone()]);
    let call = session.call();
    assert!(call.is_first());
    assert_eq!((call.message.version.as_str(), call.message.leases.len()), ("", 0));
    assert!(!session.complete(&operation, report(0, false)));
}

#[test]
fn leaving_is_said_in_every_call() {
    let (mut session, _) = running();
    assert_eq!(session.call().message.status(), BotStatus::Ok);
    session.leave();
    assert!(session.call().is_leaving());
    session.lost();
    assert!(session.call().is_leaving());
}

/// What may happen to a session.
#[derive(Clone, Debug)]
enum Step {
    /// The server offers the job of that number.
    Offer(u8),
    /// The client of that job leaves.
    Cancel(u8),
    /// The n-th operation that runs ends, with a result that is final or one that is retried.
    End(usize, bool),
    /// A call that arrives, and whose reply does too, or is lost.
    Call { reply_arrives: bool },
    /// A call that is lost on its way.
    LostCall,
    /// The server forgets the session.
    Forget,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4_u8).prop_map(Step::Offer),
        (0..4_u8).prop_map(Step::Cancel),
        (0..4_usize, any::<bool>()).prop_map(|(at, is_final)| Step::End(at, is_final)),
        any::<bool>().prop_map(|reply_arrives| Step::Call { reply_arrives }),
        Just(Step::LostCall),
        Just(Step::Forget),
    ]
}

/// A server as simple as it can be: jobs that are leased, by id, each with the attempt that it is at.
#[derive(Default)]
struct Model {
    /// What is leased, in the state that the server believes.
    leased: BTreeMap<String, LeaseState>,
    /// Jobs whose final result has arrived, and how often.
    finished: Vec<String>,
    /// Jobs that were given up by their clients.
    cancelled: BTreeSet<String>,
    offers_pending: bool,
}

impl Model {
    fn offer(&mut self, id: String) {
        let is_over = self.finished.contains(&id) || self.cancelled.contains(&id);
        if !is_over {
            let state = if self.offers_pending { LeaseState::Pending } else { LeaseState::Active };
            self.leased.entry(id).or_insert(state);
        }
    }

    fn answer(&mut self, call: &Call) -> bots::BotSession {
        for lease in &call.message.leases {
            if lease.state() != LeaseState::Completed {
                if let Some(state) = self.leased.get_mut(&lease.id) {
                    *state = LeaseState::Active;
                }
            } else if self.leased.get(&lease.id) == Some(&LeaseState::Active) {
                self.leased.remove(&lease.id);
                let is_retried = lease.status.as_ref().is_some_and(|status| status.code == 14);
                if is_retried {
                    self.offer(lease.id.clone());
                } else {
                    self.finished.push(lease.id.clone());
                }
            }
        }
        let leases = self.leased.iter().map(|(id, state)| lease(id, *state)).collect();
        bots::BotSession { name: "main/1".to_owned(), leases, ..Default::default() }
    }
}

proptest! {
    // Whatever is lost and in whatever order, no job has two results, none is forgotten while somebody wants it, and
    // every operation that was started ends once.
    #[test]
    fn nothing_is_lost_and_nothing_is_told_twice(
        steps in prop::collection::vec(step(), 0..60),
        offers_pending in any::<bool>(),
    ) {
        let mut session = session();
        let mut model = Model { offers_pending, ..Model::default() };
        let mut running: Vec<String> = Vec::new();
        let mut reported: BTreeSet<String> = BTreeSet::new();
        let mut ended: BTreeSet<String> = BTreeSet::new();
        for step in steps.into_iter().chain([Step::Call { reply_arrives: true }]) {
            match step {
                Step::Offer(job) => model.offer(job.to_string()),
                Step::Cancel(job) => {
                    model.leased.remove(&job.to_string());
                    model.cancelled.insert(job.to_string());
                }
                Step::End(at, is_final) => {
                    if at < running.len() {
                        let operation = running.remove(at);
                        let code = if is_final { 0 } else { 14 };
                        prop_assert!(session.complete(&operation, report(code, !is_final)));
                        reported.insert(operation);
                    }
                }
                Step::LostCall => drop(session.call()),
                Step::Forget => {
                    for operation in session.lost() {
                        prop_assert!(ended.insert(operation));
                    }
                    running.clear();
                    reported.clear();
                    // Its jobs go back to the queue, and come again.
                    let jobs = std::mem::take(&mut model.leased);
                    for id in jobs.into_keys() {
                        model.offer(id);
                    }
                }
                Step::Call { reply_arrives } => {
                    let call = session.call();
                    let reply = model.answer(&call);
                    if !reply_arrives {
                        continue;
                    }
                    let changes = session.answered(&call, reply);
                    for operation in changes.acknowledged {
                        prop_assert!(reported.remove(&operation), "{operation} had no result");
                        prop_assert!(ended.insert(operation));
                    }
                    for operation in changes.gone {
                        running.retain(|running| *running != operation);
                        reported.remove(&operation);
                        prop_assert!(ended.insert(operation));
                    }
                    for Started { operation, .. } in changes.started {
                        prop_assert!(!ended.contains(&operation));
                        running.push(operation);
                    }
                    let held: BTreeSet<_> = sent(&session).into_iter().map(|(id, _)| id).collect();
                    let leased: BTreeSet<_> = model.leased.keys().cloned().collect();
                    prop_assert_eq!(held, leased, "both sides hold the same");
                }
            }
        }
        let mut finished = model.finished.clone();
        finished.sort_unstable();
        finished.dedup();
        prop_assert_eq!(finished.len(), model.finished.len());
    }
}
