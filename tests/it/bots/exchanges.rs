//! Transcripts as the calls of a bot: what matters of them, and whether two are the same.

use anyhow::{Result, ensure};
use longshore_proto::bots::{self, BotStatus};
use longshore_proto::{Message as _, protobuf, reapi};
use longshore_tests::transcript::{Step, Transcript};
use tonic::Code;

const UPDATE: &str = "UpdateBotSession";

/// A call of a transcript.
pub(super) struct Call {
    pub(super) is_first: bool,
    pub(super) session: bots::BotSession,
    pub(super) has_progress: bool,
    pub(super) reply: Option<bots::BotSession>,
    pub(super) end: Option<Code>,
}

pub(super) fn calls(transcript: &Transcript) -> impl Iterator<Item = Call> {
    let call = |steps: Vec<&Step>| {
        let mut call = None::<Call>;
        let mut method = String::new();
        let mut has_progress = false;
        for step in steps {
            match (step, &mut call) {
                (Step::Called { method: called, headers }, _) => {
                    method.clone_from(called);
                    has_progress = headers.keys().any(|name| name.starts_with("partial-execution-metadata-"));
                }
                (Step::Request(message), None) => {
                    let session = session(&method, &message.0)?;
                    let is_first = !method.ends_with(UPDATE);
                    call = Some(Call { is_first, session, has_progress, reply: None, end: None });
                }
                (Step::Reply(message), Some(call)) => {
                    call.reply = bots::BotSession::decode(message.0.as_slice()).ok();
                }
                (Step::Ended { code, .. }, Some(call)) => {
                    call.end = Some(Code::from(*code));
                }
                _ => {}
            }
        }
        call
    };
    transcript.calls().into_iter().filter_map(call).collect::<Vec<_>>().into_iter()
}

fn session(method: &str, message: &[u8]) -> Option<bots::BotSession> {
    if method.ends_with(UPDATE) {
        bots::UpdateBotSessionRequest::decode(message).ok()?.bot_session
    } else {
        bots::CreateBotSessionRequest::decode(message).ok()?.bot_session
    }
}

/// What matters of a call: a version is echoed, and has nothing to say.
pub(super) fn summary(method: &str, message: &[u8]) -> Option<String> {
    let session = session(method, message)?;
    let leases: Vec<_> = session.leases.iter().map(lease_summary).collect();
    Some(format!("{method} {} {} {:?} {leases:?}", session.name, session.bot_id, session.status()))
}

fn lease_summary(lease: &bots::Lease) -> String {
    let status = lease.status.as_ref().map(|status| Code::from(status.code));
    let result = lease.result.as_ref().map(|protobuf::Any { type_url, value }| {
        (type_url.clone(), reapi::ActionResult::decode(value.as_slice()).map(|result| result.exit_code).ok())
    });
    format!("{} {:?} {status:?} {result:?}", lease.id, lease.state())
}

/// What both sides said, call by call, with names that count and without repetitions.
pub(super) fn exchanges(transcript: &Transcript) -> Vec<String> {
    let mut names = Names::default();
    let mut found = Vec::new();
    for call in calls(transcript) {
        let asked = leases(&call.session, &mut names);
        let who = if call.is_first {
            "opens".to_owned()
        } else {
            format!("session {}", names.of(&call.session.name))
        };
        let answer = match (&call.reply, call.end) {
            (Some(reply), _) => {
                let name = names.of(&reply.name);
                format!("session {name} {}", leases(reply, &mut names))
            }
            // A poll was given up for something to tell; how many there were before that is a matter of time.
            (None, Some(Code::Ok) | None) => continue,
            (None, Some(code)) => format!("{code:?}"),
        };
        let status = call.session.status();
        // A server may stumble over a farewell: the poll that was given up for it is still under way there.
        let answer = if status == BotStatus::BotTerminating { "any".to_owned() } else { answer };
        let exchange = format!("{who} {status:?} {asked} -> {answer}");
        if found.last() != Some(&exchange) {
            found.push(exchange);
        }
    }
    found
}

fn leases(session: &bots::BotSession, names: &mut Names) -> String {
    let leases = session.leases.iter().map(|lease| {
        let known = bots::Lease { id: names.of(&lease.id).to_string(), ..lease.clone() };
        format!("[{}]", lease_summary(&known))
    });
    leases.collect::<Vec<_>>().concat()
}

/// Names by the order in which they appear.
#[derive(Default)]
struct Names(Vec<String>);

impl Names {
    fn of(&mut self, name: &str) -> usize {
        self.0.iter().position(|known| known == name).unwrap_or_else(|| {
            self.0.push(name.to_owned());
            self.0.len() - 1
        })
    }
}

/// Each call has the version of the reply before it.
pub(super) fn check_versions(transcript: &Transcript) -> Result<()> {
    let mut version = String::new();
    for call in calls(transcript) {
        let expected = if call.is_first { "" } else { version.as_str() };
        ensure!(call.session.version == expected, "{} after {version}", call.session.version);
        if let Some(reply) = call.reply {
            version = reply.version;
        }
    }
    Ok(())
}
