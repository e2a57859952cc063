//! What the fake claims of `NativeLink`'s scheduler, asked of both by the same worker.
//!
//! The real one is asked where `NATIVELINK_CLIENTS` and `NATIVELINK_WORKERS` say where it listens for either, with no
//! other worker there; `tests/nativelink/run` does so.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use longshore_cas_store::digest::DigestFunction;
use longshore_proto::nativelink::execute_result::Result as Outcome;
use longshore_proto::nativelink::update_for_scheduler::Update as ToScheduler;
use longshore_proto::nativelink::update_for_worker::Update as ToWorker;
use longshore_proto::nativelink::worker_api_client::WorkerApiClient;
use longshore_proto::nativelink::{
    ConnectWorkerRequest, ExecuteComplete, ExecuteResult, GoingAwayRequest, UpdateForScheduler,
    UpdateForWorker,
};
use longshore_proto::{protobuf, reapi, rpc};
use longshore_tests::action::TestAction;
use longshore_tests::client::{Client, finished};
use longshore_tests::fake_nativelink::{Ended, FakeNativeLink};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

/// What both of them do.
const FACTS: [&str; 6] = [
    "a worker is registered as tester-",
    "an action is started, and answered with exit code 7",
    "a stream is lost: the operation is started again under the same id, and answered with exit code 7",
    "an internal error: 4 starts, and then the client hears of it",
    "an action that is declined while another runs comes back under the same id",
    "a worker goes away: Disconnect, the end, and the operation is started again under the same id",
];

/// What a worker is thrown out for, and how.
const THROWN_OUT: &str = "a result that nobody waits for: Disconnect, the end";

#[tokio::test]
async fn the_fake_does_what_the_real_one_does() -> Result<()> {
    let scheduler = Scheduler::Fake(Arc::new(FakeNativeLink::start().await?));
    assert_eq!(scheduler.facts().await?, FACTS);
    assert_eq!(scheduler.throws_out().await?, THROWN_OUT);
    Ok(())
}

#[tokio::test]
async fn the_real_one_does_what_the_fake_does() -> Result<()> {
    let variable = |name| std::env::var(name).ok();
    let (Some(clients), Some(workers)) = (variable("NATIVELINK_CLIENTS"), variable("NATIVELINK_WORKERS"))
    else {
        // Its test on the fake is the one above.
        return Ok(());
    };
    let scheduler = Scheduler::Real { client: Client::connect(&clients).await?, workers };
    assert_eq!(scheduler.facts().await?, FACTS);
    assert_eq!(scheduler.throws_out().await?, THROWN_OUT);
    Ok(())
}

enum Scheduler {
    Fake(Arc<FakeNativeLink>),
    Real { client: Client, workers: String },
}

/// What a client hears in the end: an exit code, or nothing but an error.
type Answer = JoinHandle<Result<Option<i32>>>;

impl Scheduler {
    /// A client has a new action executed.
    async fn submit(&self) -> Result<Answer> {
        let action = TestAction::shell("true").salt(uuid::Uuid::new_v4().to_string());
        let exit_code = |response: &reapi::ExecuteResponse| {
            let is_ok = response.status.as_ref().is_none_or(|status| status.code == 0);
            response.result.as_ref().filter(|_| is_ok).map(|result| result.exit_code)
        };
        Ok(match self {
            Self::Fake(fake) => {
                let digest = action.build(DigestFunction::Sha256).digest;
                let operation = digest.hash_hex();
                fake.submit(&operation, &digest);
                let fake = fake.clone();
                tokio::spawn(async move {
                    Ok(match fake.ended(&operation).await {
                        Ended::Response(response) => exit_code(&response),
                        Ended::GivenUp(_) | Ended::Killed => None,
                    })
                })
            }
            Self::Real { client, .. } => {
                let blobs = action.build(client.function());
                client.upload(&blobs.blobs).await?;
                let stream = client.start(&blobs.digest, true).await?;
                tokio::spawn(async move { Ok(exit_code(&finished(stream).await?)) })
            }
        })
    }

    async fn worker(&self) -> Result<Worker> {
        let uri = match self {
            Self::Fake(fake) => fake.uri().replace("grpc:", "http:"),
            Self::Real { workers, .. } => workers.clone(),
        };
        let (sender, receiver) = mpsc::channel(16);
        let hello = ConnectWorkerRequest {
            worker_id_prefix: "tester-".to_owned(),
            max_inflight_tasks: 2,
            ..Default::default()
        };
        let update = Some(ToScheduler::ConnectWorkerRequest(hello));
        sender.send(UpdateForScheduler { update }).await?;
        let mut client = WorkerApiClient::connect(uri).await?;
        let mut stream = client.connect_worker(ReceiverStream::new(receiver)).await?.into_inner();
        match stream.message().await?.and_then(|message| message.update) {
            Some(ToWorker::ConnectionResult(result)) => Ok(Worker { id: result.worker_id, sender, stream }),
            other => bail!("the scheduler began with {other:?}"),
        }
    }

    /// One fact after the other, on as few streams as can be.
    async fn facts(&self) -> Result<Vec<String>> {
        let mut facts = Vec::new();
        let mut worker = self.worker().await?;
        facts.push(format!("a worker is registered as {}", &worker.id[.."tester-".len()]));

        let answer = self.submit().await?;
        let operation = worker.starts().await?;
        worker
            .send(ToScheduler::ExecuteComplete(ExecuteComplete { operation_id: operation.clone() }))
            .await?;
        worker.answer(&operation, exited()).await?;
        facts.push(format!("an action is started, and answered with {}", said(answer).await?));

        let answer = self.submit().await?;
        let operation = worker.starts().await?;
        drop(worker);
        let mut worker = self.worker().await?;
        let is_same = same(&operation, &worker.starts().await?);
        worker.answer(&operation, exited()).await?;
        let said_last = said(answer).await?;
        facts.push(format!(
            "a stream is lost: the operation is started again under {is_same}, and answered with {said_last}"
        ));

        facts.push(self.retries(&mut worker).await?);
        facts.push(self.declines(&mut worker).await?);

        let answer = self.submit().await?;
        let operation = worker.starts().await?;
        worker.send(ToScheduler::GoingAwayRequest(GoingAwayRequest {})).await?;
        let end = worker.ends().await?;
        let mut worker = self.worker().await?;
        let is_same = same(&operation, &worker.starts().await?);
        worker.answer(&operation, exited()).await?;
        said(answer).await?;
        facts.push(format!("a worker goes away: {end}, and the operation is started again under {is_same}"));
        Ok(facts)
    }

    async fn retries(&self, worker: &mut Worker) -> Result<String> {
        let mut answer = self.submit().await?;
        let mut starts = 0;
        let said = loop {
            tokio::select! {
                operation = worker.starts() => {
                    starts += 1;
                    worker.answer(&operation?, error(Code::Unavailable)).await?;
                }
                said = &mut answer => break said??,
            }
        };
        let heard = if said.is_none() { "the client hears of it" } else { "the client hears nothing" };
        Ok(format!("an internal error: {starts} starts, and then {heard}"))
    }

    async fn declines(&self, worker: &mut Worker) -> Result<String> {
        let first = self.submit().await?;
        let running = worker.starts().await?;
        let second = self.submit().await?;
        let declined = worker.starts().await?;
        worker.answer(&declined, error(Code::ResourceExhausted)).await?;
        worker.answer(&running, exited()).await?;
        said(first).await?;
        let is_same = same(&declined, &worker.starts().await?);
        worker.answer(&declined, exited()).await?;
        said(second).await?;
        Ok(format!("an action that is declined while another runs comes back under {is_same}"))
    }

    async fn throws_out(&self) -> Result<String> {
        let mut worker = self.worker().await?;
        worker.answer("nobody", exited()).await?;
        Ok(format!("a result that nobody waits for: {}", worker.ends().await?))
    }
}

struct Worker {
    id: String,
    sender: mpsc::Sender<UpdateForScheduler>,
    stream: Streaming<UpdateForWorker>,
}

impl Worker {
    async fn send(&self, update: ToScheduler) -> Result<()> {
        Ok(self.sender.send(UpdateForScheduler { update: Some(update) }).await?)
    }

    async fn answer(&self, operation: &str, outcome: Outcome) -> Result<()> {
        let result =
            ExecuteResult { operation_id: operation.to_owned(), result: Some(outcome), ..Default::default() };
        self.send(ToScheduler::ExecuteResult(result)).await
    }

    /// The id of the operation that is started next.
    async fn starts(&mut self) -> Result<String> {
        match self.stream.message().await?.context("the end")?.update {
            Some(ToWorker::StartAction(start)) => Ok(start.operation_id),
            other => bail!("{other:?}"),
        }
    }

    /// How the stream ends.
    async fn ends(&mut self) -> Result<String> {
        let mut seen = Vec::new();
        while let Some(message) = self.stream.message().await? {
            match message.update {
                Some(ToWorker::Disconnect(_)) => seen.push("Disconnect"),
                other => bail!("{other:?}"),
            }
        }
        seen.push("the end");
        Ok(seen.join(", "))
    }
}

/// A command that exited with 7, with all that the scheduler insists on.
fn exited() -> Outcome {
    let time = || Some(protobuf::Timestamp { seconds: 1, nanos: 0 });
    let metadata = reapi::ExecutedActionMetadata {
        queued_timestamp: time(),
        worker_start_timestamp: time(),
        worker_completed_timestamp: time(),
        input_fetch_start_timestamp: time(),
        input_fetch_completed_timestamp: time(),
        execution_start_timestamp: time(),
        execution_completed_timestamp: time(),
        output_upload_start_timestamp: time(),
        output_upload_completed_timestamp: time(),
        ..Default::default()
    };
    let empty = || Some(DigestFunction::Sha256.digest(b"").to_wire());
    let result = reapi::ActionResult {
        exit_code: 7,
        stdout_digest: empty(),
        stderr_digest: empty(),
        execution_metadata: Some(metadata),
        ..Default::default()
    };
    Outcome::ExecuteResponse(reapi::ExecuteResponse { result: Some(result), ..Default::default() })
}

fn error(code: Code) -> Outcome {
    let message = "a test's".to_owned();
    Outcome::InternalError(rpc::Status { code: code.into(), message, details: vec![] })
}

async fn said(answer: Answer) -> Result<String> {
    Ok(answer.await??.map_or("no exit code".to_owned(), |code| format!("exit code {code}")))
}

fn same(before: &str, now: &str) -> &'static str {
    if before == now { "the same id" } else { "another id" }
}
