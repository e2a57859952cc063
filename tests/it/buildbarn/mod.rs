//! The frontend for Buildbarn's scheduler, against a fake of it that holds slots to the protocol.
//!
//! The rules that concern what is run are tested on the real binary, with a standalone longshore as the CAS.

mod actions;
mod slots;
mod storage;

use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::io::Clock;
use longshore_proto::remoteworker::desired_state;
use longshore_proto::{protobuf, reapi};
use longshore_tests::fake_buildbarn::{Ended, FakeBuildbarn};
use longshore_worker::action::Assignment;
use longshore_worker::connect::{Link, TlsOptions};
use longshore_worker::environment::MachineClock;
use longshore_worker::frontend::buildbarn::{Buildbarn, PINGS};
use longshore_worker::frontend::{SchedulerOptions, WorkSource};

/// The frontend alone: tests take actions from it, and say what they come to.
fn join(scheduler: &FakeBuildbarn, capacity: usize) -> Result<Arc<dyn WorkSource>> {
    let clock: Arc<dyn Clock> = Arc::new(MachineClock);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Ok(Buildbarn::start(&SchedulerOptions {
        link: Link::open(scheduler.uri(), &TlsOptions::default(), None, PINGS, clock.clone())?,
        instance_name: "main".to_owned(),
        worker_name: "tester".to_owned(),
        platform: vec![pair("pool", "b"), pair("ISA", "x86-64"), pair("pool", "a"), pair("pool", "b")],
        capacity,
        clock,
    }))
}

/// The digest of an action that nobody looks at.
fn action(number: u8) -> Digest {
    DigestFunction::Sha256.digest(&[number])
}

fn task(action: &Digest) -> desired_state::Executing {
    desired_state::Executing {
        action_digest: Some(action.to_wire()),
        action: Some(reapi::Action {
            timeout: Some(protobuf::Duration { seconds: 60, nanos: 0 }),
            ..Default::default()
        }),
        digest_function: action.function().to_wire().into(),
        ..Default::default()
    }
}

async fn next(source: &Arc<dyn WorkSource>) -> Result<Assignment> {
    source.next().await.context("the source has ended")
}

/// A response that says `message`.
fn response(message: &str) -> reapi::ExecuteResponse {
    reapi::ExecuteResponse {
        result: Some(reapi::ActionResult {
            execution_metadata: Some(reapi::ExecutedActionMetadata::default()),
            ..Default::default()
        }),
        message: message.to_owned(),
        ..Default::default()
    }
}

/// The response that a task ended with.
async fn response_of(scheduler: &FakeBuildbarn, action: &Digest) -> Result<reapi::ExecuteResponse> {
    match scheduler.ended(&action.hash_hex()).await? {
        Ended::Response(response) => Ok(*response),
        Ended::GivenUp => bail!("{action} was given up"),
    }
}

fn no_mistakes(scheduler: &FakeBuildbarn) -> Result<()> {
    let mistakes = scheduler.mistakes();
    ensure!(mistakes.is_empty(), "{mistakes:?}");
    Ok(())
}
