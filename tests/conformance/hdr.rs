//! Metadata headers.

use anyhow::{Context as _, Result, bail};
use longshore_cas_store::digest::DigestFunction;
use longshore_proto::protobuf::Any;
use longshore_proto::reapi::execution_client::ExecutionClient;
use longshore_proto::{Message as _, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::{Client, finished};
use longshore_tests::fake_buildbarn::{Ended, FakeBuildbarn, task_of};
use longshore_tests::fake_cas::{FakeCas, Method};
use longshore_tests::longshore::{Launch, Longshore};
use longshore_tests::tree::InputTree;

use crate::support::{WithHeaders, shared_client, succeeded, unique};

const METADATA: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";

/// Executes `script` past the cache on a connection with those headers.
async fn execute_with(
    client: &Client,
    headers: &[(&'static str, &str)],
    script: &str,
) -> Result<reapi::ExecuteResponse> {
    let action = TestAction::shell(script).salt(unique(8)).build(client.function());
    client.upload(&action.blobs).await?;
    let request =
        reapi::ExecuteRequest { action_digest: Some(action.digest.to_wire()), ..Default::default() };
    let mut execution = ExecutionClient::new(WithHeaders::new(client, headers)?);
    finished(execution.execute(request).await?.into_inner()).await
}

fn metadata(target: &str) -> reapi::RequestMetadata {
    reapi::RequestMetadata {
        tool_details: Some(reapi::ToolDetails {
            tool_name: "some-tool".to_owned(),
            tool_version: "1.2.3".to_owned(),
        }),
        tool_invocation_id: "invocation-4711".to_owned(),
        correlated_invocations_id: "correlated".to_owned(),
        action_mnemonic: "Mnemonic".to_owned(),
        target_id: target.to_owned(),
        ..Default::default()
    }
}

/// The value of a binary header; `pad` adds what gRPC leaves out.
fn base64(bytes: &[u8], pad: bool) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..=group.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * place)) as usize & 63]));
        }
        if pad {
            text.push_str(&"="[..].repeat(3 - group.len()));
        }
    }
    text
}

/// A call without `RequestMetadata` is fine, and one with bytes that are none too.
#[tokio::test]
async fn hdr_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let junk = base64(b"\xff\xff\xff\xff junk", false);
    for headers in [
        &[][..],
        &[(METADATA, "")],
        &[(METADATA, &junk)],
        &[(METADATA, "!!! not base64 !!!")],
        &[(METADATA, &base64(&metadata("//a").encode_to_vec()[..7], false))],
        &[(METADATA, &base64(&metadata(&"x".repeat(3000)).encode_to_vec(), false))],
    ] {
        let response = execute_with(&client, headers, "true").await?;
        succeeded(&response);
    }
    Ok(())
}

/// Binary headers are read with and without padding.
#[tokio::test]
async fn hdr_02() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    // Every remainder of the length by three.
    for length in 1..=6 {
        for pad in [false, true] {
            let target = format!("//{}:{pad}", "t".repeat(length));
            let header = base64(&metadata(&target).encode_to_vec(), pad);
            succeeded(&execute_with(&client, &[(METADATA, &header)], "true").await?);
            longshore.prints(&["done", &target]).await?;
        }
    }
    Ok(())
}

/// `RequestMetadata` is in every line that is logged about an action, in the metadata of its result, and in the calls
/// that a worker makes to the CAS for it.
#[tokio::test]
async fn hdr_03() -> Result<()> {
    let longshore = Longshore::launch(Launch::default()).await?;
    let client = longshore.client().await?;
    for (script, target, end) in [("true", "//a:fine", "Ok"), ("sleep 1000", "//a:slow", "DeadlineExceeded")]
    {
        let mut action = TestAction::shell(script).salt(unique(8));
        if end != "Ok" {
            action.timeout = Some(std::time::Duration::from_millis(50));
        }
        let action = action.build(client.function());
        client.upload(&action.blobs).await?;
        let request =
            reapi::ExecuteRequest { action_digest: Some(action.digest.to_wire()), ..Default::default() };
        let header = base64(&metadata(target).encode_to_vec(), false);
        let mut execution = ExecutionClient::new(WithHeaders::new(&client, &[(METADATA, &header)])?);
        let response = finished(execution.execute(request).await?.into_inner()).await?;
        longshore.prints(&["done", end, target]).await?;
        let about = action.digest.hash_hex();
        let lines = longshore.output();
        let lines: Vec<_> = lines.lines().filter(|line| line.contains(&about)).collect();
        assert!(!lines.is_empty());
        for line in lines {
            for word in ["some-tool", "invocation-4711", "Mnemonic", target] {
                assert!(line.contains(word), "{line:?} lacks {word:?}");
            }
        }
        let carried = response.result.unwrap_or_default().execution_metadata.unwrap_or_default();
        let is_ours = |any: &&Any| any.type_url.ends_with("v2.RequestMetadata");
        let carried = carried.auxiliary_metadata.iter().find(is_ours).map(|any| any.value.clone());
        assert_eq!(carried, Some(metadata(target).encode_to_vec()));
    }
    in_the_calls_of_a_worker(&metadata("//a:elsewhere")).await
}

async fn in_the_calls_of_a_worker(metadata: &reapi::RequestMetadata) -> Result<()> {
    let (scheduler, cas) = (FakeBuildbarn::start().await?, FakeCas::start().await?);
    let (here, there) = (scheduler.uri(), cas.uri());
    let config = format!(
        "[[scheduler]]\nkind = \"buildbarn\"\nendpoint = \"{here}\"\n[scheduler.cas]\nendpoint = \"{there}\"\n"
    );
    let _worker = Longshore::work(&config, None).await?;
    let inputs = InputTree::new().file("in", "in");
    let action = TestAction::shell("cat in > out").inputs(inputs).outputs(["out"]);
    let action = action.build(DigestFunction::Sha256);
    cas.put_all(&action.blobs);
    let mut task = task_of(&action);
    task.auxiliary_metadata.push(Any {
        type_url: "type.googleapis.com/build.bazel.remote.execution.v2.RequestMetadata".to_owned(),
        value: metadata.encode_to_vec(),
    });
    scheduler.submit(task);
    let ended = scheduler.ended(&action.digest.hash_hex()).await?;
    let Ended::Response(response) = ended else { bail!("{ended:?}") };
    succeeded(&response);
    let calls = cas.all_calls();
    assert!(calls.iter().any(|call| call.method == Method::UpdateActionResult));
    for call in calls {
        let header = call.headers.get_bin(METADATA).context("no metadata")?.to_bytes()?;
        assert_eq!(reapi::RequestMetadata::decode(header)?, *metadata, "{:?}", call.method);
    }
    Ok(())
}

/// Who asks changes nothing about the answer: another client's result is a hit.
#[tokio::test]
async fn hdr_04() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let action = TestAction::shell("echo out").salt(unique(8)).build(client.function());
    client.upload(&action.blobs).await?;
    let request =
        reapi::ExecuteRequest { action_digest: Some(action.digest.to_wire()), ..Default::default() };
    let mut results = Vec::new();
    for target in ["//first", "//second", "//third\nwith a line break"] {
        let header = base64(&metadata(target).encode_to_vec(), false);
        let mut execution = ExecutionClient::new(WithHeaders::new(&client, &[(METADATA, &header)])?);
        let response = finished(execution.execute(request.clone()).await?.into_inner()).await?;
        assert_eq!(response.cached_result, !results.is_empty());
        results.push(succeeded(&response).clone());
    }
    assert!(results.iter().all(|result| *result == results[0]));
    Ok(())
}

/// A W3C trace context is taken, whatever it holds, and is in what is logged during the call.
///
/// Absent: it goes no further, for a standalone server makes no calls of its own.
#[tokio::test]
async fn hdr_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for trace in ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "junk", ""] {
        succeeded(&execute_with(&client, &[("traceparent", trace)], "true").await?);
    }
    Ok(())
}
