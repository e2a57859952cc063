//! The calls.

use std::sync::Arc;
use std::time::Duration;

use longshore_proto::bots::bots_server::Bots;
use longshore_proto::bots::{self, LeaseState};
use longshore_proto::{Message as _, reapi};
use tokio::time::Instant;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Extensions, Request, Response, Status};

use super::{Call, Fault, Inner, State};

/// The keepalive of sessions, which bounds a poll whatever its deadline is.
const KEEPALIVE: Duration = Duration::from_mins(1);
/// A poll that would wait for less does not wait.
const WAIT_MIN: Duration = Duration::from_secs(3);

/// What it says of leases beside them.
const LEASES_TRAILER: &str = "executeoperationmetadata-bin";

#[derive(Clone, Debug)]
pub(super) struct Service(pub(super) Arc<State>);

#[tonic::async_trait]
impl Bots for Service {
    async fn create_bot_session(
        &self,
        request: Request<bots::CreateBotSessionRequest>,
    ) -> Result<Response<bots::BotSession>, Status> {
        let (headers, _, request) = request.into_parts();
        let session = request.bot_session.unwrap_or_default();
        let call = Call { parent: Some(request.parent), session, headers };
        self.serve(call).await
    }

    async fn update_bot_session(
        &self,
        request: Request<bots::UpdateBotSessionRequest>,
    ) -> Result<Response<bots::BotSession>, Status> {
        let (headers, _, request) = request.into_parts();
        let session = request.bot_session.unwrap_or_default();
        if request.name != session.name {
            self.0.change(|inner| inner.mistakes.push("the two names differ".to_owned()));
        }
        self.serve(Call { parent: None, session, headers }).await
    }
}

impl Service {
    async fn serve(&self, call: Call) -> Result<Response<bots::BotSession>, Status> {
        let state = &self.0;
        let deadline = deadline(&call.headers);
        let fault = state.change(|inner| {
            inner.check(&call);
            inner.calls.push(call.clone());
            inner.faults.pop_front()
        });
        if let Some(Fault::Refuse(status)) = fault {
            return Err(status);
        }
        let mut woken = state.woken.subscribe();
        let (before, mut is_answered) = state.change(|inner| inner.take_in(&call))?;
        match fault {
            Some(Fault::Lose(status)) => return Err(status),
            Some(Fault::Silence) => std::future::pending().await,
            Some(Fault::Stale) => return Ok(Response::new(before)),
            Some(Fault::Crossed) => state.change(|inner| inner.model.give()),
            Some(Fault::Refuse(_)) | None => {}
        }
        let wait = deadline.min(KEEPALIVE) * 4 / 5;
        let until = Instant::now() + wait;
        is_answered |= wait < WAIT_MIN;
        while !is_answered {
            tokio::select! {
                _ = woken.changed() => {
                    is_answered = state.change(|inner| {
                        inner.model.assign(&call.session) || !inner.faults.is_empty()
                    });
                }
                () = tokio::time::sleep_until(until) => is_answered = true,
            }
        }
        Ok(state.lock().answer(&call))
    }
}

impl Inner {
    /// Takes a call in: the session as it was, and whether there is anything new to answer at once.
    fn take_in(&mut self, call: &Call) -> Result<(bots::BotSession, bool), Status> {
        let (model, session) = (&mut self.model, &call.session);
        let before = model.reply(session);
        let mut is_new = false;
        if let Some(parent) = &call.parent {
            model.open(parent, &session.bot_id);
        } else {
            model.update(session)?;
            is_new = model.reply(session).version != session.version;
        }
        is_new |= model.assign(session);
        Ok((before, is_new || !model.has_room(session)))
    }

    fn answer(&self, call: &Call) -> Response<bots::BotSession> {
        let reply = self.model.reply(&call.session);
        let mut metadata = MetadataMap::new();
        for payload in reply.leases.iter().filter_map(|lease| lease.payload.as_ref()) {
            let digest = self.function.digest(&payload.value).to_wire();
            let named = reapi::ExecuteOperationMetadata { action_digest: Some(digest), ..Default::default() };
            metadata.append_bin(LEASES_TRAILER, MetadataValue::from_bytes(&named.encode_to_vec()));
        }
        // To the bot it is one whether this is said before or after the reply.
        Response::from_parts(metadata, reply, Extensions::new())
    }

    /// Notes what a bot must not do.
    fn check(&mut self, call: &Call) {
        let session = &call.session;
        let is_first = call.parent.is_some();
        let mut wrong = |is_wrong: bool, what: &str| {
            if is_wrong {
                self.mistakes.push(format!("{what}: {session:?}"));
            }
        };
        wrong(session.bot_id.is_empty(), "no bot_id");
        wrong(is_first && !session.version.is_empty(), "a version that no server gave");
        wrong(is_first && !session.leases.is_empty(), "leases of another session");
        wrong(!call.headers.contains_key("grpc-timeout"), "no deadline");
        for lease in &session.leases {
            let status = lease.status.as_ref().map(|status| Code::from(status.code));
            match lease.state() {
                LeaseState::Active => wrong(lease.result.is_some(), "a result that is none yet"),
                LeaseState::Completed => {
                    wrong(status.is_none(), "completed without a status");
                    let is_ok = status == Some(Code::Ok);
                    wrong(is_ok && lease.result.is_none(), "completed without a result");
                }
                _ => wrong(true, "a state that is not the bot's to set"),
            }
        }
    }
}

/// The deadline of a call: a number and the first letter of its unit.
fn deadline(headers: &MetadataMap) -> Duration {
    let value = headers.get("grpc-timeout").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (number, unit) = value.split_at(value.len().saturating_sub(1));
    let number = number.parse().unwrap_or(0);
    match unit {
        "H" => Duration::from_hours(number),
        "M" => Duration::from_mins(number),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => Duration::MAX / 16,
    }
}
