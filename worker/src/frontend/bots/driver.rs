//! Makes the calls of a bot, one at a time, and lets its assignments hear what comes of them.
//!
//! A call is a long poll. One that has nothing to tell is given up as soon as there is something: what the server
//! would have answered, it answers the next time.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use longshore_proto::bots::bots_client::BotsClient;
use longshore_proto::{bots, reapi};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::call::{self, Fault};
use super::lease::{self, Order};
use super::session::{Call, Changes, Started};
use super::{Running, Shared, State};
use crate::action::{Assignment, Inline, Phase, Progress, Requester};
use crate::connect::{Backoff, reason};
use crate::status::Failure;

/// The deadline of a call while nothing runs: servers wait for work for most of it.
const IDLE_CALL_TIME_MAX: Duration = Duration::from_secs(30);
/// The deadline of every other call. A lease that is taken away does not wake a server that waits, so it must not wait
/// long; nor must the first reply, without which there is nothing to leave. `BuildGrid` waits for 80 % of the deadline,
/// and not at all if those are less than 3 s.
const BUSY_CALL_TIME_MAX: Duration = Duration::from_secs(4);
/// The most that a deadline is stretched to, for a server that cannot keep it.
pub(super) const CALL_TIME_MAX: Duration = Duration::from_mins(1);
/// The most that a deadline is stretched by.
const STRETCH_MAX: u32 = 16;
/// The time between calls that a server answers at once although nothing has changed: those of a full session.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a call with results has before one with more results takes its place.
const RESULTS_CALL_TIME_MIN: Duration = Duration::from_secs(1);
/// Pauses after failures.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
/// When a lease that is given back may be given out again: to another bot, at once.
const LEAVING_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The largest reply that is decoded: the leases of a large worker, each with an Action.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// What came of a call; nothing if it was given up because there is something to tell.
type Outcome = Option<Result<Response<bots::BotSession>, Status>>;

/// Drives sessions until the bot is closed.
pub(super) async fn drive(shared: Arc<Shared>) {
    // Whoever waits for an acknowledgement must not wait for ever.
    let _end = scopeguard::guard(shared.clone(), |shared| {
        shared.state.lock().running.clear();
        shared.ended.cancel();
    });
    Driver { news: shared.news.subscribe(), shared, backoff: BACKOFF, stretch: 1 }.run().await;
}

struct Driver {
    shared: Arc<Shared>,
    news: watch::Receiver<u64>,
    backoff: Backoff,
    /// By how much deadlines are stretched.
    stretch: u32,
}

impl Driver {
    async fn run(mut self) {
        loop {
            self.news.mark_unchanged();
            let (call, is_over) = {
                let session = &mut self.shared.state.lock().session;
                (session.call(), session.is_leaving() && !session.is_open())
            };
            if is_over {
                // There is no session to leave, and none to be opened.
                return self.shared.closing.cancelled().await;
            }
            let started = self.shared.clock.now();
            match self.make(&call).await {
                None => {}
                Some(Ok(reply)) => {
                    let is_closing = call.is_leaving() && self.shared.closing.is_cancelled();
                    let is_news = self.answered(&call, reply);
                    // The reply may have brought a lease that was given before the server knew that the bot leaves: it
                    // is given back, or it would be missed only with the whole session.
                    if is_closing && !self.shared.state.lock().session.has_results() {
                        return;
                    }
                    if !is_news {
                        self.rest(started).await;
                    }
                }
                Some(Err(status)) => self.failed(&call, &status, started).await,
            }
        }
    }

    /// Makes one call, which is given up when there are news that it does not carry.
    async fn make(&mut self, call: &Call) -> Outcome {
        let request = match self.request(call).await {
            Ok(request) => request,
            Err(status) => return Some(Err(status)),
        };
        let exchange = exchange(&self.shared, request, call.is_first());
        let overtaken = async {
            // A session that was opened unheard would hold leases that nobody runs. And where there are more results
            // than there is room for, another call has none for what is new.
            if call.is_first() || call.is_full() {
                std::future::pending::<()>().await;
            }
            let patience = call.has_results().then(|| self.shared.clock.sleep(RESULTS_CALL_TIME_MIN));
            // The sender is ours: it does not end.
            let _ = self.news.changed().await;
            if let Some(patience) = patience {
                patience.await;
            }
        };
        tokio::select! {
            biased;
            reply = exchange => Some(reply),
            () = overtaken => None,
        }
    }

    async fn request(&self, call: &Call) -> Result<Request<bots::BotSession>, Status> {
        let mut request = self.shared.link.request(call.message.clone()).await?;
        request.set_timeout(self.time_max(call));
        let mut state = self.shared.state.lock();
        let mut operations = Vec::new();
        let mut progress = Vec::new();
        for (id, operation) in &call.running {
            let Some(running) = state.running.get(operation) else { continue };
            let now = running.progress.borrow();
            if now.phase != running.reported {
                operations.push((operation, now.phase));
                progress.push((id.clone(), now.metadata.clone()));
            }
        }
        let dealt_with = call::add_progress(request.metadata_mut(), progress);
        for (operation, phase) in operations.into_iter().take(dealt_with) {
            if let Some(running) = state.running.get_mut(operation) {
                running.reported = phase;
            }
        }
        drop(state);
        Ok(request)
    }

    fn time_max(&self, call: &Call) -> Duration {
        let is_idle = call.message.leases.is_empty() && !call.is_first();
        let time_max = if is_idle { IDLE_CALL_TIME_MAX } else { BUSY_CALL_TIME_MAX };
        time_max.saturating_mul(self.stretch).min(CALL_TIME_MAX)
    }

    /// Takes in a reply; whether it changed anything.
    fn answered(&mut self, call: &Call, reply: Response<bots::BotSession>) -> bool {
        self.stretch = 1;
        let (trailers, session, _) = reply.into_parts();
        let known = call::digests_in(&trailers);
        if call.is_first() {
            tracing::info!(origin = self.shared.link.origin(), session = session.name, "session opened");
        } else {
            // Not before: a session that is lost as often as it is opened needs its pauses.
            self.backoff.succeeded();
        }
        let mut state = self.shared.state.lock();
        let Changes { started, acknowledged, gone, is_news } = state.session.answered(call, session);
        let mut ended = Vec::new();
        for operation in acknowledged {
            ended.extend(state.running.remove(&operation));
        }
        for operation in gone {
            tracing::info!(operation, "the scheduler took the lease back");
            ended.extend(state.running.remove(&operation).inspect(|running| running.cancelled.cancel()));
        }
        for started in started {
            self.start(&mut state, started, &known);
        }
        drop(state);
        for running in ended {
            if let Some(acknowledged) = running.acknowledged {
                // Whoever completed it may have gone.
                let _ = acknowledged.send(());
            }
        }
        is_news
    }

    /// Hands a lease on as an assignment, or reports why not.
    fn start(&self, state: &mut State, started: Started, known: &[reapi::Digest]) {
        let Started { operation, lease } = started;
        let refused = match (Order::read(&lease, known), state.queue.as_ref()) {
            (Err(failure), _) => failure,
            (Ok(_), None) => Failure::unavailable("the worker is shutting down", LEAVING_RETRY_DELAY),
            (Ok(order), Some(queue)) => {
                let (assignment, running) = assign(operation.clone(), order, self.shared.clock.now());
                state.running.insert(operation, running);
                // The receiver lives as long as the driver.
                let _ = queue.send(assignment);
                return;
            }
        };
        tracing::warn!(operation, "a lease is given back: {}", refused.message());
        state.session.complete(&operation, lease::refusal(&refused));
    }

    /// Waits, so that a server that answers at once is not asked without end.
    async fn rest(&mut self, started: SystemTime) {
        let took = self.shared.clock.now().duration_since(started).unwrap_or_default();
        if let Some(left) = HEARTBEAT.checked_sub(took) {
            tokio::select! {
                () = self.shared.clock.sleep(left) => {}
                _ = self.news.changed() => {}
            }
        }
    }

    async fn failed(&mut self, call: &Call, status: &Status, started: SystemTime) {
        let took = self.shared.clock.now().duration_since(started).unwrap_or_default();
        let (origin, reason, time_max) = (self.shared.link.origin(), reason(status), self.time_max(call));
        match call::fault(status, call.is_first(), took, time_max) {
            Fault::Late => {
                // The next one has more time, so that these lines are ever further apart.
                tracing::warn!(origin, ?time_max, "the scheduler does not answer in time");
                self.stretch = self.stretch.saturating_mul(2).min(STRETCH_MAX);
                return;
            }
            Fault::SessionLost => {
                tracing::warn!(origin, reason, "the session is lost");
                self.give_up();
            }
            Fault::Passing => {
                tracing::warn!(origin, reason, "a call to the scheduler failed");
                // What the call was to say of them may have been lost with it.
                for running in self.shared.state.lock().running.values_mut() {
                    running.reported = Phase::Queued;
                }
            }
        }
        let pause = self.shared.clock.sleep(self.backoff.failed());
        if self.shared.closing.is_cancelled() {
            pause.await;
        } else {
            // Whoever is about to leave does not wait for a better time to say so.
            self.shared.closing.run_until_cancelled(pause).await;
        }
    }

    /// Drops what ran in a session that the server does not know any more.
    fn give_up(&self) {
        let mut state = self.shared.state.lock();
        for operation in state.session.lost() {
            if let Some(running) = state.running.remove(&operation) {
                running.cancelled.cancel();
            }
        }
    }
}

/// Opens or updates a session.
async fn exchange(
    shared: &Shared,
    request: Request<bots::BotSession>,
    is_first: bool,
) -> Result<Response<bots::BotSession>, Status> {
    let mut client = BotsClient::new(shared.link.channel()).max_decoding_message_size(REPLY_BYTES_MAX);
    if is_first {
        let parent = shared.parent.clone();
        let create = |session| bots::CreateBotSessionRequest { parent, bot_session: Some(session) };
        client.create_bot_session(request.map(create)).await
    } else {
        let update = |session: bots::BotSession| bots::UpdateBotSessionRequest {
            name: session.name.clone(),
            bot_session: Some(session),
        };
        client.update_bot_session(request.map(update)).await
    }
}

/// An assignment, and what the driver keeps of it.
fn assign(operation: String, order: Order, now: SystemTime) -> (Assignment, Running) {
    let (sender, progress) = watch::channel(Progress::default());
    let cancelled = CancellationToken::new();
    let running =
        Running { cancelled: cancelled.clone(), progress, reported: Phase::Queued, acknowledged: None };
    let assignment = Assignment {
        operation,
        action_digest: order.digest,
        action: order.action,
        inline: Inline::default(),
        queued: now,
        requester: Requester::default(),
        progress: sender,
        cancelled,
        is_orphan: Arc::default(),
    };
    (assignment, running)
}
