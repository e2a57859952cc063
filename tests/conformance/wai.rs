//! `Execution.WaitExecution` and `google.longrunning.Operations`.

use std::collections::HashSet;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use longshore_proto::reapi::execution_stage::Value as Stage;
use longshore_proto::{longrunning, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::{Client, finished};
use longshore_tests::longshore::{Launch, Longshore};
use longshore_tests::process::foreign_descendants;
use tonic::{Code, Streaming};

use crate::run::{Gate, metadata, response};
use crate::support::{refused, shared_client, unique};

type Updates = Streaming<longrunning::Operation>;

/// Starts an action that no other test has: the name of its operation, and what follows.
async fn start(client: &Client, script: &str) -> Result<(String, Updates)> {
    let blobs = TestAction::shell(script).salt(unique(16)).build(client.function());
    client.upload(&blobs.blobs).await?;
    start_again(client, &blobs.digest).await
}

async fn start_again(
    client: &Client,
    action: &longshore_cas_store::digest::Digest,
) -> Result<(String, Updates)> {
    let mut stream = client.start(action, false).await?;
    let name = stream.next().await.context("no operation")??.name;
    Ok((name, stream))
}

async fn wait(client: &Client, name: &str) -> Result<Updates, tonic::Status> {
    let request = reapi::WaitExecutionRequest { name: name.to_owned() };
    Ok(client.execution().wait_execution(request).await?.into_inner())
}

async fn get(client: &Client, name: &str) -> Result<longrunning::Operation, tonic::Status> {
    let request = longrunning::GetOperationRequest { name: name.to_owned() };
    Ok(client.operations().get_operation(request).await?.into_inner())
}

async fn cancel(client: &Client, name: &str) -> Result<(), tonic::Status> {
    let request = longrunning::CancelOperationRequest { name: name.to_owned() };
    client.operations().cancel_operation(request).await.map(drop)
}

async fn code_of(stream: Updates) -> Result<Code> {
    Ok(Code::from(finished(stream).await?.status.unwrap_or_default().code))
}

/// Names that no operation has.
fn unknown_names() -> Vec<String> {
    let mut names =
        ["", "operations/", "operations/x", "some/instance/operations/1", "\u{1f41a}", "a b%2f\n"]
            .map(str::to_owned)
            .to_vec();
    names.push(format!("operations/{}", uuid::Uuid::new_v4()));
    names.push("n".repeat(100_000));
    names.push("\u{fc}".repeat(50_000));
    names
}

/// `WaitExecution` answers at once with the state, then follows to the end.
#[tokio::test]
async fn wai_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let gate = Gate::new()?;
    let (name, stream) = start(&client, &gate.script()).await?;
    gate.reached().await?;
    let mut waiting = wait(&client, &name).await?;
    let first = waiting.next().await.context("no answer")??;
    assert_eq!((first.name.as_str(), metadata(&first)?.stage()), (name.as_str(), Stage::Executing));
    gate.open()?;
    let mut last = None;
    while let Some(operation) = waiting.next().await {
        let operation = operation?;
        assert_eq!(operation.name, name);
        last = Some(operation);
    }
    let last = last.context("no end")?;
    assert_eq!(metadata(&last)?.stage(), Stage::Completed);
    assert_eq!(response(&last)?, finished(stream).await?);
    Ok(())
}

/// An unknown name is `NOT_FOUND`, whatever it looks like.
#[tokio::test]
async fn wai_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for name in unknown_names() {
        refused(wait(&client, &name).await, Code::NotFound, &[]);
        refused(get(&client, &name).await, Code::NotFound, &[]);
    }
    Ok(())
}

/// A finished operation can be asked for again, and is answered at once, also one that the cache answered.
#[tokio::test]
async fn wai_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let blobs = TestAction::shell("echo out").salt(unique(16)).build(client.function());
    client.upload(&blobs.blobs).await?;
    for cached in [false, true] {
        let mut stream = client.start(&blobs.digest, false).await?;
        let mut last = None;
        while let Some(operation) = stream.next().await {
            last = Some(operation?);
        }
        let last = last.context("no operation")?;
        assert_eq!(response(&last)?.cached_result, cached);
        for _ in 0..2 {
            let mut again = wait(&client, &last.name).await?;
            assert_eq!(again.next().await.context("no answer")??, last);
            assert!(again.next().await.is_none(), "nothing comes after the end");
            assert_eq!(get(&client, &last.name).await?, last);
        }
    }
    // With many others since.
    let (name, stream) = start(&client, "exit 3").await?;
    let ended = finished(stream).await?;
    for _ in 0..50 {
        finished(client.start(&blobs.digest, false).await?).await?;
    }
    assert_eq!(response(&get(&client, &name).await?)?, ended);
    Ok(())
}

/// All waiters of an operation get its updates, on whatever connection.
#[tokio::test]
async fn wai_04() -> Result<()> {
    let (longshore, client) = shared_client().await?;
    let gate = Gate::new()?;
    let (name, stream) = start(&client, &format!("{}; echo out", gate.script())).await?;
    gate.reached().await?;
    let mut waiters = vec![stream];
    for _ in 0..5 {
        waiters.push(wait(&client, &name).await?);
        waiters.push(wait(&longshore.client().await?, &name).await?);
    }
    // One that leaves takes nothing from the others.
    waiters.swap_remove(0);
    gate.open()?;
    let mut responses = Vec::new();
    for waiter in waiters {
        responses.push(finished(waiter).await?);
    }
    assert_eq!(responses.len(), 10);
    assert!(responses.iter().all(|response| *response == responses[0]));
    Ok(())
}

/// `GetOperation` gives the state now; operations are not listed, deleted or waited for outside of REAPI.
#[tokio::test]
async fn wai_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let gate = Gate::new()?;
    let (name, stream) = start(&client, &gate.script()).await?;
    gate.reached().await?;
    let now = get(&client, &name).await?;
    assert!(!now.done && now.name == name);
    assert_eq!(metadata(&now)?.stage(), Stage::Executing);
    gate.open()?;
    let ended = finished(stream).await?;
    let done = get(&client, &name).await?;
    assert_eq!((metadata(&done)?.stage(), response(&done)?), (Stage::Completed, ended));

    let mut operations = client.operations();
    let list = operations.list_operations(longrunning::ListOperationsRequest::default()).await;
    refused(list, Code::Unimplemented, &[]);
    let delete =
        operations.delete_operation(longrunning::DeleteOperationRequest { name: name.clone() }).await;
    refused(delete, Code::Unimplemented, &[]);
    let wait = longrunning::WaitOperationRequest { name: name.clone(), ..Default::default() };
    refused(operations.wait_operation(wait).await, Code::Unimplemented, &["WaitExecution"]);
    get(&client, &name).await?;
    Ok(())
}

/// `CancelOperation` kills the action for all who wait for the operation, and does no harm to other clients.
#[tokio::test]
async fn wai_06() -> Result<()> {
    let flags = ["--jobs", "1"].map(str::to_owned).to_vec();
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    for name in unknown_names() {
        refused(cancel(&client, &name).await, Code::NotFound, &[]);
    }

    // One that runs, with two who wait, and one that is queued behind it.
    let gate = Gate::new()?;
    let blobs = TestAction::shell(&format!("{}; echo > a; setsid sleep 1000 & sleep 1000", gate.script()))
        .outputs(["a"])
        .build(client.function());
    client.upload(&blobs.blobs).await?;
    let (name, running) = start_again(&client, &blobs.digest).await?;
    let other = wait(&client, &name).await?;
    gate.reached().await?;
    let (queued_name, queued) = start(&client, "true").await?;
    cancel(&client, &queued_name).await?;
    assert_eq!(code_of(queued).await?, Code::Cancelled);
    cancel(&client, &name).await?;
    assert_eq!((code_of(running).await?, code_of(other).await?), (Code::Cancelled, Code::Cancelled));
    assert_eq!(foreign_descendants(longshore.pid())?, Vec::<String>::new());
    // It is not cached, stays cancelled, and cancelling it again changes nothing.
    cancel(&client, &name).await?;
    assert_eq!(code_of(wait(&client, &name).await?).await?, Code::Cancelled);
    let request =
        reapi::GetActionResultRequest { action_digest: Some(blobs.digest.to_wire()), ..Default::default() };
    refused(client.action_cache().get_action_result(request).await, Code::NotFound, &[]);

    // Two clients of one run: one gives up.
    let gate = Gate::new()?;
    let blobs = TestAction::shell(&gate.script()).build(client.function());
    client.upload(&blobs.blobs).await?;
    let (one_name, one) = start_again(&client, &blobs.digest).await?;
    gate.reached().await?;
    let (two_name, two) = start_again(&client, &blobs.digest).await?;
    cancel(&client, &one_name).await?;
    assert_eq!(code_of(one).await?, Code::Cancelled);
    gate.open()?;
    assert_eq!(code_of(two).await?, Code::Ok);
    cancel(&client, &two_name).await?;
    assert_eq!(code_of(wait(&client, &two_name).await?).await?, Code::Ok, "what has ended stays as it is");
    assert_eq!(code_of(wait(&client, &one_name).await?).await?, Code::Cancelled);
    Ok(())
}

/// Names cannot be guessed, and a client need not look into them.
#[tokio::test]
async fn wai_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let blobs = TestAction::shell("true").salt(unique(16)).build(client.function());
    client.upload(&blobs.blobs).await?;
    let mut names = HashSet::new();
    for _ in 0..20 {
        let (name, _stream) = start_again(&client, &blobs.digest).await?;
        let id = uuid::Uuid::parse_str(name.rsplit('/').next().unwrap_or_default())?;
        assert_eq!(id.get_version_num(), 4, "of random bits");
        assert!(names.insert(id));
    }
    Ok(())
}
