//! `Execution.Execute`.

use std::collections::HashSet;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::reapi::execution_stage::Value as Stage;
use longshore_proto::{Message as _, longrunning, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::{Client, finished};
use longshore_tests::longshore::{Launch, Longshore, new_home};
use tonic::{Code, Streaming};

use crate::run::{Gate, metadata, response, run_by};
use crate::support::{refused, shared_client, unique};

/// A script whose result differs each time it runs.
const RANDOM: &str = "cat /proc/sys/kernel/random/uuid > id";

fn unique_action(script: &str) -> TestAction {
    TestAction::shell(script).salt(unique(16))
}

/// A longshore that runs one action at a time.
async fn one_slot() -> Result<(Longshore, Client)> {
    let flags = ["--jobs", "1"].map(str::to_owned).to_vec();
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    Ok((longshore, client))
}

/// Uploads an action, and a request for it.
async fn request(client: &Client, action: &TestAction) -> Result<reapi::ExecuteRequest> {
    let blobs = action.build(client.function());
    client.upload(&blobs.blobs).await?;
    Ok(reapi::ExecuteRequest {
        action_digest: Some(blobs.digest.to_wire()),
        digest_function: client.wire_function(),
        ..Default::default()
    })
}

async fn start(
    client: &Client,
    request: &reapi::ExecuteRequest,
) -> Result<Streaming<longrunning::Operation>> {
    Ok(client.execution().execute(request.clone()).await?.into_inner())
}

async fn next(stream: &mut Streaming<longrunning::Operation>) -> Result<longrunning::Operation> {
    Ok(stream.next().await.context("the stream has ended")??)
}

async fn rest(mut stream: Streaming<longrunning::Operation>) -> Result<Vec<longrunning::Operation>> {
    let mut operations = Vec::new();
    while let Some(operation) = stream.next().await {
        operations.push(operation?);
    }
    Ok(operations)
}

/// What `RANDOM` wrote.
async fn id(client: &Client, response: &reapi::ExecuteResponse) -> Result<String> {
    client.output_file(response.result.as_ref().context("a result")?, "id").await
}

/// The first message is an operation with a name of its own and metadata, done only if it is complete.
#[tokio::test]
async fn exe_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let gate = Gate::new()?;
    let request = request(&client, &unique_action(&gate.script())).await?;
    let mut names = HashSet::new();
    let (mut one, mut two) = (start(&client, &request).await?, start(&client, &request).await?);
    for stream in [&mut one, &mut two] {
        let first = next(stream).await?;
        assert!(!first.done && first.result.is_none());
        metadata(&first)?;
        assert!(!first.name.is_empty() && names.insert(first.name));
    }
    gate.reached().await?;
    gate.open()?;
    for stream in [one, two] {
        assert_eq!(finished(stream).await?.status.unwrap_or_default().code, 0);
    }
    let cached = rest(start(&client, &request).await?).await?;
    assert!(cached.len() == 1 && cached[0].done && names.insert(cached[0].name.clone()));
    Ok(())
}

/// Every update's metadata has the digest of the request and a stage.
#[tokio::test]
async fn exe_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let request = request(&client, &unique_action("true")).await?;
    for _ in 0..2 {
        for operation in rest(start(&client, &request).await?).await? {
            let metadata = metadata(&operation)?;
            assert_eq!(metadata.action_digest, request.action_digest);
            assert_ne!(metadata.stage(), Stage::Unknown);
        }
    }
    Ok(())
}

/// An operation is done in stage `COMPLETED` and in no other, and then its stream ends with OK.
#[tokio::test]
async fn exe_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for script in ["true", "exit 1", "kill -9 $$", "mkfifo pipe"] {
        let request = request(&client, &unique_action(script).outputs(["pipe"])).await?;
        let operations = rest(start(&client, &request).await?).await?;
        let (last, before) = operations.split_last().context("no operation")?;
        assert!(last.done && metadata(last)?.stage() == Stage::Completed);
        for operation in before {
            assert!(!operation.done && metadata(operation)?.stage() != Stage::Completed);
        }
        response(last)?;
    }
    Ok(())
}

/// Stages come in order: queued, executing, completed.
#[tokio::test]
async fn exe_04() -> Result<()> {
    let (_longshore, client) = one_slot().await?;
    let gate = Gate::new()?;
    let blocking = start(&client, &request(&client, &unique_action(&gate.script())).await?).await?;
    gate.reached().await?;
    let queued = start(&client, &request(&client, &unique_action("true")).await?).await?;
    gate.open()?;
    for stream in [blocking, queued] {
        let mut stages = Vec::new();
        for operation in rest(stream).await? {
            stages.push(metadata(&operation)?.stage);
        }
        assert!(stages.is_sorted(), "{stages:?}");
        assert_eq!(stages.last(), Some(&Stage::Completed.into()));
    }
    Ok(())
}

/// A change of stage is sent at once.
#[tokio::test]
async fn exe_05() -> Result<()> {
    let (_longshore, client) = one_slot().await?;
    let (first_gate, second_gate) = (Gate::new()?, Gate::new()?);
    let mut first = start(&client, &request(&client, &unique_action(&first_gate.script())).await?).await?;
    first_gate.reached().await?;
    let mut second = start(&client, &request(&client, &unique_action(&second_gate.script())).await?).await?;
    assert_eq!(metadata(&next(&mut second).await?)?.stage(), Stage::Queued);
    while metadata(&next(&mut first).await?)?.stage() != Stage::Executing {}
    first_gate.open()?;
    // Both wait at their gates, so nothing else can have sent it.
    while metadata(&next(&mut second).await?)?.stage() != Stage::Executing {}
    second_gate.reached().await?;
    second_gate.open()?;
    finished(first).await?;
    finished(second).await?;
    Ok(())
}

/// A hit of the action cache is a single operation, done, with everything that it names.
#[tokio::test]
async fn exe_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let request = request(&client, &unique_action(RANDOM).outputs(["id"])).await?;
    let ran = finished(start(&client, &request).await?).await?;
    let operations = rest(start(&client, &request).await?).await?;
    let [operation] = &operations[..] else { panic!("{operations:?}") };
    let hit = response(operation)?;
    assert!(hit.cached_result && !ran.cached_result);
    assert_eq!(hit.status.clone().unwrap_or_default().code, 0);
    assert_eq!(id(&client, &hit).await?, id(&client, &ran).await?);
    Ok(())
}

/// With `skip_cache_lookup` the action runs again; joining a run under way is no look-up.
#[tokio::test]
async fn exe_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let action = unique_action(RANDOM).outputs(["id"]);
    let mut ids = HashSet::new();
    for _ in 0..5 {
        let response = run_by(&client, &action).await?.response;
        assert!(!response.cached_result);
        assert!(ids.insert(id(&client, &response).await?), "a result from before the request");
    }
    let gate = Gate::new()?;
    let action = unique_action(&format!("{}; {RANDOM}", gate.script())).outputs(["id"]);
    let mut request = request(&client, &action).await?;
    request.skip_cache_lookup = true;
    let one = start(&client, &request).await?;
    gate.reached().await?;
    let two = start(&client, &request).await?;
    gate.open()?;
    let (one, two) = (finished(one).await?, finished(two).await?);
    assert!(!one.cached_result && !two.cached_result);
    assert_eq!(id(&client, &one).await?, id(&client, &two).await?);
    Ok(())
}

/// With `skip_cache_lookup` a success replaces the cached result, and a failure does not.
#[tokio::test]
async fn exe_08() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let folder = new_home()?;
    let broken = folder.path().join("broken");
    let script = format!("{RANDOM}; ! test -e {}", broken.display());
    let action = unique_action(&script).outputs(["id"]);
    let first = client.run(&action).await?;
    let second = run_by(&client, &action).await?.response;
    assert_ne!(id(&client, &first).await?, id(&client, &second).await?);
    std::fs::write(&broken, "")?;
    let failed = run_by(&client, &action).await?.response;
    assert_eq!(failed.result.context("a result")?.exit_code, 1);
    let hit = client.run(&action).await?;
    assert!(hit.cached_result);
    assert_eq!(id(&client, &hit).await?, id(&client, &second).await?);
    Ok(())
}

/// A lower priority runs sooner; every number is in the range that is announced.
#[tokio::test]
async fn exe_09() -> Result<()> {
    let (_longshore, client) = one_slot().await?;
    let capabilities =
        client.capabilities().get_capabilities(reapi::GetCapabilitiesRequest::default()).await?;
    let execution = capabilities.into_inner().execution_capabilities.context("no execution")?;
    let ranges = execution.execution_priority_capabilities.context("no priorities")?.priorities;
    assert!(ranges.iter().any(|range| (range.min_priority, range.max_priority) == (i32::MIN, i32::MAX)));

    let folder = new_home()?;
    let log = folder.path().join("log");
    std::fs::write(&log, "")?;
    std::fs::set_permissions(&log, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    let gate = Gate::new()?;
    let mut streams = vec![start(&client, &request(&client, &unique_action(&gate.script())).await?).await?];
    gate.reached().await?;
    for priority in [7, 0, -3, i32::MAX, 1, i32::MIN] {
        let action = unique_action(&format!("echo {priority} >> {}", log.display()));
        let mut request = request(&client, &action).await?;
        request.execution_policy = Some(reapi::ExecutionPolicy { priority });
        let mut stream = start(&client, &request).await?;
        assert_eq!(metadata(&next(&mut stream).await?)?.stage(), Stage::Queued);
        streams.push(stream);
    }
    gate.open()?;
    for stream in streams {
        let result = finished(stream).await?.result.context("a result")?;
        assert_eq!(result.exit_code, 0);
    }
    let order: Vec<_> = std::fs::read_to_string(&log)?.lines().map(str::to_owned).collect();
    assert_eq!(order, ["-2147483648", "-3", "0", "1", "7", "2147483647"]);
    Ok(())
}

/// The priority of a result in the cache may be any, and changes nothing.
#[tokio::test]
async fn exe_10() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for priority in [i32::MIN, -1, 0, 1, i32::MAX] {
        let mut request = request(&client, &unique_action("true")).await?;
        request.results_cache_policy = Some(reapi::ResultsCachePolicy { priority });
        for cached in [false, true] {
            assert_eq!(finished(start(&client, &request).await?).await?.cached_result, cached);
        }
    }
    Ok(())
}

/// The metadata names the digest function, which may be left to the digest's length.
#[tokio::test]
async fn exe_11() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let mut request = request(&client, &unique_action("true")).await?;
        for named in [true, false] {
            if !named && function == DigestFunction::Blake3 {
                // As long as those of SHA-256, which is what the length means.
                continue;
            }
            request.digest_function = if named { client.wire_function() } else { 0 };
            for operation in rest(start(&client, &request).await?).await? {
                assert_eq!(metadata(&operation)?.digest_function, client.wire_function(), "{function}");
            }
        }
    }
    Ok(())
}

/// Response and metadata are packed under the names of REAPI's messages.
#[tokio::test]
async fn exe_12() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let prefix = "type.googleapis.com/build.bazel.remote.execution.v2";
    let request = request(&client, &unique_action("true")).await?;
    for _ in 0..2 {
        let operations = rest(start(&client, &request).await?).await?;
        for operation in &operations {
            let metadata = operation.metadata.as_ref().context("no metadata")?;
            assert_eq!(metadata.type_url, format!("{prefix}.ExecuteOperationMetadata"));
        }
        let Some(longrunning::operation::Result::Response(any)) =
            operations.last().and_then(|operation| operation.result.clone())
        else {
            panic!("no response")
        };
        assert_eq!(any.type_url, format!("{prefix}.ExecuteResponse"));
    }
    Ok(())
}

/// A client whose connection breaks finds its action still running.
#[tokio::test]
async fn exe_13() -> Result<()> {
    let (longshore, client) = shared_client().await?;
    let gate = Gate::new()?;
    let name = {
        let leaving = longshore.client().await?;
        let action = unique_action(&format!("{}; {RANDOM}", gate.script())).outputs(["id"]);
        let mut stream = start(&leaving, &request(&leaving, &action).await?).await?;
        gate.reached().await?;
        next(&mut stream).await?.name
    };
    // Something else happens meanwhile.
    let other = longshore.client().await?;
    run_by(&other, &unique_action("true")).await?.result().await?;
    let back = client.execution().wait_execution(reapi::WaitExecutionRequest { name }).await?.into_inner();
    gate.open()?;
    let response = finished(back).await?;
    assert_eq!(response.status.clone().unwrap_or_default().code, 0);
    assert!(!id(&client, &response).await?.is_empty());
    Ok(())
}

/// Clients of the same action share one run, unless it is not to be cached; each gets what it asked for.
#[tokio::test]
async fn exe_14() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let gate = Gate::new()?;
    let script = format!("echo out; {}; {RANDOM}", gate.script());
    let request = request(&client, &unique_action(&script).outputs(["id"])).await?;
    let plain = start(&client, &request).await?;
    gate.reached().await?;
    let wanting = reapi::ExecuteRequest {
        inline_stdout: true,
        inline_output_files: vec!["id".to_owned()],
        ..request.clone()
    };
    let wanting = start(&client, &wanting).await?;
    gate.open()?;
    let (plain, wanting) = (finished(plain).await?, finished(wanting).await?);
    let id = id(&client, &plain).await?;
    let (plain, wanting) = (plain.result.context("a result")?, wanting.result.context("a result")?);
    assert_eq!(wanting.output_files[0].contents, id.as_bytes());
    assert_eq!(wanting.stdout_raw, b"out\n");
    assert!(plain.stdout_raw.is_empty() && plain.output_files[0].contents.is_empty());

    let gates = [Gate::new()?, Gate::new()?];
    let folder = new_home()?;
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    // The one that makes the folder goes to the first gate, the other one to the second.
    let first = format!("{}/first", folder.path().display());
    let script =
        format!("if mkdir {first} 2> /dev/null; then {}; else {}; fi", gates[0].script(), gates[1].script());
    let request = self::request(&client, &unique_action(&script).do_not_cache()).await?;
    let streams = [start(&client, &request).await?, start(&client, &request).await?];
    for gate in &gates {
        gate.reached().await?;
    }
    for gate in &gates {
        gate.open()?;
    }
    for stream in streams {
        assert!(!finished(stream).await?.cached_result);
    }
    Ok(())
}

/// The streams of a running action have no names.
/// Absent: stdout and stderr come with the result; `LogStream` is not served.
#[tokio::test]
async fn exe_15() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let request = request(&client, &unique_action("echo out; echo err >&2")).await?;
    for operation in rest(start(&client, &request).await?).await? {
        let metadata = metadata(&operation)?;
        assert!(metadata.stdout_stream_name.is_empty() && metadata.stderr_stream_name.is_empty());
    }
    Ok(())
}

/// Every instance executes, as Capabilities say.
/// Absent: A standalone longshore has one worker, its own, for all instances.
#[tokio::test]
async fn exe_16() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for instance in ["", "main", "a/b/c"] {
        let asked = reapi::GetCapabilitiesRequest { instance_name: instance.to_owned() };
        let capabilities = client.capabilities().get_capabilities(asked).await?.into_inner();
        assert!(capabilities.execution_capabilities.context("no execution")?.exec_enabled);
        let mut request = request(&client, &unique_action("true")).await?;
        instance.clone_into(&mut request.instance_name);
        let response = finished(start(&client, &request).await?).await?;
        assert_eq!(response.status.unwrap_or_default().code, 0);
    }
    Ok(())
}

/// A response fits into 4 MiB: contents are left out first, and their digests stay.
#[tokio::test]
async fn exe_17() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let names: Vec<_> = (0..30).map(|index| format!("f{index:02}")).collect();
    let script = "for i in $(seq -w 0 29); do head -c 300000 /dev/urandom > f$i; done; \
        head -c 900000 /dev/zero; head -c 900000 /dev/zero >&2";
    let mut request = request(&client, &unique_action(script).outputs(names.clone())).await?;
    (request.inline_stdout, request.inline_stderr) = (true, true);
    request.inline_output_files = names;
    for cached in [false, true] {
        let operations = rest(start(&client, &request).await?).await?;
        let last = operations.last().context("no operation")?;
        assert!(last.encoded_len() < 4 << 20, "{} bytes", last.encoded_len());
        let response = response(last)?;
        assert_eq!(response.cached_result, cached);
        let result = response.result.context("a result")?;
        assert_eq!(result.stdout_raw.len(), 900_000, "what fits is there");
        let mut digests = vec![result.stdout_digest, result.stderr_digest];
        digests.extend(result.output_files.into_iter().map(|file| file.digest));
        for digest in digests {
            let digest = Digest::from_wire(client.function(), digest.as_ref())?;
            assert_eq!(client.missing([&digest]).await?, []);
        }
    }
    // What a client would like that is malformed is nothing to fail for; the action itself must be named.
    let none = reapi::ExecuteRequest { action_digest: None, ..request };
    refused(client.execution().execute(none).await, Code::InvalidArgument, &["action_digest"]);
    Ok(())
}
