//! What the server knows: one session, and leases from when they are submitted until they are finished.

use std::collections::BTreeMap;

use longshore_proto::bots::{self, BotStatus, LeaseState};
use longshore_proto::{protobuf, rpc};
use tonic::{Code, Status};

use super::Handshake;

/// Attempts at a lease whose result is one that is tried again.
const ATTEMPTS_MAX: usize = 5;

#[derive(Debug)]
pub(super) struct Model {
    handshake: Handshake,
    sessions: u64,
    bot: Option<Bot>,
    jobs: BTreeMap<String, Job>,
}

#[derive(Debug)]
struct Bot {
    name: String,
    id: String,
    version: u64,
}

#[derive(Debug)]
struct Job {
    payload: protobuf::Any,
    stage: Stage,
    /// Every result that was reported of it.
    results: Vec<bots::Lease>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// To be tried again, but not in the reply to the call that said so.
    Failed,
    Queued,
    Leased(LeaseState),
    Over,
}

impl Model {
    pub(super) fn new(handshake: Handshake) -> Self {
        Self { handshake, sessions: 0, bot: None, jobs: BTreeMap::new() }
    }

    pub(super) fn submit(&mut self, id: &str, payload: protobuf::Any) {
        let job = Job { payload, stage: Stage::Queued, results: Vec::new() };
        self.jobs.insert(id.to_owned(), job);
    }

    pub(super) fn take_back(&mut self, id: &str) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.stage = match (self.handshake, job.stage) {
                (Handshake::Offered, Stage::Leased(_)) => Stage::Leased(LeaseState::Cancelled),
                _ => Stage::Over,
            };
        }
        self.changed();
    }

    pub(super) fn forget(&mut self) {
        self.bot = None;
        for job in self.jobs.values_mut().filter(|job| matches!(job.stage, Stage::Leased(_))) {
            job.stage = Stage::Queued;
        }
    }

    pub(super) fn results(&self, id: &str) -> Vec<bots::Lease> {
        self.jobs.get(id).map(|job| job.results.clone()).unwrap_or_default()
    }

    pub(super) fn finished(&self, id: &str) -> Option<bots::Lease> {
        let job = self.jobs.get(id)?;
        job.results.last().filter(|_| job.stage == Stage::Over).cloned()
    }

    pub(super) fn is_accepted(&self, id: &str) -> bool {
        self.jobs.get(id).is_some_and(|job| job.stage == Stage::Leased(LeaseState::Active))
    }

    /// Opens a session; one of the same bot from before is over.
    pub(super) fn open(&mut self, parent: &str, bot_id: &str) {
        self.forget();
        self.sessions += 1;
        let name = format!("{parent}/session-{}", self.sessions);
        self.bot = Some(Bot { name, id: bot_id.to_owned(), version: 1 });
    }

    /// Takes in what the bot says of its leases.
    pub(super) fn update(&mut self, session: &bots::BotSession) -> Result<(), Status> {
        let is_known = |bot: &Bot| bot.name == session.name && bot.id == session.bot_id;
        if !self.bot.as_ref().is_some_and(is_known) {
            return Err(Status::invalid_argument("Bot does not exist while validating leases."));
        }
        for (id, job) in &mut self.jobs {
            let is_listed = session.leases.iter().any(|lease| lease.id == *id);
            job.stage = match job.stage {
                Stage::Failed => Stage::Queued,
                // The bot has heard of it.
                Stage::Leased(LeaseState::Cancelled) if !is_listed => Stage::Over,
                stage => stage,
            };
        }
        for lease in &session.leases {
            let Some(job) = self.jobs.get_mut(&lease.id) else { continue };
            match (lease.state(), job.stage) {
                (_, Stage::Leased(LeaseState::Cancelled)) => {}
                (LeaseState::Completed, Stage::Leased(_)) => {
                    job.results.push(lease.clone());
                    let code =
                        Code::from(lease.status.as_ref().map_or(0, |status: &rpc::Status| status.code));
                    let is_retried = matches!(code, Code::Internal | Code::Unavailable);
                    let is_over = !is_retried || job.results.len() >= ATTEMPTS_MAX;
                    job.stage = if is_over { Stage::Over } else { Stage::Failed };
                    self.changed();
                }
                (LeaseState::Active, Stage::Leased(_)) => job.stage = Stage::Leased(LeaseState::Active),
                _ => {}
            }
        }
        Ok(())
    }

    /// Gives what is queued, whatever the bot has to say to that.
    pub(super) fn give(&mut self) {
        for job in self.jobs.values_mut().filter(|job| job.stage == Stage::Queued) {
            job.stage = Stage::Leased(LeaseState::Active);
        }
        self.changed();
    }

    /// Gives or offers what is queued, as far as the bot has room; whether it was anything.
    pub(super) fn assign(&mut self, session: &bots::BotSession) -> bool {
        let leased = self.jobs.values().filter(|job| matches!(job.stage, Stage::Leased(_))).count();
        let capacity = match self.handshake {
            Handshake::Given => capacity(session),
            Handshake::Offered => 1,
        };
        let room = if session.status() == BotStatus::Ok { capacity.saturating_sub(leased) } else { 0 };
        let state = match self.handshake {
            Handshake::Given => LeaseState::Active,
            Handshake::Offered => LeaseState::Pending,
        };
        let mut is_any = false;
        for job in self.jobs.values_mut().filter(|job| job.stage == Stage::Queued).take(room) {
            job.stage = Stage::Leased(state);
            is_any = true;
        }
        if is_any {
            self.changed();
        }
        is_any
    }

    /// Whether a poll of this session waits for work.
    pub(super) fn has_room(&self, session: &bots::BotSession) -> bool {
        let leased = self.jobs.values().filter(|job| matches!(job.stage, Stage::Leased(_))).count();
        let capacity = if self.handshake == Handshake::Given { capacity(session) } else { 1 };
        session.status() == BotStatus::Ok && leased < capacity
    }

    /// The session as the server has it.
    pub(super) fn reply(&self, session: &bots::BotSession) -> bots::BotSession {
        let leases = self.jobs.iter().filter_map(|(id, job)| match job.stage {
            Stage::Leased(state) => Some(bots::Lease {
                id: id.clone(),
                payload: Some(job.payload.clone()),
                state: state.into(),
                ..Default::default()
            }),
            Stage::Failed | Stage::Queued | Stage::Over => None,
        });
        let bot = self.bot.as_ref();
        bots::BotSession {
            name: bot.map(|bot| bot.name.clone()).unwrap_or_default(),
            version: bot.map(|bot| bot.version.to_string()).unwrap_or_default(),
            leases: leases.collect(),
            ..session.clone()
        }
    }

    fn changed(&mut self) {
        if let Some(bot) = &mut self.bot {
            bot.version += 1;
        }
    }
}

/// How many leases a bot takes.
pub(super) fn capacity(session: &bots::BotSession) -> usize {
    let configs = session.worker.iter().flat_map(|worker| &worker.configs);
    let capacity =
        configs.filter(|config| config.key == "capacity").find_map(|config| config.value.parse().ok());
    capacity.unwrap_or(1)
}
