//! The frontend between a scheduler and its clients, on transcripts recorded from `NativeLink`: the same scenes are
//! played on the real one, which is recorded, on what was recorded, and on the fake of the other tests.
//!
//! The real one is asked where `NATIVELINK_SCENES` says which scenes its configuration is for; where it listens say the
//! same variables as for the [facts](super::facts). It has to do what was recorded, or is recorded anew where
//! `LONGSHORE_WRITE_TRANSCRIPTS` is set. `tests/nativelink/run` does either.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::DigestFunction;
use longshore_cas_store::io::Clock;
use longshore_proto::longrunning::Operation;
use longshore_proto::nativelink::update_for_worker::Update as Said;
use longshore_proto::{Message as _, nativelink};
use longshore_tests::action::TestAction;
use longshore_tests::client::{Client, finished};
use longshore_tests::fake_nativelink::FakeNativeLink;
use longshore_tests::transcript::{Recorder, Replay, Step, Tape, Transcript};
use longshore_worker::connect::{Link, TlsOptions};
use longshore_worker::environment::MachineClock;
use longshore_worker::frontend::nativelink::{NativeLink, PINGS};
use longshore_worker::frontend::{SchedulerOptions, WorkSource as _};
use tonic::{Code, Streaming};

use super::exchanges::{exchanges, summary};
use super::{next, ran, response};

const RECORDED: &str = "nativelink-1.6.6";

/// How long a scene may take before it is taken to stand still.
const PLAY_TIME_MAX: Duration = Duration::from_mins(2);

/// What happens to actions.
#[derive(Clone, Copy, Debug)]
enum Scene {
    /// They are run, and tried again.
    Life,
    /// Nobody waits for one any more.
    Killed,
    /// One takes so long that it is started again.
    Repeated,
}

impl Scene {
    const ALL: [Self; 3] = [Self::Life, Self::Killed, Self::Repeated];

    fn name(self) -> &'static str {
        match self {
            Self::Life => "life",
            Self::Killed => "killed",
            Self::Repeated => "repeated",
        }
    }

    fn transcript(self) -> String {
        format!("{RECORDED}-{}", self.name())
    }
}

/// What a worker does with transcripts is what it did when they were recorded.
#[tokio::test]
async fn the_worker_does_what_was_recorded() -> Result<()> {
    for scene in Scene::ALL {
        let recorded = Transcript::read(&scene.transcript())?;
        let replay = Replay::start(&recorded, summary).await?;
        play(scene, &Outside::Nobody, replay.uri(), replay.tape()).await.context(scene.name())?;
        ensure!(replay.mistakes().is_empty(), "{scene:?}: {:#?}", replay.mistakes());
        assert_eq!(exchanges(&replay.tape().transcript()), exchanges(&recorded), "{scene:?}");
    }
    Ok(())
}

/// What the fake of the other tests does is what the real one did.
#[tokio::test]
async fn the_fake_does_what_was_recorded() -> Result<()> {
    for scene in Scene::ALL {
        let fake = FakeNativeLink::start().await?;
        let recorder = Recorder::start(&fake.uri().replace("grpc:", "http:")).await?;
        play(scene, &Outside::Fake(fake), recorder.uri(), recorder.tape()).await.context(scene.name())?;
        let played = recorder.tape().transcript();
        assert_eq!(exchanges(&played), exchanges(&Transcript::read(&scene.transcript())?), "{scene:?}");
    }
    Ok(())
}

#[tokio::test]
async fn the_real_one_does_what_was_recorded() -> Result<()> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (Some(clients), Some(workers), Some(scenes)) =
        (variable("NATIVELINK_CLIENTS"), variable("NATIVELINK_WORKERS"), variable("NATIVELINK_SCENES"))
    else {
        // Its test on what was recorded is the one above.
        return Ok(());
    };
    for scene in Scene::ALL.into_iter().filter(|scene| scenes.split(' ').any(|name| name == scene.name())) {
        let recorder = Recorder::start(&workers).await?;
        let outside = Outside::Real(Client::connect(&clients).await?);
        play(scene, &outside, recorder.uri(), recorder.tape()).await.context(scene.name())?;
        let played = recorder.tape().transcript();
        if variable("LONGSHORE_WRITE_TRANSCRIPTS").is_some() {
            played.clone().scrubbed().write(&Transcript::path(&scene.transcript()))?;
        }
        assert_eq!(exchanges(&played), exchanges(&Transcript::read(&scene.transcript())?), "{scene:?}");
    }
    Ok(())
}

/// What is on the other side of the scheduler.
enum Outside {
    /// A client of the real one.
    Real(Client),
    /// What the fake is told.
    Fake(FakeNativeLink),
    /// What they did is in the transcript.
    Nobody,
}

/// What a client waits for; nothing where there is none.
type Waiting = Option<Streaming<Operation>>;

impl Outside {
    async fn submit(&self, name: &str) -> Result<Waiting> {
        let blobs = action(name).build(DigestFunction::Sha256);
        Ok(match self {
            Self::Real(client) => {
                client.upload(&blobs.blobs).await?;
                Some(client.start(&blobs.digest, true).await?)
            }
            Self::Fake(fake) => {
                fake.submit(name, &blobs.digest);
                None
            }
            Self::Nobody => None,
        })
    }

    /// Nobody waits for an action any more.
    fn leave(&self, name: &str, waiting: Waiting) {
        drop(waiting);
        if let Self::Fake(fake) = self {
            fake.kill(name);
        }
    }

    /// An action takes too long.
    fn repeat(&self, name: &str) {
        if let Self::Fake(fake) = self {
            fake.repeat(name);
        }
    }
}

fn action(name: &str) -> TestAction {
    TestAction::shell("true").salt(name.as_bytes().to_vec())
}

fn join(uri: &str) -> Result<Arc<NativeLink>> {
    let clock: Arc<dyn Clock> = Arc::new(MachineClock);
    Ok(NativeLink::start(SchedulerOptions {
        link: Link::open(uri, &TlsOptions::default(), None, PINGS, clock.clone())?,
        instance_name: String::new(),
        worker_name: "tester".to_owned(),
        platform: vec![("ISA".to_owned(), "x86-64".to_owned())],
        capacity: 2,
        clock,
    }))
}

/// Plays a scene on the scheduler at `uri`, of which `tape` is written; whoever waits in vain hears what was said.
async fn play(scene: Scene, outside: &Outside, uri: &str, tape: &Tape) -> Result<()> {
    let said = |_| anyhow::anyhow!("it goes no further than {:#?}", exchanges(&tape.transcript()));
    tokio::time::timeout(PLAY_TIME_MAX, act(scene, outside, uri, tape)).await.map_err(said)?
}

async fn act(scene: Scene, outside: &Outside, uri: &str, tape: &Tape) -> Result<()> {
    let name = scene.name();
    let source = join(uri)?;
    let waiting = outside.submit(name).await?;
    let assignment = next(&source).await?;
    assert_eq!(assignment.action_digest, action(name).build(DigestFunction::Sha256).digest);
    match scene {
        Scene::Life => {
            source.complete(assignment.operation, response(Code::Unavailable, "not here")).await;
            let assignment = next(&source).await?;
            ran(&assignment);
            tape.until(|transcript| has(transcript, "ran")).await;
            source.complete(assignment.operation, response(Code::Ok, "done")).await;
            says(waiting, "done").await?;
        }
        Scene::Killed => {
            outside.leave(name, waiting);
            assignment.cancelled.cancelled().await;
            source.complete(assignment.operation, response(Code::Cancelled, "")).await;
        }
        Scene::Repeated => {
            outside.repeat(name);
            tape.until(|transcript| starts(transcript) > 1).await;
            source.complete(assignment.operation, response(Code::Ok, "once")).await;
            says(waiting, "once").await?;
        }
    }
    tape.until(|transcript| has(transcript, "result")).await;
    source.drain();
    assert!(source.next().await.is_none());
    source.close().await;
    tape.until(
        |transcript| matches!(transcript.0.last(), Some(event) if matches!(event.step, Step::Ended { .. })),
    )
    .await;
    Ok(())
}

/// Whether the worker has said something of that kind last.
fn has(transcript: &Transcript, kind: &str) -> bool {
    exchanges(transcript).last().is_some_and(|last| last.starts_with(&format!("worker: {kind}")))
}

fn starts(transcript: &Transcript) -> usize {
    let is_start = |step: &Step| match step {
        Step::Reply(message) => nativelink::UpdateForWorker::decode(message.0.as_slice())
            .is_ok_and(|message| matches!(message.update, Some(Said::StartAction(_)))),
        _ => false,
    };
    transcript.0.iter().filter(|event| is_start(&event.step)).count()
}

async fn says(waiting: Waiting, message: &str) -> Result<()> {
    if let Some(stream) = waiting {
        assert_eq!(finished(stream).await?.message, message);
    }
    Ok(())
}
