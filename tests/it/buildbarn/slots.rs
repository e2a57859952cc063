//! What slots say, and how they follow what they are told.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::FutureExt as _;
use futures::future::try_join;
use longshore_cas_store::digest::Digest;
use longshore_proto::remoteworker::current_state::executing::ExecutionState;
use longshore_proto::remoteworker::desired_state;
use longshore_proto::remoteworker::operation_queue_client::OperationQueueClient;
use longshore_proto::remoteworker::{CurrentState, SynchronizeRequest, current_state};
use longshore_proto::{protobuf, reapi, rpc};
use longshore_tests::fake_buildbarn::{Ended, Failing, FakeBuildbarn, Heard};
use longshore_worker::action::{Phase, Progress};
use tonic::{Code, Status};

use super::{action, join, next, no_mistakes, response, response_of, task};

/// The execution state that a call tells; nothing from an idle slot.
fn told(request: &SynchronizeRequest) -> Option<ExecutionState> {
    match request.current_state.clone()?.worker_state? {
        current_state::WorkerState::Executing(executing) => executing.execution_state,
        current_state::WorkerState::Idle(_) => None,
    }
}

/// Whether a call tells of a command that runs.
pub(super) fn is_running(heard: &Heard) -> bool {
    matches!(told(&heard.request), Some(ExecutionState::Running(_)))
}

fn is_idle(heard: &Heard) -> bool {
    told(&heard.request).is_none()
}

/// Each slot has a name of its own, which stays, and one call at a time.
#[tokio::test]
async fn bbw_01() -> Result<()> {
    let scheduler = FakeBuildbarn::start().await?;
    let source = join(&scheduler, 3)?;
    for number in 0..3 {
        scheduler.submit(task(&action(number)));
        let assignment = next(&source).await?;
        source.complete(assignment.operation, response("done")).await;
    }
    source.drain();
    source.close().await;
    scheduler.is_deserted().await?;
    let names: HashSet<_> = scheduler.heard().iter().map(|heard| sorted(&heard.request)).collect();
    ensure!(names.len() == 3 && names.iter().all(|name| !name.is_empty()), "{names:?}");
    scheduler.restart();
    let calls = scheduler.heard().len();
    let source = join(&scheduler, 3)?;
    scheduler.hears(|heard| heard.len() >= calls + 3).await?;
    source.close().await;
    let again: HashSet<_> = scheduler.heard().iter().map(|heard| sorted(&heard.request)).collect();
    ensure!(again == names, "the names after a restart: {again:?}");
    no_mistakes(&scheduler)
}

// The fake has to see a slot that makes two calls at once.
#[tokio::test]
async fn bbw_01_canary() -> Result<()> {
    let scheduler = FakeBuildbarn::start().await?;
    let idle = current_state::WorkerState::Idle(protobuf::Empty {});
    let request = SynchronizeRequest {
        worker_id: [("slot".to_owned(), "0".to_owned())].into(),
        current_state: Some(CurrentState { worker_state: Some(idle) }),
        ..Default::default()
    };
    let mut client = OperationQueueClient::connect(scheduler.uri().replace("grpc:", "http:")).await?;
    let waiting = tokio::spawn({
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.synchronize(request).await }
    });
    scheduler.hears(|heard| heard.len() == 1).await?;
    let refused = client.synchronize(request).await.err().context("two calls at once")?;
    waiting.abort();
    ensure!(refused.code() == Code::ResourceExhausted, "{refused:?}");
    ensure!(scheduler.mistakes().len() == 1, "{:?}", scheduler.mistakes());
    Ok(())
}

fn sorted(request: &SynchronizeRequest) -> Vec<(String, String)> {
    let mut name: Vec<_> = request.worker_id.clone().into_iter().collect();
    name.sort();
    name
}

/// Properties are in order, each pair once; there are no size classes; each call has a state.
#[tokio::test]
async fn bbw_02_03_04() -> Result<()> {
    let scheduler = FakeBuildbarn::start().await?;
    let source = join(&scheduler, 1)?;
    scheduler.hears(|heard| !heard.is_empty()).await?;
    let request = scheduler.heard()[0].request.clone();
    let properties = request.platform.context("no platform")?.properties;
    let pairs: Vec<_> = properties.iter().map(|pair| (&pair.name[..], &pair.value[..])).collect();
    ensure!(pairs == [("ISA", "x86-64"), ("pool", "a"), ("pool", "b")], "{pairs:?}");
    ensure!(request.size_class == 0 && request.current_state.is_some());
    source.close().await;
    no_mistakes(&scheduler)
}

/// An idle slot waits for work, longer than the scheduler lets it wait.
#[tokio::test]
async fn bbw_05() -> Result<()> {
    let scheduler = FakeBuildbarn::start().await?;
    let source = join(&scheduler, 1)?;
    scheduler.hears(|heard| !heard.is_empty()).await?;
    let first = scheduler.heard()[0].clone();
    ensure!(is_idle(&first) && !first.request.prefer_being_idle);
    ensure!(deadline_s(&first)? > 120, "{:?}", first.deadline);
    // Sent away with nothing, it comes back and waits again.
    scheduler.let_go();
    scheduler.hears(|heard| heard.len() == 2).await?;
    let second = scheduler.heard().pop().context("no call")?;
    ensure!(is_idle(&second) && !second.request.prefer_being_idle);
    scheduler.submit(task(&action(1)));
    ensure!(next(&source).await?.action_digest == action(1));
    source.close().await;
    no_mistakes(&scheduler)
}

/// How long the slot that made a call waits for its answer, in whole seconds.
fn deadline_s(heard: &Heard) -> Result<u64> {
    let deadline = heard.deadline.as_deref().context("no deadline")?;
    let (number, unit) = deadline.split_at(deadline.len() - 1);
    let per_second = match unit {
        "S" => 1,
        "m" => 1_000,
        "u" => 1_000_000,
        "n" => 1_000_000_000,
        unit => anyhow::bail!("{unit}"),
    };
    Ok(number.parse::<u64>()? / per_second)
}

/// A slot that drains prefers being idle, and takes what it was given all the same: in the answer to the call that it
/// gave up for saying so, which the scheduler has not noticed when the next one comes.
#[tokio::test]
async fn bbw_06() -> Result<()> {
    let scheduler = FakeBuildbarn::start().await?;
    scheduler.fail([
        Failing::Unanswered,
        Failing::Refused(Status::resource_exhausted("already synchronizing")),
        Failing::Lost(Status::unavailable("lost")),
    ]);
    scheduler.submit(task(&action(1)));
    let source = join(&scheduler, 1)?;
    scheduler.gives(&action(1).hash_hex()).await?;
    source.drain();
    let assignment = next(&source).await?;
    let calls: Vec<_> = scheduler.heard().into_iter().filter(is_idle).collect();
    ensure!(calls.len() > 3 && calls[1..].iter().all(|heard| heard.request.prefer_being_idle), "{calls:?}");
    source.complete(assignment.operation, response("done")).await;
    ensure!(response_of(&scheduler, &action(1)).await?.message == "done");
    ensure!(source.next().await.is_none(), "more was taken");
    source.close().await;
    no_mistakes(&scheduler)
}

/// A task is started, goes on where nothing is said, and is stopped at once when it is wanted no more.
#[tokio::test]
async fn bbw_07() -> Result<()> {
    let scheduler = FakeBuildbarn::start().await?;
    scheduler.set_interval(Duration::from_millis(20));
    let source = join(&scheduler, 1)?;
    scheduler.submit(task(&action(1)));
    let first = next(&source).await?;
    let calls = scheduler.heard().len();
    scheduler.hears(|heard| heard.len() > calls + 3).await?;
    ensure!(!first.cancelled.is_cancelled(), "it is still wanted");
    scheduler.take_back(&action(1).hash_hex());
    first.cancelled.cancelled().await;
    // What it comes to is for nobody.
    source.complete(first.operation, response("too late")).await;
    scheduler.submit(task(&action(2)));
    let second = next(&source).await?;
    source.complete(second.operation, response("done")).await;
    ensure!(response_of(&scheduler, &action(2)).await?.message == "done");
    source.close().await;
    no_mistakes(&scheduler)
}

/// What a task has come to is told as it happens, and at the latest when the scheduler wants to hear of it.
#[tokio::test]
async fn bbw_08() -> Result<()> {
    let scheduler = FakeBuildbarn::start().await?;
    let source = join(&scheduler, 1)?;
    scheduler.submit(task(&action(1)));
    let assignment = next(&source).await?;
    let phases = [
        (Phase::FetchingInputs, ExecutionState::FetchingInputs(protobuf::Empty {})),
        (Phase::Running, ExecutionState::Running(protobuf::Empty {})),
        (Phase::UploadingOutputs, ExecutionState::UploadingOutputs(protobuf::Empty {})),
    ];
    for (phase, state) in phases {
        // The interval is 10 s: only news come sooner.
        assignment.progress.send_replace(Progress { phase, ..Progress::default() });
        scheduler
            .hears(|heard| heard.iter().any(|heard| told(&heard.request).as_ref() == Some(&state)))
            .await?;
    }
    // Only a call that waits for work may take long: the scheduler drops a slot that is silent for a minute.
    for heard in scheduler.heard().iter().filter(|heard| !is_idle(heard)) {
        ensure!(deadline_s(heard)? < 60, "{heard:?}");
    }
    scheduler.set_interval(Duration::from_millis(20));
    assignment.progress.send_replace(Progress { phase: Phase::Running, ..Progress::default() });
    let calls = scheduler.heard().len();
    scheduler.hears(|heard| heard.len() > calls + 3).await?;
    source.complete(assignment.operation, response("done")).await;
    source.close().await;
    no_mistakes(&scheduler)
}

/// The action's digest comes back as it was given; a task that the slot does not know of is run when it comes again.
#[tokio::test]
async fn bbw_09() -> Result<()> {
    let scheduler = FakeBuildbarn::start().await?;
    let source = join(&scheduler, 1)?;
    scheduler.hears(|heard| !heard.is_empty()).await?;
    source.close().await;
    scheduler.is_deserted().await?;
    // Given out, and the answer is lost.
    scheduler.fail([Failing::Lost(Status::unavailable("lost"))]);
    let source = join(&scheduler, 1)?;
    scheduler.submit(task(&action(1)));
    let assignment = next(&source).await?;
    source.complete(assignment.operation, response("done")).await;
    ensure!(matches!(scheduler.ended(&action(1).hash_hex()).await?, Ended::Response(_)));
    for heard in scheduler.heard() {
        if let Some(current_state::WorkerState::Executing(executing)) =
            heard.request.current_state.and_then(|state| state.worker_state)
        {
            ensure!(executing.action_digest == Some(action(1).to_wire()));
        }
    }
    source.close().await;
    no_mistakes(&scheduler)
}

/// A result is reported until it is taken, and is taken once.
#[tokio::test]
async fn bbw_10() -> Result<()> {
    let scheduler = FakeBuildbarn::start().await?;
    let source = join(&scheduler, 1)?;
    for (number, failing) in [
        (1, Failing::Refused(Status::unavailable("not now"))),
        (2, Failing::Lost(Status::unavailable("lost"))),
        (3, Failing::Refused(Status::internal("broken"))),
    ] {
        scheduler.submit(task(&action(number)));
        let assignment = next(&source).await?;
        scheduler.fail([failing]);
        source.complete(assignment.operation, response("done")).await;
        ensure!(response_of(&scheduler, &action(number)).await?.message == "done");
        let reports = reports_of(&scheduler, &action(number));
        ensure!(reports.len() == 2 && reports[0] == reports[1], "{reports:?}");
    }
    source.close().await;
    no_mistakes(&scheduler)
}

/// What slots have reported of that action.
fn reports_of(scheduler: &FakeBuildbarn, action: &Digest) -> Vec<SynchronizeRequest> {
    let is_report = |request: &SynchronizeRequest| {
        let state = request.current_state.as_ref().and_then(|state| state.worker_state.as_ref());
        matches!(state, Some(current_state::WorkerState::Executing(executing))
            if executing.action_digest == Some(action.to_wire())
                && matches!(executing.execution_state, Some(ExecutionState::Completed(_))))
    };
    let requests = scheduler.heard().into_iter().map(|heard| heard.request);
    requests.filter(is_report).collect()
}

/// A result that the scheduler cannot read would be reported for ever: it is told that it is too large.
#[tokio::test]
async fn bbw_10_of_a_result_that_is_too_large() -> Result<()> {
    let scheduler = FakeBuildbarn::start().await?;
    let source = join(&scheduler, 1)?;
    scheduler.submit(task(&action(1)));
    let assignment = next(&source).await?;
    let complete = source.complete(assignment.operation, response(&"x".repeat(5 << 20)));
    // A report that is never taken completes nothing: it is the scheduler that loses its patience.
    let digest = action(1);
    let (found, ()) = try_join(response_of(&scheduler, &digest), complete.map(Ok)).await?;
    let status = found.status.context("no status")?;
    ensure!(status.code == i32::from(Code::ResourceExhausted), "{status:?}");
    source.close().await;
    no_mistakes(&scheduler)
}

/// The response is passed on as it is, with what the scheduler wants in its metadata.
#[tokio::test]
async fn bbw_11_16() -> Result<()> {
    let scheduler = FakeBuildbarn::start().await?;
    let source = join(&scheduler, 1)?;
    let auxiliary = protobuf::Any { type_url: "type.googleapis.com/a.B".to_owned(), value: vec![8, 1] };
    let queued = protobuf::Timestamp { seconds: 1_700_000_000, nanos: 5 };
    scheduler.submit(desired_state::Executing {
        auxiliary_metadata: vec![auxiliary.clone()],
        queued_timestamp: Some(queued),
        ..task(&action(1))
    });
    let assignment = next(&source).await?;
    ensure!(longshore_proto::time::timestamp(assignment.queued) == queued);
    let detail = protobuf::Any { type_url: "type.googleapis.com/c.D".to_owned(), value: vec![1] };
    let status =
        rpc::Status { code: Code::DeadlineExceeded.into(), message: "m".to_owned(), details: vec![detail] };
    let mut sent = response("words");
    sent.status = Some(status);
    sent.server_logs.insert("log".to_owned(), reapi::LogFile::default());
    source.complete(assignment.operation, sent.clone()).await;
    let mut found = response_of(&scheduler, &action(1)).await?;
    let metadata = found.result.as_mut().and_then(|result| result.execution_metadata.as_mut());
    let found_auxiliary = std::mem::take(&mut metadata.context("no metadata")?.auxiliary_metadata);
    ensure!(found_auxiliary == [auxiliary], "{found_auxiliary:?}");
    ensure!(found == sent, "{found:?}");
    source.close().await;
    no_mistakes(&scheduler)
}

/// The instance is what the scheduler says below the one that is configured, if it can be one; the function is the one
/// named.
#[tokio::test]
async fn bbw_17() -> Result<()> {
    let scheduler = FakeBuildbarn::start().await?;
    let source = join(&scheduler, 1)?;
    let below = |suffix: &str, number| desired_state::Executing {
        instance_name_suffix: suffix.to_owned(),
        ..task(&action(number))
    };
    for (number, suffix) in (1..).zip(["blobs", "a/uploads", "a//b", "/a", "a/"]) {
        scheduler.submit(below(suffix, number));
        let status = response_of(&scheduler, &action(number)).await?.status.context("no status")?;
        ensure!(
            status.code == i32::from(Code::InvalidArgument) && status.message.contains("instance_name"),
            "{status:?}"
        );
    }
    scheduler.submit(below("a/b", 9));
    let assignment = next(&source).await?;
    ensure!(assignment.requester.instance_name_suffix == "a/b", "{assignment:?}");
    source.complete(assignment.operation, response("done")).await;
    let blake3 = longshore_cas_store::digest::DigestFunction::Blake3.digest(b"x");
    scheduler.submit(task(&blake3));
    ensure!(next(&source).await?.action_digest == blake3);
    ensure!(scheduler.heard().iter().all(|heard| heard.request.instance_name_prefix == "main"));
    source.close().await;
    no_mistakes(&scheduler)
}

/// A worker that stops finishes what runs, reports it, and takes nothing more.
#[tokio::test]
async fn bbw_20() -> Result<()> {
    let scheduler = FakeBuildbarn::start().await?;
    let source = join(&scheduler, 2)?;
    scheduler.submit(task(&action(1)));
    let assignment = next(&source).await?;
    source.drain();
    // The other slot says so and is gone: what fails now is the report.
    scheduler
        .hears(|heard| heard.iter().any(|heard| is_idle(heard) && heard.request.prefer_being_idle))
        .await?;
    scheduler.submit(task(&action(2)));
    scheduler.fail([Failing::Refused(Status::unavailable("not now"))]);
    source.complete(assignment.operation, response("done")).await;
    ensure!(response_of(&scheduler, &action(1)).await?.message == "done");
    let reports = reports_of(&scheduler, &action(1));
    ensure!(reports.len() == 2 && reports.iter().all(|report| report.prefer_being_idle), "{reports:?}");
    ensure!(source.next().await.is_none(), "more was taken");
    source.close().await;
    no_mistakes(&scheduler)
}

/// Calls that fail stop nothing: the action runs on, and its result arrives, over a restart of the scheduler too.
#[tokio::test]
async fn bbw_21() -> Result<()> {
    let scheduler = FakeBuildbarn::start().await?;
    scheduler.set_interval(Duration::from_millis(20));
    let source = join(&scheduler, 1)?;
    scheduler.submit(task(&action(1)));
    let assignment = next(&source).await?;
    let failures = [Code::Unavailable, Code::Internal, Code::ResourceExhausted, Code::DeadlineExceeded];
    scheduler.fail(failures.map(|code| Failing::Refused(Status::new(code, "no"))));
    let calls = scheduler.heard().len();
    scheduler.hears(|heard| heard.len() > calls + 5).await?;
    ensure!(!assignment.cancelled.is_cancelled());
    source.complete(assignment.operation, response("done")).await;
    ensure!(response_of(&scheduler, &action(1)).await?.message == "done");

    scheduler.submit(task(&action(2)));
    let before = next(&source).await?;
    scheduler.restart();
    // The scheduler knows nothing of it, and gives it out anew.
    before.cancelled.cancelled().await;
    let after = next(&source).await?;
    source.complete(before.operation, response("of before")).await;
    source.complete(after.operation, response("of after")).await;
    ensure!(response_of(&scheduler, &action(2)).await?.message == "of after");
    source.close().await;
    no_mistakes(&scheduler)
}
