//! The frontend for `NativeLink`'s scheduler, against a fake of it that holds workers to the protocol.

mod exchanges;
mod facts;
mod faults;
mod session;
mod transcripts;
mod worker;

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::io::Clock;
use longshore_proto::{reapi, rpc};
use longshore_tests::fake_nativelink::{Ended, FakeNativeLink};
use longshore_worker::action::{Assignment, Phase, Progress};
use longshore_worker::connect::{Link, TlsOptions};
use longshore_worker::environment::MachineClock;
use longshore_worker::frontend::nativelink::{NativeLink, PINGS};
use longshore_worker::frontend::{SchedulerOptions, WorkSource as _};
use tonic::Code;

/// The frontend alone: tests take actions from it, and say what they come to.
fn join(scheduler: &FakeNativeLink, capacity: usize) -> Result<Arc<NativeLink>> {
    join_at(scheduler.uri(), capacity)
}

fn join_at(endpoint: &str, capacity: usize) -> Result<Arc<NativeLink>> {
    let clock: Arc<dyn Clock> = Arc::new(MachineClock);
    Ok(NativeLink::start(SchedulerOptions {
        link: Link::open(endpoint, &TlsOptions::default(), None, PINGS, clock.clone())?,
        instance_name: String::new(),
        worker_name: "tester".to_owned(),
        platform: vec![("ISA".to_owned(), "x86-64".to_owned()), ("pool".to_owned(), "a".to_owned())],
        capacity,
        clock,
    }))
}

/// The digest of an action that nobody looks at.
fn action(number: u8) -> Digest {
    DigestFunction::Sha256.digest(&[number])
}

async fn next(source: &NativeLink) -> Result<Assignment> {
    source.next().await.context("the source has ended")
}

/// The command has ended.
fn ran(assignment: &Assignment) {
    assignment.progress.send_replace(Progress { phase: Phase::UploadingOutputs, ..Progress::default() });
}

/// A response that says `message`.
fn response(code: Code, message: &str) -> reapi::ExecuteResponse {
    let status = rpc::Status { code: code.into(), ..Default::default() };
    reapi::ExecuteResponse { status: Some(status), message: message.to_owned(), ..Default::default() }
}

/// Takes the next action and ends it well.
async fn serve_one(source: &NativeLink) -> Result<()> {
    let assignment = next(source).await?;
    ran(&assignment);
    source.complete(assignment.operation, response(Code::Ok, "served")).await;
    Ok(())
}

/// The message of the response that an operation ended with.
async fn message_of(scheduler: &FakeNativeLink, operation: &str) -> Result<String> {
    match scheduler.ended(operation).await {
        Ended::Response(response) => Ok(response.message),
        ended => anyhow::bail!("{operation}: {ended:?}"),
    }
}

fn no_mistakes(scheduler: &FakeNativeLink) -> Result<()> {
    let mistakes = scheduler.mistakes();
    ensure!(mistakes.is_empty(), "{mistakes:?}");
    Ok(())
}
