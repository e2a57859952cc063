//! Buildbarn's scheduler as a slot of a worker meets it, in this process: it gives out what a test submits, holds slots
//! to the protocol, and fails or loses answers when it is told to.
//!
//! It does what the real one was measured to do: an idle call waits for work; what a slot was given and does not speak
//! of is given to it again, nine times at most; one call a slot at a time. It measures no time but the one it announces.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use longshore_proto::protobuf::Empty;
use longshore_proto::remoteworker::current_state::executing::ExecutionState;
use longshore_proto::remoteworker::operation_queue_server::{OperationQueue, OperationQueueServer};
use longshore_proto::remoteworker::{
    DesiredState, SynchronizeRequest, SynchronizeResponse, current_state, desired_state,
};
use longshore_proto::{Message as _, protobuf, reapi, time};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::action::ActionBlobs;

/// How often a task is given to a slot that does not speak of it.
const RETRIES_MAX: u32 = 9;

/// The scheduler; it ends when this is dropped.
#[derive(Debug)]
pub struct FakeBuildbarn {
    uri: String,
    state: Arc<State>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    inner: Mutex<Inner>,
    /// Counts what has happened.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    queue: VecDeque<desired_state::Executing>,
    slots: HashMap<Name, SlotState>,
    heard: Vec<Heard>,
    ended: HashMap<String, Ended>,
    mistakes: Vec<String>,
    /// How long a slot that executes may be silent.
    interval: Duration,
    failures: VecDeque<Failing>,
}

type Name = BTreeMap<String, String>;

#[derive(Debug, Default)]
struct SlotState {
    calling: Call,
    task: Option<desired_state::Executing>,
    retries: u32,
    is_taken_back: bool,
}

/// What call of a slot is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Call {
    #[default]
    None,
    /// One that is answered at once.
    Telling,
    /// One that waits for work.
    Waiting,
    /// One that has waited long enough.
    LetGo,
}

/// How a call goes wrong.
#[derive(Clone, Debug)]
pub enum Failing {
    /// It is refused, and changes nothing.
    Refused(Status),
    /// It changes what it changes, and its answer is lost.
    Lost(Status),
    /// It changes what it changes, and its answer does not come.
    Unanswered,
}

/// A call that was made.
#[derive(Clone, Debug)]
pub struct Heard {
    /// All of it.
    pub request: SynchronizeRequest,
    /// How long the slot waits for the answer.
    pub deadline: Option<String>,
}

/// How a task ended.
#[derive(Clone, Debug)]
pub enum Ended {
    /// With that result.
    Response(Box<reapi::ExecuteResponse>),
    /// No slot would speak of it.
    GivenUp,
}

impl FakeBuildbarn {
    /// Starts one on a free port.
    pub async fn start() -> Result<Self> {
        let state = Arc::new(State::default());
        state.lock().interval = Duration::from_secs(10);
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a port")?;
        let uri = format!("grpc://{}", listener.local_addr().context("the port")?);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let router = tonic::transport::Server::builder()
            .add_service(OperationQueueServer::new(Service(state.clone())));
        let server = tokio::spawn(async move {
            // It ends by being aborted; a listener that fails shows in the test.
            let _ = router.serve_with_incoming(incoming).await;
        });
        Ok(Self { uri, state, server })
    }

    /// Where it listens.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// A client wants that task executed.
    pub fn submit(&self, task: desired_state::Executing) {
        self.state.change(|inner| inner.queue.push_back(task));
    }

    /// Its client has gone: the slot is told at its next call.
    pub fn take_back(&self, hash: &str) {
        self.state.change(|inner| {
            let holds = |slot: &&mut SlotState| slot.task.as_ref().is_some_and(|task| hash_of(task) == hash);
            if let Some(slot) = inner.slots.values_mut().find(holds) {
                slot.is_taken_back = true;
            }
        });
    }

    /// It forgets everything, as it does when it is started again; what was queued or given out is queued anew.
    pub fn restart(&self) {
        self.state.change(|inner| {
            let given = inner.slots.drain().filter_map(|(_, slot)| slot.task).collect::<Vec<_>>();
            inner.queue.extend(given);
        });
    }

    /// Every call that waits for work has waited long enough.
    pub fn let_go(&self) {
        self.state.change(|inner| {
            for slot in inner.slots.values_mut().filter(|slot| slot.calling == Call::Waiting) {
                slot.calling = Call::LetGo;
            }
        });
    }

    /// What goes wrong with the next calls, one each.
    pub fn fail(&self, failures: impl IntoIterator<Item = Failing>) {
        self.state.change(|inner| inner.failures.extend(failures));
    }

    /// How long a slot that executes may be silent; 10 s at first.
    pub fn set_interval(&self, interval: Duration) {
        self.state.change(|inner| inner.interval = interval);
    }

    /// Every call so far.
    pub fn heard(&self) -> Vec<Heard> {
        self.state.lock().heard.clone()
    }

    /// What slots did that the protocol forbids.
    pub fn mistakes(&self) -> Vec<String> {
        self.state.lock().mistakes.clone()
    }

    /// Waits until what was heard is as `holds` says.
    pub async fn hears(&self, holds: impl Fn(&[Heard]) -> bool) -> Result<()> {
        self.until(|inner| holds(&inner.heard).then_some(())).await
    }

    /// Waits until the task of that action has been given to a slot.
    pub async fn gives(&self, hash: &str) -> Result<()> {
        let holds = |slot: &SlotState| slot.task.as_ref().is_some_and(|task| hash_of(task) == hash);
        self.until(|inner| inner.slots.values().any(holds).then_some(())).await
    }

    /// Waits until no call is under way.
    pub async fn is_deserted(&self) -> Result<()> {
        self.until(|inner| inner.slots.values().all(|slot| slot.calling == Call::None).then_some(())).await
    }

    /// Waits for the end of the task of that action.
    pub async fn ended(&self, hash: &str) -> Result<Ended> {
        self.until(|inner| inner.ended.get(hash).cloned()).await
    }

    async fn until<T>(&self, look: impl Fn(&Inner) -> Option<T>) -> Result<T> {
        let found = async {
            let mut changes = self.state.changed.subscribe();
            loop {
                if let Some(found) = look(&self.state.lock()) {
                    return Ok(found);
                }
                changes.changed().await.context("the scheduler is gone")?;
            }
        };
        let patience = Duration::from_mins(1);
        tokio::time::timeout(patience, found).await.with_context(|| format!("not in {patience:?}"))?
    }
}

impl Drop for FakeBuildbarn {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The task of an action, as the scheduler gives it out: with the Action, and a timeout whatever that says.
pub fn task_of(action: &ActionBlobs) -> desired_state::Executing {
    let (_, message) = action.blobs.iter().find(|(digest, _)| *digest == action.digest).expect("the Action");
    let message = reapi::Action::decode(message.clone()).expect("it is one");
    let timeout = Some(protobuf::Duration { seconds: 60, nanos: 0 });
    desired_state::Executing {
        action_digest: Some(action.digest.to_wire()),
        action: Some(reapi::Action { timeout, ..message }),
        digest_function: action.digest.function().to_wire().into(),
        ..Default::default()
    }
}

fn hash_of(task: &desired_state::Executing) -> &str {
    task.action_digest.as_ref().map_or("", |digest| &digest.hash)
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let value = change(&mut self.lock());
        self.changed.send_modify(|count| *count += 1);
        value
    }
}

struct Service(Arc<State>);

/// A slot's call is under way; dropped when it has its answer, or has gone.
struct Calling(Arc<State>, Name);

impl Drop for Calling {
    fn drop(&mut self) {
        self.0.change(|inner| {
            if let Some(slot) = inner.slots.get_mut(&self.1) {
                slot.calling = Call::None;
            }
        });
    }
}

#[tonic::async_trait]
impl OperationQueue for Service {
    async fn synchronize(
        &self,
        request: Request<SynchronizeRequest>,
    ) -> Result<Response<SynchronizeResponse>, Status> {
        let deadline = request.metadata().get("grpc-timeout");
        let deadline = deadline.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let request = request.into_inner();
        let name: Name = request.worker_id.clone().into_iter().collect();
        let failing = self.0.change(|inner| {
            inner.heard.push(Heard { request: request.clone(), deadline });
            inner.check(&request, &name)?;
            let slot = inner.slots.entry(name.clone()).or_default();
            slot.calling = if waits(&request) { Call::Waiting } else { Call::Telling };
            Ok::<_, Status>(inner.failures.pop_front())
        })?;
        let _calling = Calling(self.0.clone(), name.clone());
        if let Some(Failing::Refused(status)) = failing {
            return Err(status);
        }
        let mut answer = self.0.change(|inner| inner.hear(&request, &name));
        if answer.is_none() {
            // Nothing to do, and time to wait.
            let mut changes = self.0.changed.subscribe();
            while answer.is_none() {
                answer = self.0.lock().give(&name);
                if answer.is_some() {
                    self.0.change(|_| ());
                } else {
                    changes.changed().await.map_err(|_| Status::unavailable("it is gone"))?;
                }
            }
        }
        match failing {
            Some(Failing::Lost(status)) => Err(status),
            Some(Failing::Unanswered) => std::future::pending().await,
            _ => Ok(Response::new(answer.unwrap_or_default())),
        }
    }
}

impl Inner {
    /// Refuses what the real one refuses, and remembers it.
    fn check(&mut self, request: &SynchronizeRequest, name: &Name) -> Result<(), Status> {
        let properties = request.platform.clone().unwrap_or_default().properties;
        let pairs: Vec<_> = properties.iter().map(|pair| (&pair.name, &pair.value)).collect();
        let is_ordered = pairs.windows(2).all(|two| two[0] < two[1]);
        let calling = self.slots.get(name).map_or(Call::None, |slot| slot.calling);
        // A slot gives up waiting for work when it leaves, and only then; that may not have been noticed yet.
        let is_leaving = is_idle(request) && request.prefer_being_idle;
        let is_given_up = is_leaving && calling == Call::Waiting;
        let state = request.current_state.as_ref().and_then(|state| state.worker_state.as_ref());
        let refusal = match state {
            _ if name.is_empty() => Some(Status::invalid_argument("no worker_id")),
            _ if !is_ordered => Some(Status::invalid_argument("the platform is not in order")),
            _ if request.size_class != 0 => Some(Status::invalid_argument("size classes are not declared")),
            _ if calling != Call::None => {
                Some(Status::resource_exhausted("another call of this slot is under way"))
            }
            None => Some(Status::invalid_argument("no current state")),
            Some(current_state::WorkerState::Executing(executing)) if executing.action_digest.is_none() => {
                Some(Status::invalid_argument("executing, but no action"))
            }
            Some(_) => None,
        };
        match refusal {
            None => Ok(()),
            Some(status) => {
                if !is_given_up {
                    self.mistakes.push(status.message().to_owned());
                }
                Err(status)
            }
        }
    }

    /// Takes in what a slot says; nothing if it is to wait for work.
    fn hear(&mut self, request: &SynchronizeRequest, name: &Name) -> Option<SynchronizeResponse> {
        let state = request.current_state.clone()?.worker_state?;
        let slot = self.slots.entry(name.clone()).or_default();
        if let current_state::WorkerState::Executing(executing) = state {
            let is_it = slot.task.as_ref().is_some_and(|task| task.action_digest == executing.action_digest);
            match executing.execution_state {
                Some(ExecutionState::Completed(response)) if is_it => {
                    let task = slot.task.clone()?;
                    slot.hold(None);
                    let hash = hash_of(&task).to_owned();
                    if self.ended.insert(hash.clone(), Ended::Response(Box::new(response))).is_some() {
                        self.mistakes.push(format!("{hash} has ended twice"));
                    }
                }
                Some(ExecutionState::Completed(_)) | None => {}
                Some(_) if is_it && !slot.is_taken_back => {
                    let next = SystemTime::now() + self.interval;
                    return Some(SynchronizeResponse {
                        next_synchronization_at: Some(time::timestamp(next)),
                        desired_state: None,
                    });
                }
                Some(_) => {
                    if slot.is_taken_back {
                        slot.hold(None);
                    }
                    return Some(self.again(name).unwrap_or_else(idle));
                }
            }
        }
        match self.again(name) {
            Some(again) => Some(again),
            None if request.prefer_being_idle => Some(idle()),
            None => None,
        }
    }

    /// What a slot was given and does not speak of.
    fn again(&mut self, name: &Name) -> Option<SynchronizeResponse> {
        let slot = self.slots.get_mut(name)?;
        let task = slot.task.clone()?;
        slot.retries += 1;
        if slot.retries > RETRIES_MAX {
            slot.hold(None);
            self.ended.insert(hash_of(&task).to_owned(), Ended::GivenUp);
            return None;
        }
        Some(start(task))
    }

    /// The next task for a slot.
    fn give(&mut self, name: &Name) -> Option<SynchronizeResponse> {
        let slot = self.slots.entry(name.clone()).or_default();
        if slot.calling == Call::LetGo {
            return Some(idle());
        }
        let task = self.queue.pop_front()?;
        slot.hold(Some(task.clone()));
        Some(start(task))
    }
}

impl SlotState {
    fn hold(&mut self, task: Option<desired_state::Executing>) {
        (self.task, self.retries, self.is_taken_back) = (task, 0, false);
    }
}

fn is_idle(request: &SynchronizeRequest) -> bool {
    let state = request.current_state.as_ref().and_then(|state| state.worker_state.as_ref());
    matches!(state, Some(current_state::WorkerState::Idle(_)))
}

/// Whether a call waits for work.
fn waits(request: &SynchronizeRequest) -> bool {
    is_idle(request) && !request.prefer_being_idle
}

fn start(task: desired_state::Executing) -> SynchronizeResponse {
    answer(desired_state::WorkerState::Executing(task))
}

fn idle() -> SynchronizeResponse {
    answer(desired_state::WorkerState::Idle(Empty {}))
}

fn answer(state: desired_state::WorkerState) -> SynchronizeResponse {
    SynchronizeResponse {
        next_synchronization_at: Some(time::timestamp(SystemTime::now())),
        desired_state: Some(DesiredState { worker_state: Some(state) }),
    }
}
