//! The frontend between a server and its clients, on transcripts recorded from `BuildGrid`: the same scenes are played on
//! the real one, which is recorded, on what was recorded, and on the fake of the other tests.
//!
//! The real one is asked where `BUILDGRID_SERVER` says where it listens and `BUILDGRID_VERSION` which one it is, with no
//! other bot there; `tests/buildgrid/run` does so. It has to do what was recorded, or is recorded anew where
//! `LONGSHORE_WRITE_TRANSCRIPTS` is set.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::DigestFunction;
use longshore_proto::bots::bots_client::BotsClient;
use longshore_proto::bots::{self, BotStatus, LeaseState};
use longshore_proto::{longrunning, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::{Client, finished};
use longshore_tests::fake_bots::{ACTION_URL, FakeBots, Handshake};
use longshore_tests::transcript::{Recorder, Replay, Tape, Transcript};
use longshore_worker::action::{Phase, Progress};
use longshore_worker::connect::{Link, TlsOptions};
use longshore_worker::environment::MachineClock;
use longshore_worker::frontend::bots::{Bots, PINGS};
use longshore_worker::frontend::{SchedulerOptions, WorkSource};
use tokio::task::JoinHandle;
use tonic::Code;

use super::exchanges::{Call, calls, check_versions, exchanges, summary};
use super::{BOT, next, response};

/// How long a scene may take before it is taken to stand still.
const PLAY_TIME_MAX: Duration = Duration::from_mins(1);

/// The versions that were recorded, and how they hand out leases.
const RECORDED: [(&str, Handshake); 2] =
    [("buildgrid-0.4.4", Handshake::Given), ("buildgrid-0.2.0", Handshake::Offered)];

/// What happens to actions.
#[derive(Clone, Copy, Debug)]
enum Scene {
    /// They are run, tried again, and refused.
    Life,
    /// Nobody wants one any more.
    Cancelled,
    /// The session is not known any more.
    Forgotten,
}

impl Scene {
    const ALL: [Self; 3] = [Self::Life, Self::Cancelled, Self::Forgotten];

    fn name(self) -> &'static str {
        match self {
            Self::Life => "life",
            Self::Cancelled => "cancelled",
            Self::Forgotten => "forgotten",
        }
    }
}

/// What a worker does with transcripts is what it did when they were recorded.
#[tokio::test]
async fn the_worker_does_what_was_recorded() -> Result<()> {
    for (version, _) in RECORDED {
        for scene in Scene::ALL {
            let name = format!("{version}-{}", scene.name());
            let recorded = Transcript::read(&name)?;
            let replay = Replay::start(&recorded, summary).await?;
            play(scene, &Outside::Nobody, replay.uri(), replay.tape()).await.context(name.clone())?;
            ensure!(replay.mistakes().is_empty(), "{name}: {:#?}", replay.mistakes());
            let played = replay.tape().transcript();
            assert_eq!(exchanges(&played), exchanges(&recorded), "{name}");
            check_versions(&played).context(name)?;
        }
    }
    Ok(())
}

/// What the fake of the other tests does is what the real one did.
#[tokio::test]
async fn the_fake_does_what_was_recorded() -> Result<()> {
    for (version, handshake) in RECORDED {
        for scene in Scene::ALL {
            let name = format!("{version}-{}", scene.name());
            let fake = Arc::new(FakeBots::start(handshake).await?);
            let recorder = Recorder::start(&fake.uri().replace("grpc:", "http:")).await?;
            play(scene, &Outside::Fake(fake), recorder.uri(), recorder.tape()).await.context(name.clone())?;
            let played = recorder.tape().transcript();
            assert_eq!(exchanges(&played), exchanges(&Transcript::read(&name)?), "{name}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_real_one_does_what_was_recorded() -> Result<()> {
    let variable = |name| std::env::var(name).ok();
    let (Some(server), Some(version)) = (variable("BUILDGRID_SERVER"), variable("BUILDGRID_VERSION")) else {
        // Its test on what was recorded is the one above.
        return Ok(());
    };
    for scene in Scene::ALL {
        let name = format!("buildgrid-{version}-{}", scene.name());
        let recorder = Recorder::start(&server).await?;
        let outside = Outside::Real { client: Client::connect(&server).await? };
        play(scene, &outside, recorder.uri(), recorder.tape()).await.context(name.clone())?;
        let played = recorder.tape().transcript();
        if variable("LONGSHORE_WRITE_TRANSCRIPTS").is_some_and(|value| !value.is_empty()) {
            played.clone().scrubbed().write(&Transcript::path(&name))?;
        }
        assert_eq!(exchanges(&played), exchanges(&Transcript::read(&name)?), "{name}");
    }
    Ok(())
}

/// What is on the other side of the server.
enum Outside {
    /// Clients of the real one.
    Real { client: Client },
    /// What the fake is told.
    Fake(Arc<FakeBots>),
    /// What they did is in the transcript.
    Nobody,
}

/// What a client hears in the end; nothing where there is none.
type Answer = JoinHandle<Result<Option<reapi::ExecuteResponse>>>;

/// An action that a client waits for.
struct Submitted {
    /// Its name, for who cancels it.
    name: String,
    answer: Answer,
}

impl Outside {
    async fn submit(&self, salt: &str) -> Result<Submitted> {
        let blobs = action(salt).build(DigestFunction::Sha256);
        Ok(match self {
            Self::Real { client } => {
                client.upload(&blobs.blobs).await?;
                let mut stream = client.start(&blobs.digest, true).await?;
                let name = stream.message().await?.context("an operation")?.name;
                Submitted { name, answer: tokio::spawn(async { Ok(Some(finished(stream).await?)) }) }
            }
            Self::Fake(fake) => {
                let (_, message) =
                    blobs.blobs.iter().find(|(digest, _)| *digest == blobs.digest).context("the Action")?;
                fake.submit_payload(salt, ACTION_URL, message.to_vec());
                Submitted { name: salt.to_owned(), answer: tokio::spawn(async { Ok(None) }) }
            }
            Self::Nobody => Submitted { name: String::new(), answer: tokio::spawn(async { Ok(None) }) },
        })
    }

    async fn cancel(&self, submitted: &Submitted) -> Result<()> {
        match self {
            Self::Real { client } => {
                let request = longrunning::CancelOperationRequest { name: submitted.name.clone() };
                client.operations().cancel_operation(request).await?;
            }
            Self::Fake(fake) => fake.take_back(&submitted.name),
            Self::Nobody => {}
        }
        Ok(())
    }

    /// The server does not know the session any more.
    async fn forget(&self) -> Result<()> {
        match self {
            Self::Real { client } => {
                // Another process of the same name takes its place, and is not heard of again.
                let bot = bots::BotSession {
                    bot_id: BOT.to_owned(),
                    status: BotStatus::Unhealthy.into(),
                    worker: Some(bots::Worker {
                        devices: vec![bots::Device::default()],
                        ..Default::default()
                    }),
                    ..Default::default()
                };
                let request = bots::CreateBotSessionRequest { parent: String::new(), bot_session: Some(bot) };
                BotsClient::new(client.channel()).create_bot_session(request).await?;
            }
            Self::Fake(fake) => fake.forget(),
            Self::Nobody => {}
        }
        Ok(())
    }
}

fn join(uri: &str) -> Result<Arc<dyn WorkSource>> {
    let clock = Arc::new(MachineClock);
    Ok(Bots::start(SchedulerOptions {
        link: Link::open(uri, &TlsOptions::default(), None, PINGS, clock.clone())?,
        instance_name: String::new(),
        worker_name: BOT.to_owned(),
        platform: vec![("ISA".to_owned(), "x86-64".to_owned())],
        capacity: 1,
        clock,
    }))
}

fn action(salt: &str) -> TestAction {
    TestAction::shell("true").salt(salt.as_bytes().to_vec())
}

/// Plays a scene on the server at `uri`, of which `tape` is written; whoever waits in vain hears what was said.
async fn play(scene: Scene, outside: &Outside, uri: &str, tape: &Tape) -> Result<()> {
    let said = |_| anyhow::anyhow!("it goes no further than {:#?}", exchanges(&tape.transcript()));
    tokio::time::timeout(PLAY_TIME_MAX, act(scene, outside, uri, tape)).await.map_err(said)?
}

async fn act(scene: Scene, outside: &Outside, uri: &str, tape: &Tape) -> Result<()> {
    let first = outside.submit(&format!("{}-1", scene.name())).await?;
    let source = join(uri)?;
    let assignment = next(&*source).await?;
    assert_eq!(
        assignment.action_digest,
        action(&format!("{}-1", scene.name())).build(DigestFunction::Sha256).digest
    );
    accepted(tape).await;
    match scene {
        Scene::Life => {
            assignment.progress.send_replace(progress());
            tape.until(|transcript| calls(transcript).any(|call| call.has_progress && call.end.is_some()))
                .await;
            source.complete(assignment.operation, response(Code::Ok, 7)).await;
            says(first, Code::Ok).await?;
            retried(outside, &*source, tape).await?;
        }
        Scene::Cancelled => {
            outside.cancel(&first).await?;
            assignment.cancelled.cancelled().await;
            source.complete(assignment.operation, response(Code::Cancelled, -1)).await;
        }
        Scene::Forgotten => {
            outside.forget().await?;
            assignment.cancelled.cancelled().await;
            let again = next(&*source).await?;
            assert_eq!(again.action_digest, assignment.action_digest);
            accepted(tape).await;
            source.complete(again.operation, response(Code::Ok, 7)).await;
            says(first, Code::Ok).await?;
        }
    }
    idle(tape).await;
    source.drain();
    assert!(source.next().await.is_none());
    source.close().await;
    Ok(())
}

/// An action that comes while the bot waits, is tried again, and ends badly.
async fn retried(outside: &Outside, source: &dyn WorkSource, tape: &Tape) -> Result<()> {
    idle(tape).await;
    let submitted = outside.submit("life-2").await?;
    let attempt = next(source).await?;
    accepted(tape).await;
    source.complete(attempt.operation, response(Code::Unavailable, -1)).await;
    let attempt = next(source).await?;
    accepted(tape).await;
    source.complete(attempt.operation, response(Code::FailedPrecondition, -1)).await;
    says(submitted, Code::FailedPrecondition).await
}

fn progress() -> Progress {
    let metadata = reapi::ExecutedActionMetadata { worker: BOT.to_owned(), ..Default::default() };
    Progress { phase: Phase::Running, metadata }
}

/// Waits until the server has heard, last of all, that a lease is active.
async fn accepted(tape: &Tape) {
    let is_active = |call: Call| call.session.leases.iter().any(|lease| lease.state() == LeaseState::Active);
    let last = |transcript: &Transcript| calls(transcript).filter(|call| call.end.is_some()).last();
    tape.until(|transcript| last(transcript).is_some_and(is_active)).await;
}

/// Waits until the bot has asked for work since its last result.
async fn idle(tape: &Tape) {
    let has_result = |call: &Call| call.session.leases.iter().any(|lease| lease.result.is_some());
    let is_idle = |call: &Call| !call.is_first && call.session.leases.is_empty();
    tape.until(|transcript| {
        calls(transcript).fold(false, |idle, call| !has_result(&call) && (idle || is_idle(&call)))
    })
    .await;
}

async fn says(submitted: Submitted, code: Code) -> Result<()> {
    if let Some(response) = submitted.answer.await?? {
        assert_eq!(Code::from(response.status.map_or(0, |status| status.code)), code);
    }
    Ok(())
}
