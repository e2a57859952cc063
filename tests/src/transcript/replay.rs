//! The scheduler of a transcript: it says what the recorded one said, as far as the worker says what was recorded.
//!
//! A worker may say the same again, or once less: how often it does depends on the time. It is then answered as before.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use super::codec::{self, Answer, Incoming, binary, metadata};
use super::tape::Call;
use super::{Headers, Message, Step, Tape, Transcript};

/// What matters of a message that a worker sends by that method; nothing of one that does not matter at all.
pub type Summary = fn(method: &str, message: &[u8]) -> Option<String>;

/// The scheduler; it ends when this is dropped.
#[derive(Debug)]
pub struct Replay {
    uri: String,
    tape: Tape,
    script: Script,
    task: JoinHandle<()>,
}

#[derive(Clone, Debug)]
struct Script {
    calls: Arc<[Recorded]>,
    summary: Summary,
    tape: Tape,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// How many of the recorded calls have been made.
    made: usize,
    mistakes: Vec<String>,
}

#[derive(Debug)]
struct Recorded {
    method: String,
    /// What matters of its first message.
    first: Option<String>,
    steps: Vec<Step>,
}

impl Replay {
    /// Starts one that goes by a transcript.
    pub async fn start(transcript: &Transcript, summary: Summary) -> Result<Self> {
        let calls = transcript.calls().into_iter().filter_map(|steps| Recorded::new(&steps, summary));
        let tape = Tape::new();
        let script = Script { calls: calls.collect(), summary, tape: tape.clone(), state: Arc::default() };
        let (uri, task) = codec::serve(script.clone()).await?;
        Ok(Self { uri, tape, script, task })
    }

    /// Where it listens.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// What has passed.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }

    /// What the worker said that the recorded one did not say.
    pub fn mistakes(&self) -> Vec<String> {
        self.script.lock().mistakes.clone()
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Recorded {
    fn new(steps: &[&Step], summary: Summary) -> Option<Self> {
        let [Step::Called { method, .. }, steps @ ..] = steps else { return None };
        let mut requests = steps.iter().filter_map(|step| match step {
            Step::Request(message) => Some(message),
            _ => None,
        });
        let first = requests.next().and_then(|message| summary(method, &message.0));
        Some(Self {
            method: method.clone(),
            first,
            steps: steps.iter().map(|step| (*step).clone()).collect(),
        })
    }

    fn is_like(&self, other: &Self) -> bool {
        (&self.method, &self.first) == (&other.method, &other.first)
    }
}

impl Script {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The recorded call that this one is: the next one, one after it if those between only repeat what was said
    /// before, or the last one once more.
    fn choose(&self, method: &str, first: Option<&String>) -> Option<usize> {
        let mut state = self.lock();
        let is_it = |call: &Recorded| call.method == method && call.first.as_ref() == first;
        for at in state.made..self.calls.len() {
            if is_it(&self.calls[at]) {
                state.made = at + 1;
                return Some(at);
            }
            if at == 0 || !self.calls[at].is_like(&self.calls[at - 1]) {
                break;
            }
        }
        let last = state.made.checked_sub(1).filter(|last| is_it(&self.calls[*last]));
        if last.is_none() {
            let mistake = format!("a call after {} others: {method} {first:?}", state.made);
            state.mistakes.push(mistake);
        }
        last
    }

    /// The next message: what matters of it, if anything does. At the end of all there is none.
    async fn next(&self, incoming: &mut Incoming, call: &mut Call) -> Option<Option<String>> {
        let request = incoming.requests.message().await.ok().flatten()?;
        call.push(Step::Request(Message(request.to_vec())));
        Some((self.summary)(&incoming.method, &request))
    }

    /// The next message that matters.
    async fn heard(&self, incoming: &mut Incoming, call: &mut Call) -> Option<String> {
        loop {
            if let Some(heard) = self.next(incoming, call).await? {
                return Some(heard);
            }
        }
    }

    async fn play(&self, mut incoming: Incoming, call: &mut Call) -> Status {
        let mut heard = self.heard(&mut incoming, call).await;
        let Some(chosen) = self.choose(&incoming.method, heard.as_ref()) else {
            return Status::internal("that was not recorded");
        };
        let mut is_alive = false;
        for step in &self.calls[chosen].steps {
            match step {
                Step::Called { .. } => {}
                Step::Request(message) => {
                    let Some(wanted) = (self.summary)(&incoming.method, &message.0) else {
                        // Signs of life stand for time: what came after many of them comes after one.
                        if !std::mem::replace(&mut is_alive, true) && heard.is_none() {
                            heard = self.next(&mut incoming, call).await.flatten();
                        }
                        continue;
                    };
                    let said = match heard.take() {
                        Some(early) => Some(early),
                        None => self.heard(&mut incoming, call).await,
                    };
                    if said.as_ref() != Some(&wanted) {
                        let mistake = format!("instead of {wanted}: {said:?}");
                        self.lock().mistakes.push(mistake.clone());
                        return Status::internal(mistake);
                    }
                }
                Step::Reply(message) => {
                    is_alive = false;
                    call.push(step.clone());
                    // Whoever has gone is found out by what follows.
                    let _ = incoming.replies.send(Ok(Bytes::from(message.0.clone())));
                }
                Step::Ended { code, message, trailers } => return ended(*code, message, trailers),
                Step::Abandoned => return std::future::pending().await,
            }
        }
        std::future::pending().await
    }
}

impl Answer for Script {
    fn answer(&self, incoming: Incoming) -> BoxFuture<'static, ()> {
        let step = Step::Called { method: incoming.method.clone(), headers: binary(&incoming.headers) };
        let mut call = Call::begin(&self.tape, step);
        let script = self.clone();
        Box::pin(async move {
            let replies = incoming.replies.clone();
            let end = script.play(incoming, &mut call).await;
            let (code, message) = (end.code().into(), end.message().to_owned());
            call.push(Step::Ended { code, message, trailers: binary(end.metadata()) });
            let _ = replies.send(Err(end));
        })
    }
}

fn ended(code: i32, message: &str, trailers: &Headers) -> Status {
    Status::with_metadata(Code::from(code), message, metadata(trailers))
}
