//! Actions: what they refer to, timeouts, caching, salt and platform.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::{protobuf, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::{Client, finished};
use longshore_tests::longshore::{Launch, Longshore, new_home};
use longshore_tests::process::foreign_descendants;
use tonic::Code;

use crate::run::{Gate, Ran, missing, run, run_by};
use crate::support::{
    absent, details, execute, missing_subjects, put_message, refused, refused_inside, shared_client, subject,
    unique,
};

/// A script whose result differs each time it runs.
const RANDOM: &str = "cat /proc/sys/kernel/random/uuid";

fn unique_action(script: &str) -> TestAction {
    TestAction::shell(script).salt(unique(16))
}

async fn launch(flags: &[&str]) -> Result<(Longshore, Client)> {
    let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    Ok((longshore, client))
}

/// Executes `true` by an Action that `change` has changed.
async fn run_changed(
    client: &Client,
    change: impl FnOnce(&mut reapi::Action),
) -> Result<reapi::ExecuteResponse> {
    let command = put_message(client, &TestAction::new(["/bin/true"]).command).await?;
    let root = client.put("").await?;
    let mut action = reapi::Action {
        command_digest: Some(command.to_wire()),
        input_root_digest: Some(root.to_wire()),
        ..Default::default()
    };
    change(&mut action);
    let action = put_message(client, &action).await?;
    execute(client, &action).await
}

fn code_of(response: &reapi::ExecuteResponse) -> Code {
    Code::from(response.status.clone().unwrap_or_default().code)
}

async fn has_cached_result(client: &Client, action: &Digest) -> Result<bool> {
    let request = reapi::GetActionResultRequest {
        action_digest: Some(action.to_wire()),
        digest_function: client.wire_function(),
        ..Default::default()
    };
    match client.action_cache().get_action_result(request).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::NotFound => Ok(false),
        Err(status) => Err(status.into()),
    }
}

/// A Command or an input root that is not in the store is `FAILED_PRECONDITION`, with a MISSING for each.
#[tokio::test]
async fn act_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let (gone, elsewhere) = (absent(function), absent(function));
        let there = put_message(&client, &TestAction::new(["/bin/true"]).command).await?;
        let resized = reapi::Digest { size_bytes: there.to_wire().size_bytes + 1, ..there.to_wire() };
        let resized = Digest::from_wire(function, Some(&resized))?;
        for (command, root, expected) in [
            (Some(&gone), None, vec![&gone]),
            (None, Some(&gone), vec![&gone]),
            (Some(&gone), Some(&elsewhere), vec![&gone, &elsewhere]),
            (Some(&resized), None, vec![&resized]),
            (Some(&resized), Some(&gone), vec![&resized, &gone]),
        ] {
            let response = run_changed(&client, |action| {
                action.command_digest = command.map(Digest::to_wire).or(action.command_digest.take());
                action.input_root_digest = root.map(Digest::to_wire).or(action.input_root_digest.take());
            });
            let status = response.await?.status.context("a status")?;
            refused_inside(Some(&status), Code::FailedPrecondition, &["missing"]);
            let mut expected: Vec<_> = expected.into_iter().map(subject).collect();
            expected.sort();
            ensure!(missing_subjects(&status.details) == expected, "{function}: {status:?}");
        }
        // The same blob in both places is one that is missing.
        let response = run_changed(&client, |action| {
            action.command_digest = Some(gone.to_wire());
            action.input_root_digest = Some(gone.to_wire());
        });
        let status = response.await?.status.context("a status")?;
        ensure!(missing(&status)? == [subject(&gone)], "{status:?}");
    }
    Ok(())
}

/// An Action that is not in the store is the call's `FAILED_PRECONDITION`, with a MISSING for it.
#[tokio::test]
async fn act_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let there = client.put(unique(30)).await?;
        let resized = reapi::Digest { size_bytes: 31, ..there.to_wire() };
        for gone in [absent(function), Digest::from_wire(function, Some(&resized))?] {
            for skip_cache_lookup in [false, true] {
                let status = refused(
                    client.start(&gone, skip_cache_lookup).await,
                    Code::FailedPrecondition,
                    &["Action"],
                );
                ensure!(missing_subjects(&details(&status)?) == [subject(&gone)]);
            }
        }
    }
    Ok(())
}

/// An Action or a Command that cannot be parsed is `INVALID_ARGUMENT`, with its digest.
#[tokio::test]
async fn act_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for garbage in every_garbage() {
        let garbage = client.put(garbage).await?;
        let hash = garbage.hash_hex();
        refused(client.start(&garbage, false).await, Code::InvalidArgument, &["Action", &hash]);
        let response = run_changed(&client, |action| action.command_digest = Some(garbage.to_wire())).await?;
        refused_inside(response.status.as_ref(), Code::InvalidArgument, &["Command", &hash]);
        ensure!(response.status.context("a status")?.details.is_empty(), "no upload can help");
    }
    // No bytes are a message of defaults: what is lacking is a field.
    let empty = client.put("").await?;
    let response = execute(&client, &empty).await?;
    refused_inside(response.status.as_ref(), Code::InvalidArgument, &["Action.command_digest"]);
    let response = run_changed(&client, |action| action.command_digest = Some(empty.to_wire())).await?;
    refused_inside(response.status.as_ref(), Code::InvalidArgument, &["Command.arguments"]);
    let response = run_changed(&client, |action| action.input_root_digest = None).await?;
    refused_inside(response.status.as_ref(), Code::InvalidArgument, &["Action.input_root_digest"]);
    Ok(())
}

/// Bytes that are no message: a broken tag, a wrong wire type, a length beyond the end, text that is not UTF-8.
fn every_garbage() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> =
        [&b"\xff\xff\xff"[..], b"\x0a\x7f", b"\x0d1234", b"\x0a\x02\x0a\xff", b"\x07"]
            .iter()
            .map(|bytes| bytes.to_vec())
            .collect();
    all.push([b"\xff".as_slice(), &unique(3000)].concat());
    all
}

/// A timeout beyond the server's maximum is `INVALID_ARGUMENT`; it is not cut.
#[tokio::test]
async fn act_04() -> Result<()> {
    let (_longshore, client) = launch(&["--max-timeout", "60s"]).await?;
    let wire = |seconds, nanos| Some(protobuf::Duration { seconds, nanos });
    for timeout in [wire(60, 1), wire(61, 0), wire(86_400, 0), wire(315_576_000_000, 0)] {
        let response = run_changed(&client, |action| action.timeout = timeout).await?;
        refused_inside(response.status.as_ref(), Code::InvalidArgument, &["Action.timeout", "60s"]);
        ensure!(response.status.context("a status")?.details.is_empty());
    }
    for timeout in [wire(60, 0), wire(59, 999_999_999), None] {
        let response = run_changed(&client, |action| action.timeout = timeout).await?;
        ensure!(code_of(&response) == Code::Ok, "{timeout:?}: {response:?}");
    }
    // Without a maximum everything that a duration can be is in order.
    let (_longshore, client) = shared_client().await?;
    for timeout in [wire(86_400, 0), wire(315_576_000_000, 999_999_999)] {
        let response = run_changed(&client, |action| action.timeout = timeout).await?;
        ensure!(code_of(&response) == Code::Ok, "{timeout:?}: {response:?}");
    }
    Ok(())
}

/// A timeout that is negative or no duration is `INVALID_ARGUMENT`.
#[tokio::test]
async fn act_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for (seconds, nanos) in [
        (-1, 0),
        (0, -1),
        (-1, -1),
        (1, -1),
        (-1, 1),
        (0, 1_000_000_000),
        (1, i32::MAX),
        (1, i32::MIN),
        (i64::MIN, 0),
        (315_576_000_001, 0),
        (i64::MAX, 999_999_999),
    ] {
        let timeout = Some(protobuf::Duration { seconds, nanos });
        let response = run_changed(&client, |action| action.timeout = timeout).await?;
        let value = seconds.to_string();
        refused_inside(response.status.as_ref(), Code::InvalidArgument, &["Action.timeout", &value]);
        ensure!(response.result.context("a result")?.exit_code != 0);
    }
    Ok(())
}

/// An action without a timeout has the server's default.
#[tokio::test]
async fn act_06() -> Result<()> {
    let (_longshore, client) = launch(&["--default-timeout", "1s"]).await?;
    let ran = run_by(&client, &TestAction::shell("exec sleep 1000")).await?;
    ran.failed_with(Code::DeadlineExceeded, &["1s"])?;
    // One of its own may be longer.
    let action = TestAction::shell("sleep 1.5").timeout(Duration::from_mins(2));
    run_by(&client, &action).await?.result().await?;
    // What is allowed at most bounds those that name none, too.
    let (_longshore, client) = launch(&["--max-timeout", "1s"]).await?;
    let ran = run_by(&client, &TestAction::shell("exec sleep 1000")).await?;
    ran.failed_with(Code::DeadlineExceeded, &["1s"])
}

/// A timeout of zero expires at once: nothing is run.
#[tokio::test]
async fn act_07() -> Result<()> {
    let folder = new_home()?;
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let mark = folder.path().join("mark");
    let action = TestAction::shell(&format!("echo ran; : > {}", mark.display()));
    let ran = run(&action.clone().timeout(Duration::ZERO)).await?;
    ran.failed_with(Code::DeadlineExceeded, &["deadline"])?;
    ensure!(!mark.exists(), "it was run");
    ensure!(ran.any_result()?.exit_code != 0);
    ensure!(ran.client.stdout(ran.any_result()?).await? == "");
    // The same is run with a little more.
    run(&action.timeout(Duration::from_mins(1))).await?.result().await?;
    ensure!(mark.exists());
    Ok(())
}

/// The timeout is the command's alone: waiting for a worker does not count.
#[tokio::test]
async fn act_08() -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let (_longshore, client) = launch(&["--jobs", "1"]).await?;
    let gate = Gate::new()?;
    let waiting = TestAction::shell(&gate.script());
    let before = run_by(&client, &waiting);
    let queued = async {
        gate.reached().await?;
        let blobs = TestAction::shell("true").timeout(TIMEOUT).build(client.function());
        client.upload(&blobs.blobs).await?;
        let mut stream = client.start(&blobs.digest, true).await?;
        stream.next().await.context("an operation")??;
        // It is the passing of the time that is tested.
        tokio::time::sleep(TIMEOUT + TIMEOUT / 2).await;
        gate.open()?;
        finished(stream).await
    };
    let (before, queued) = futures::join!(before, queued);
    before?.result().await?;
    ensure!(code_of(&queued?) == Code::Ok);
    Ok(())
}

/// When the time is up everything that the command started is killed.
#[tokio::test]
async fn act_09() -> Result<()> {
    let (longshore, client) = launch(&[]).await?;
    let deaf = "trap '' TERM HUP INT QUIT USR1 USR2; while :; do sleep 1000; done";
    for script in [
        "exec sleep 1000".to_owned(),
        deaf.to_owned(),
        "sleep 1000 & sleep 1000 & wait".to_owned(),
        format!("setsid sh -c \"{deaf}\" & wait"),
        format!("(setsid sh -c \"({deaf}) &\" &); {deaf}"),
        "kill -STOP $$".to_owned(),
        "sh -c 'kill -STOP $$' & wait".to_owned(),
        "i=0; while :; do sleep 1000 & i=$((i+1)); [ $i -lt 200 ] || wait; done".to_owned(),
    ] {
        let action = TestAction::shell(&script).timeout(Duration::from_millis(500));
        run_by(&client, &action).await?.failed_with(Code::DeadlineExceeded, &["500ms"])?;
        ensure!(foreign_descendants(longshore.pid())?.is_empty(), "{script}");
    }
    Ok(())
}

const SLOW: &str = "echo out; echo err >&2; mkdir d; echo f > d/f; echo a > a; exec sleep 1000";

async fn run_slow() -> Result<Ran> {
    let ran =
        run(&TestAction::shell(SLOW).outputs(["a", "d", "later"]).timeout(Duration::from_secs(1))).await?;
    ran.failed_with(Code::DeadlineExceeded, &["1s"])?;
    Ok(ran)
}

/// The result of a timeout has stdout, stderr, outputs and metadata so far.
#[tokio::test]
async fn act_10() -> Result<()> {
    let ran = run_slow().await?;
    let result = ran.any_result()?;
    ensure!(ran.client.stdout(result).await? == "out\n" && ran.client.stderr(result).await? == "err\n");
    ensure!(ran.listing()? == ["file a", "directory d"]);
    ensure!(ran.file("a").await? == "a\n" && ran.contents("d").await? == ["f"]);
    let metadata = result.execution_metadata.as_ref().context("metadata")?;
    ensure!(!metadata.worker.is_empty());
    let times = [&metadata.execution_start_timestamp, &metadata.execution_completed_timestamp]
        .map(|time| time.as_ref().map(|time| (time.seconds, time.nanos)));
    ensure!(times[0].is_some() && times[0] <= times[1], "{times:?}");
    Ok(())
}

/// The exit code of a timeout is that of a kill.
#[tokio::test]
async fn act_11() -> Result<()> {
    ensure!(run_slow().await?.any_result()?.exit_code == 128 + 9);
    // Also of one that would have ended well when asked to.
    let script = "trap 'exit 0' TERM; while :; do sleep 1000; done";
    let ran = run(&TestAction::shell(script).timeout(Duration::from_secs(1))).await?;
    ensure!(ran.code() == Code::DeadlineExceeded && ran.any_result()?.exit_code == 137);
    Ok(())
}

/// A timeout is not cached.
#[tokio::test]
async fn act_12() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for timeout in [Duration::from_millis(500), Duration::ZERO] {
        let blobs = unique_action("exec sleep 1000").timeout(timeout).build(client.function());
        client.upload(&blobs.blobs).await?;
        for _ in 0..2 {
            let response = client.execute(&blobs.digest, false).await?;
            ensure!(code_of(&response) == Code::DeadlineExceeded && !response.cached_result);
            ensure!(!has_cached_result(&client, &blobs.digest).await?);
        }
    }
    Ok(())
}

/// With `do_not_cache` nothing is stored or looked up in the action cache, and each request has a run of its own.
#[tokio::test]
async fn act_13() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let gates = [Gate::new()?, Gate::new()?];
    let folder = new_home()?;
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    // The one that makes the folder goes to the first gate, the other one to the second: both run at once.
    let first = format!("mkdir {}/first 2> /dev/null", folder.path().display());
    let script = format!("if {first}; then {}; else {}; fi; {RANDOM}", gates[0].script(), gates[1].script());
    let blobs = unique_action(&script).do_not_cache().build(client.function());
    client.upload(&blobs.blobs).await?;
    let streams = [client.start(&blobs.digest, false).await?, client.start(&blobs.digest, false).await?];
    for gate in &gates {
        gate.reached().await?;
    }
    for gate in &gates {
        gate.open()?;
    }
    let mut ids = Vec::new();
    for stream in streams {
        let response = finished(stream).await?;
        ensure!(code_of(&response) == Code::Ok && !response.cached_result);
        ids.push(client.stdout(&response.result.context("a result")?).await?);
    }
    ensure!(ids[0] != ids[1]);
    ensure!(!has_cached_result(&client, &blobs.digest).await?);

    // A result that a client stored is not looked at.
    let blobs = unique_action(RANDOM).do_not_cache().build(client.function());
    client.upload(&blobs.blobs).await?;
    let planted = reapi::ActionResult { stdout_raw: b"planted".to_vec(), ..Default::default() };
    let update = reapi::UpdateActionResultRequest {
        action_digest: Some(blobs.digest.to_wire()),
        action_result: Some(planted),
        ..Default::default()
    };
    client.action_cache().update_action_result(update).await?;
    let response = client.execute(&blobs.digest, false).await?;
    ensure!(!response.cached_result);
    let stdout = client.stdout(&response.result.context("a result")?).await?;
    ensure!(stdout.trim_end().len() == 36, "{stdout:?}");
    Ok(())
}

/// Requests of one action share a run; one that leaves takes it from nobody.
#[tokio::test]
async fn act_14() -> Result<()> {
    let (longshore, client) = shared_client().await?;
    let gate = Gate::new()?;
    let blobs = unique_action(&format!("{}; {RANDOM}", gate.script())).build(client.function());
    client.upload(&blobs.blobs).await?;
    let leaving = longshore.client().await?;
    let first = leaving.start(&blobs.digest, false).await?;
    gate.reached().await?;
    let stays = [client.start(&blobs.digest, false).await?, client.start(&blobs.digest, true).await?];
    drop(first);
    drop(leaving);
    gate.open()?;
    let mut ids = Vec::new();
    for stream in stays {
        let response = finished(stream).await?;
        ensure!(code_of(&response) == Code::Ok && !response.cached_result);
        ids.push(client.stdout(&response.result.context("a result")?).await?);
    }
    ensure!(ids[0] == ids[1], "two runs of one action");
    let hit = client.execute(&blobs.digest, false).await?;
    ensure!(hit.cached_result && client.stdout(&hit.result.context("a result")?).await? == ids[0]);
    Ok(())
}

/// Actions that differ by their salt alone have results of their own.
#[tokio::test]
async fn act_15() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let common = unique(16);
    let mut seen = Vec::new();
    for suffix in [vec![], vec![0], vec![0, 0], b"text".to_vec(), vec![0xff; 4], vec![7; 1 << 20]] {
        let salt = if suffix.is_empty() { common.clone() } else { [common.as_slice(), &suffix].concat() };
        let action = TestAction::shell(RANDOM).salt(salt);
        let (ran, hit) = (client.run(&action).await?, client.run(&action).await?);
        ensure!(!ran.cached_result && hit.cached_result);
        let id = client.stdout(&ran.result.context("a result")?).await?;
        ensure!(client.stdout(&hit.result.context("a result")?).await? == id);
        ensure!(!seen.contains(&id), "the result of another salt");
        seen.push(id);
    }
    Ok(())
}

fn platform(properties: &[(&str, &str)]) -> reapi::Platform {
    let property = |(name, value): &(&str, &str)| reapi::platform::Property {
        name: (*name).to_owned(),
        value: (*value).to_owned(),
    };
    reapi::Platform { properties: properties.iter().map(property).collect() }
}

/// An action whose platform is that in its Action and that in its Command.
#[expect(deprecated, reason = "clients from before REAPI 2.2 set the Command's platform alone")]
fn on(of_action: Option<reapi::Platform>, of_command: Option<reapi::Platform>) -> TestAction {
    let mut action = TestAction::shell("echo $PLATFORM");
    action.platform = of_action;
    action.command.platform = of_command;
    action
}

/// The platform of the Action goes before that of its Command, which counts where there is no other.
#[tokio::test]
async fn act_16() -> Result<()> {
    let (_longshore, client) = launch(&["--platform-variable", "PLATFORM"]).await?;
    let (one, two) = (platform(&[("of", "action")]), platform(&[("of", "command"), ("more", "x")]));
    let nothing = platform(&[]);
    for (of_action, of_command, seen) in [
        (Some(&one), None, "of=action"),
        (None, Some(&two), "of=command,more=x"),
        (Some(&one), Some(&two), "of=action"),
        (Some(&nothing), Some(&two), ""),
        (None, None, ""),
    ] {
        let ran = run_by(&client, &on(of_action.cloned(), of_command.cloned())).await?;
        let stdout = ran.client.stdout(ran.result().await?).await?;
        ensure!(stdout.trim_end() == seen, "{of_action:?} {of_command:?}: {stdout}");
    }
    // So it is with what the machine is asked for.
    let (plan9, linux) = (platform(&[("OSFamily", "plan9")]), platform(&[("OSFamily", "linux")]));
    run(&on(Some(linux.clone()), Some(plan9.clone()))).await?.result().await?;
    for action in [on(Some(plan9.clone()), Some(linux)), on(None, Some(plan9))] {
        run(&action).await?.failed_with(Code::FailedPrecondition, &["OSFamily", "plan9"])?;
    }
    Ok(())
}

/// Property names that longshore does not know are accepted, and mean nothing to it.
/// Deviation: It is for the server to say which names it accepts: this one runs on its users' own machine, for clients
/// that were set up for other servers, whose names tell their pools and containers apart.
#[tokio::test]
async fn act_17() -> Result<()> {
    for properties in [
        &[("container-image", "docker://x")][..],
        &[("", "")],
        &[("Pool", "default"), ("cache-silo-key", "1")],
        &[("ünï", "☃"), ("with space", "\n")],
    ] {
        run(&on(Some(platform(properties)), None)).await?.result().await?;
    }
    Ok(())
}

/// Properties may come unsorted, and a name more than once.
#[tokio::test]
async fn act_18() -> Result<()> {
    for properties in [
        [("b", "1"), ("a", "2")],
        [("a", "2"), ("a", "1")],
        [("a", "1"), ("a", "2")],
        [("a", "1"), ("a", "1")],
    ] {
        run(&on(Some(platform(&properties)), None)).await?.result().await?;
        run(&on(None, Some(platform(&properties)))).await?.result().await?;
    }
    Ok(())
}

/// What no worker here can ever be is `FAILED_PRECONDITION`, and nothing that an upload would help.
#[tokio::test]
async fn act_19() -> Result<()> {
    for properties in [
        &[("OSFamily", "windows")][..],
        &[("ISA", "sparc-v9")],
        &[("OSFamily", "linux"), ("Pool", "x"), ("ISA", "power-isa-le")],
    ] {
        let ran = run(&on(Some(platform(properties)), None)).await?;
        let (name, value) = properties[properties.len() - 1];
        ran.failed_with(Code::FailedPrecondition, &["Action.platform", name, value])?;
        ensure!(ran.status().details.is_empty());
        ensure!(ran.any_result()?.exit_code != 0);
    }
    let ran = run(&on(None, Some(platform(&[("OSFamily", "macos")])))).await?;
    ran.failed_with(Code::FailedPrecondition, &["Command.platform", "OSFamily", "macos"])
}

/// `OSFamily` and `ISA` are understood: one family, and every instruction set that is named, unless `--any-platform`.
#[tokio::test]
async fn act_20() -> Result<()> {
    let (own, other) =
        if cfg!(target_arch = "aarch64") { ("arm-a64", "x86-64") } else { ("x86-64", "arm-a64") };
    for properties in [
        &[("ISA", own)][..],
        &[("OSFamily", "linux")],
        // So it is written for Google's service.
        &[("OSFamily", "Linux")],
        &[("ISA", own), ("OSFamily", "linux")],
    ] {
        run(&on(Some(platform(properties)), None)).await?.result().await?;
    }
    for properties in [
        &[("ISA", other)][..],
        &[("ISA", own), ("ISA", other)],
        &[("ISA", "")],
        &[("OSFamily", "")],
        &[("OSFamily", "linux"), ("OSFamily", "windows")],
        &[("OSFamily", "linux-gnu")],
    ] {
        let ran = run(&on(Some(platform(properties)), None)).await?;
        ran.failed_with(Code::FailedPrecondition, &["Action.platform"])?;
    }
    // Names are case-sensitive: this is another one.
    run(&on(Some(platform(&[("osfamily", "plan9")])), None)).await?.result().await?;
    let (_longshore, client) = launch(&["--any-platform"]).await?;
    let elsewhere = on(Some(platform(&[("ISA", other), ("OSFamily", "windows")])), None);
    run_by(&client, &elsewhere).await?.result().await?;
    Ok(())
}
