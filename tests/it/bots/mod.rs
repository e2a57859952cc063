//! The frontend for the Bots API, against a fake that holds bots to the protocol, and once more as the whole worker.

mod exchanges;
mod faults;
mod rules;
mod told;
mod transcripts;
mod trust;
mod worker;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use futures::future::BoxFuture;
use longshore_cas_store::io::Clock;
use longshore_proto::bots::{self, LeaseState};
use longshore_proto::{Message as _, protobuf, reapi, rpc};
use longshore_tests::fake_bots::FakeBots;
use longshore_worker::action::Assignment;
use longshore_worker::connect::{Link, TlsOptions};
use longshore_worker::environment::MachineClock;
use longshore_worker::frontend::bots::{Bots, PINGS};
use longshore_worker::frontend::{SchedulerOptions, WorkSource};
use tokio::sync::watch;
use tonic::Code;

const BOT: &str = "a bot";

/// The frontend alone: tests take actions from it, and say what they come to.
fn join(server: &FakeBots, capacity: usize) -> Result<Arc<dyn WorkSource>> {
    join_at(server.uri(), capacity)
}

fn join_at(endpoint: &str, capacity: usize) -> Result<Arc<dyn WorkSource>> {
    Ok(join_by(link(endpoint)?, capacity))
}

fn link(endpoint: &str) -> Result<Link> {
    Ok(Link::open(endpoint, &TlsOptions::default(), None, PINGS, Arc::new(MachineClock))?)
}

fn join_by(link: Link, capacity: usize) -> Arc<dyn WorkSource> {
    join_with(link, capacity, Arc::new(MachineClock))
}

fn join_with(link: Link, capacity: usize, clock: Arc<dyn Clock>) -> Arc<dyn WorkSource> {
    Bots::start(SchedulerOptions {
        link,
        instance_name: "main".to_owned(),
        worker_name: BOT.to_owned(),
        platform: vec![("ISA".to_owned(), "a".to_owned()), ("ISA".to_owned(), "b".to_owned())],
        capacity,
        clock,
    })
}

/// A clock that shows the time, but on which no sleep ends before it is told to go on.
#[derive(Default)]
struct StoppedClock {
    goes: watch::Sender<bool>,
}

impl StoppedClock {
    fn go_on(&self) {
        self.goes.send_replace(true);
    }
}

impl Clock for StoppedClock {
    fn now(&self) -> SystemTime {
        MachineClock.now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let mut goes = self.goes.subscribe();
        Box::pin(async move {
            if goes.wait_for(|goes| *goes).await.is_err() {
                std::future::pending::<()>().await;
            }
            MachineClock.sleep(duration).await;
        })
    }
}

/// An action that nobody runs; each salt is another one.
fn action(salt: u8) -> reapi::Action {
    reapi::Action { salt: vec![salt], ..Default::default() }
}

async fn next(source: &dyn WorkSource) -> Result<Assignment> {
    source.next().await.context("the source has ended")
}

/// What an execution came to.
fn response(code: Code, exit_code: i32) -> reapi::ExecuteResponse {
    let status = rpc::Status { code: code.into(), message: "said so".to_owned(), details: Vec::new() };
    let result = reapi::ActionResult { exit_code, ..Default::default() };
    reapi::ExecuteResponse { status: Some(status), result: Some(result), ..Default::default() }
}

/// Takes the next action and ends it with that exit code.
async fn serve_one(source: &dyn WorkSource, exit_code: i32) -> Result<()> {
    let assignment = next(source).await?;
    source.complete(assignment.operation, response(Code::Ok, exit_code)).await;
    Ok(())
}

/// The exit code that a lease was completed with.
fn exit_code(lease: &bots::Lease) -> Result<i32> {
    ensure!(lease.state() == LeaseState::Completed, "{lease:?}");
    let protobuf::Any { type_url, value } = lease.result.as_ref().context("no result")?;
    ensure!(type_url.ends_with(".ActionResult"), "{type_url}");
    Ok(reapi::ActionResult::decode(value.as_slice())?.exit_code)
}

/// The status that a lease was completed with.
fn code(lease: &bots::Lease) -> Code {
    Code::from(lease.status.as_ref().map_or(-1, |status| status.code))
}

fn no_mistakes(server: &FakeBots) -> Result<()> {
    let mistakes = server.mistakes();
    ensure!(mistakes.is_empty(), "{mistakes:?}");
    Ok(())
}
