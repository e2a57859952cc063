//! The calls to storage that the real binary makes for actions of Buildbarn's: in whose name, and in which instance.

use std::collections::HashSet;

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::error_details::{Detail as _, PreconditionFailure};
use longshore_proto::remoteworker::desired_state;
use longshore_proto::{Message as _, protobuf, reapi};
use longshore_tests::action::{ActionBlobs, TestAction};
use longshore_tests::fake_buildbarn::{FakeBuildbarn, task_of};
use longshore_tests::fake_cas::{Call, FakeCas, Method};
use longshore_tests::longshore::Longshore;
use longshore_tests::tree::InputTree;
use tonic::Code;

use super::{no_mistakes, response_of};
use crate::result_of;

const METADATA: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";
const TRACE: [(&str, &str); 2] =
    [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("tracestate", "a=b,c=d")];
/// More than travels in a batch.
const LARGE_BYTES: usize = 3 << 20;

/// The configuration of a scheduler whose clients use `cas`, from the instance `prefix` down.
fn config(scheduler: &FakeBuildbarn, cas: &FakeCas, prefix: &str) -> String {
    format!(
        "[[scheduler]]\nkind = \"buildbarn\"\nendpoint = \"{}\"\ncapacity = 2\n[scheduler.cas]\nendpoint = \
         \"{}\"\ninstance_name = \"{prefix}\"\n",
        scheduler.uri(),
        cas.uri()
    )
}

fn built(action: &TestAction) -> ActionBlobs {
    action.build(DigestFunction::Sha256)
}

/// The task of an action that a client of the instance `suffix` has asked for, and said that it is `target`.
fn asked_for(action: &ActionBlobs, suffix: &str, target: &str) -> desired_state::Executing {
    let metadata = reapi::RequestMetadata { target_id: target.to_owned(), ..Default::default() };
    let mut trace: Vec<_> = TRACE.into();
    // A scheduler says in whose trace a call is, not who makes it.
    trace.push(("authorization", "Bearer stolen"));
    let trace = trace.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    desired_state::Executing {
        instance_name_suffix: suffix.to_owned(),
        auxiliary_metadata: vec![protobuf::Any {
            type_url: "type.googleapis.com/build.bazel.remote.execution.v2.RequestMetadata".to_owned(),
            value: metadata.encode_to_vec(),
        }],
        w3c_trace_context: trace.collect(),
        ..task_of(action)
    }
}

fn metadata_of(call: &Call) -> Result<reapi::RequestMetadata> {
    let header = call.headers.get_bin(METADATA).with_context(|| format!("no metadata: {call:?}"))?;
    Ok(reapi::RequestMetadata::decode(header.to_bytes()?)?)
}

/// Whether a call is made for what calls itself `target`, in its trace, and in no other name.
fn check_made_for(call: &Call, target: &str) -> Result<()> {
    ensure!(metadata_of(call)?.target_id == target, "{call:?}");
    for (name, value) in TRACE {
        ensure!(call.headers.get(name).is_some_and(|header| header == value), "{name}: {call:?}");
    }
    ensure!(!call.headers.contains_key("authorization"), "{call:?}");
    Ok(())
}

/// Every call to storage says for whom it is made, in whose trace, and in which instance.
#[tokio::test]
async fn hdr_03_bbw_16_17() -> Result<()> {
    for (prefix, suffix, instance) in
        [("", "main", "main"), ("team", "a/b", "team/a/b"), ("team", "", "team"), ("", "", "")]
    {
        let (scheduler, cas) = (FakeBuildbarn::start().await?, FakeCas::start().await?);
        let _worker = Longshore::work(&config(&scheduler, &cas, prefix), None).await?;
        let inputs = InputTree::new().file("d/small", "small").file("large", vec![b'x'; LARGE_BYTES]);
        let action = TestAction::shell("{ cat large; echo more; } > copy; cat d/small d/small > out")
            .inputs(inputs)
            .outputs(["copy", "out"]);
        let action = built(&action);
        cas.put_in(instance, &action.blobs);
        scheduler.submit(asked_for(&action, suffix, "//a:target"));
        let response = response_of(&scheduler, &action.digest).await?;
        let result = result_of(&response, 0)?;

        let calls = cas.all_calls();
        for call in &calls {
            check_made_for(call, "//a:target")?;
            ensure!(call.instance_name == instance, "{call:?}");
        }
        let called: HashSet<_> = calls.iter().map(|call| call.method).collect();
        for method in [
            Method::GetCapabilities,
            Method::GetTree,
            Method::BatchReadBlobs,
            Method::Read,
            Method::FindMissingBlobs,
            Method::BatchUpdateBlobs,
            Method::Write,
            Method::UpdateActionResult,
        ] {
            ensure!(called.contains(&method), "{method:?} was not called");
        }
        for output in &result.output_files {
            let digest = Digest::from_wire(DigestFunction::Sha256, output.digest.as_ref())?;
            ensure!(cas.blob_in(instance, &digest).is_some(), "{output:?}");
        }
        ensure!(cas.result_in(instance, &action.digest).is_some());
        no_mistakes(&scheduler)?;
    }
    Ok(())
}

// One instance's shortage is not another one's, even where both want one tree at once.
#[tokio::test]
async fn two_instances_want_one_tree_and_one_of_them_lacks_a_part() -> Result<()> {
    let (scheduler, cas) = (FakeBuildbarn::start().await?, FakeCas::start().await?);
    let _worker = Longshore::work(&config(&scheduler, &cas, ""), None).await?;
    let inputs = InputTree::new().file("d/f", "content").file("g", "more");
    let action =
        |name: &str| built(&TestAction::shell("cat d/f").environment("NAME", name).inputs(inputs.clone()));
    let (poor, rich) = (action("poor"), action("rich"));
    let lost = DigestFunction::Sha256.digest(b"content");
    cas.put_in("poor", poor.blobs.iter().filter(|(digest, _)| *digest != lost));
    cas.put_in("rich", &rich.blobs);

    cas.hold(Method::GetTree);
    scheduler.submit(asked_for(&poor, "poor", "//poor"));
    // Each reads its Command beside the tree, and nothing else.
    cas.arrived(Method::GetTree, 1).await;
    cas.arrived(Method::BatchReadBlobs, 1).await;
    scheduler.submit(asked_for(&rich, "rich", "//rich"));
    cas.arrived(Method::BatchReadBlobs, 2).await;
    cas.release(Method::GetTree);

    let status = response_of(&scheduler, &poor.digest).await?.status.context("no status")?;
    ensure!(status.code == i32::from(Code::FailedPrecondition), "{status:?}");
    let failure = status.details.iter().find_map(PreconditionFailure::from_any).context("no details")?;
    let subjects: Vec<_> = failure.violations.into_iter().map(|one| one.subject).collect();
    ensure!(subjects == [format!("blobs/{lost}")], "{subjects:?}");
    let response = response_of(&scheduler, &rich.digest).await?;
    result_of(&response, 0)?;
    ensure!(cas.calls(Method::GetTree).iter().all(|call| call.instance_name == "poor"), "it was shared");
    for call in cas.all_calls() {
        check_made_for(&call, &format!("//{}", call.instance_name))?;
    }
    no_mistakes(&scheduler)
}

// What an action's own CAS has not may come from another one, to which its client is a stranger.
#[tokio::test]
async fn another_cas_is_not_asked_in_an_actions_name() -> Result<()> {
    let (scheduler, cas) = (FakeBuildbarn::start().await?, FakeCas::start().await?);
    let (other_scheduler, other_cas) = (FakeBuildbarn::start().await?, FakeCas::start().await?);
    let config = config(&scheduler, &cas, "") + &config(&other_scheduler, &other_cas, "other");
    let _worker = Longshore::work(&config, None).await?;
    let inputs = InputTree::new().file("d/f", "content");
    let action = built(&TestAction::shell("cat d/f").inputs(inputs));
    let elsewhere = DigestFunction::Sha256.digest(b"content");
    cas.put_in("main", action.blobs.iter().filter(|(digest, _)| *digest != elsewhere));
    other_cas.put("content");
    scheduler.submit(asked_for(&action, "main", "//a:target"));
    let response = response_of(&scheduler, &action.digest).await?;
    result_of(&response, 0)?;
    for call in cas.all_calls() {
        ensure!(call.instance_name == "main", "{call:?}");
        check_made_for(&call, "//a:target")?;
    }
    let calls = other_cas.all_calls();
    ensure!(calls.iter().any(|call| call.hashes == [elsewhere.hash_hex()]), "{calls:?}");
    for call in calls {
        ensure!(call.instance_name == "other" && metadata_of(&call)?.target_id.is_empty(), "{call:?}");
        ensure!(TRACE.iter().all(|(name, _)| !call.headers.contains_key(*name)), "{call:?}");
    }
    no_mistakes(&scheduler)
}
