//! Results: exit codes, streams and what else an action leaves.

use std::time::Duration;

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::command_outcome::Verdict;
use longshore_proto::reapi;
use longshore_tests::action::TestAction;
use longshore_tests::client::finished;
use longshore_tests::longshore::{Launch, Longshore};
use tonic::Code;

use crate::run::{run, run_by, run_script};
use crate::support::{shared_client, unique};

/// A shell script that no other test has.
fn unique_script(script: &str) -> TestAction {
    TestAction::shell(script).salt(unique(16))
}

/// A command that ran to its end has status OK and its exit code, whatever that is.
#[tokio::test]
async fn res_01() -> Result<()> {
    for exit_code in [0, 1, 2, 3, 126, 127, 128, 137, 139, 254, 255] {
        let ran = run_script(&format!("exit {exit_code}"), &[]).await?;
        assert_eq!((ran.code(), ran.any_result()?.exit_code), (Code::Ok, exit_code));
        let outcome = ran.outcome()?;
        assert_eq!((outcome.verdict(), outcome.exit_code, outcome.signal), (Verdict::Exited, exit_code, 0));
        assert_eq!(ran.response.message, "");
    }
    Ok(())
}

/// A command that signal N killed has exit code 128 + N; `auxiliary_metadata` tells it from an exit.
#[tokio::test]
async fn res_02() -> Result<()> {
    for (name, number) in
        [("HUP", 1), ("INT", 2), ("ABRT", 6), ("KILL", 9), ("SEGV", 11), ("PIPE", 13), ("TERM", 15)]
    {
        let ran = run_script(&format!("echo so far; kill -{name} $$; exit 1"), &[]).await?;
        assert_eq!((ran.code(), ran.any_result()?.exit_code), (Code::Ok, 128 + number), "{name}");
        let outcome = ran.outcome()?;
        assert_eq!((outcome.verdict(), outcome.exit_code, outcome.signal), (Verdict::Signaled, 0, number));
        assert!(ran.response.message.contains(&format!("SIG{name}")), "{}", ran.response.message);
        assert_eq!(ran.client.stdout(ran.any_result()?).await?, "so far\n");
    }
    // What a shell says of its child is the shell's exit code.
    let ran = run_script("sh -c 'kill -9 $$'; exit $?", &[]).await?;
    assert_eq!(ran.any_result()?.exit_code, 137);
    assert_eq!(ran.outcome()?.verdict(), Verdict::Exited);
    Ok(())
}

/// What the kernel kills has exit code 137 and a note that names the signal.
#[tokio::test]
async fn res_03() -> Result<()> {
    // SIGKILL from outside the command is all that a command sees of the kernel's lack of memory.
    let ran = run_script("(kill -KILL $$) & wait; exit 0", &[]).await?;
    assert_eq!((ran.code(), ran.any_result()?.exit_code), (Code::Ok, 137));
    assert!(ran.response.message.contains("signal 9 (SIGKILL)"), "{}", ran.response.message);
    assert_eq!(ran.outcome()?.signal, 9);
    Ok(())
}

/// stdout and stderr are stored byte by byte, each for itself; an empty one has the empty digest.
#[tokio::test]
async fn res_04() -> Result<()> {
    let empty = DigestFunction::Sha256.digest(b"").to_wire();
    let ran = run_script("true", &[]).await?;
    assert_eq!(ran.result().await?.stdout_digest, Some(empty.clone()));
    assert_eq!(ran.result().await?.stderr_digest, Some(empty.clone()));

    let ran = run_script("printf 'a\\0\\377\\r\\nno end'; printf 'e\\n\\n' >&2", &[]).await?;
    let result = ran.result().await?;
    assert_eq!(ran.blob(result.stdout_digest.as_ref()).await?, b"a\0\xff\r\nno end".as_slice());
    assert_eq!(ran.blob(result.stderr_digest.as_ref()).await?, b"e\n\n".as_slice());

    let ran = run_script("echo 1 >&2; echo 2; exec 1>&2; echo 3", &[]).await?;
    assert_eq!(ran.client.stdout(ran.any_result()?).await?, "2\n");
    assert_eq!(ran.client.stderr(ran.any_result()?).await?, "1\n3\n");

    let script = "echo a; echo b >> /dev/stdout; echo c; echo d >&2; echo e | tee -a /dev/stderr; echo f >&2";
    let ran = run_script(script, &[]).await?;
    assert_eq!(ran.client.stdout(ran.any_result()?).await?, "a\nb\nc\ne\n");
    assert_eq!(ran.client.stderr(ran.any_result()?).await?, "d\ne\nf\n");

    let ran = run_script("head -c 20000000 /dev/zero; printf end", &[]).await?;
    let bytes = ran.blob(ran.result().await?.stdout_digest.as_ref()).await?;
    assert_eq!((bytes.len(), &bytes[20_000_000..]), (20_000_003, b"end".as_slice()));
    assert_eq!(ran.any_result()?.stderr_digest, Some(empty));
    Ok(())
}

async fn execute_inline(
    action: &TestAction,
    stdout: bool,
    stderr: bool,
) -> Result<(reapi::ExecuteResponse, longshore_tests::client::Client)> {
    let (longshore, client) = shared_client().await?;
    let blobs = action.build(client.function());
    client.upload(&blobs.blobs).await?;
    let request = reapi::ExecuteRequest {
        action_digest: Some(blobs.digest.to_wire()),
        inline_stdout: stdout,
        inline_stderr: stderr,
        ..Default::default()
    };
    let response = finished(client.execution().execute(request).await?.into_inner()).await?;
    drop(longshore);
    Ok((response, client))
}

/// Streams come inline if asked for and while they fit.
#[tokio::test]
async fn res_05() -> Result<()> {
    let _longshore = crate::shared().await?;
    let action = unique_script("echo out; echo err >&2");
    // Of a run, then from the cache, with other wishes each time.
    for (stdout, stderr) in [(true, false), (false, true), (true, true), (false, false)] {
        let (response, _) = execute_inline(&action, stdout, stderr).await?;
        let result = response.result.context("a result")?;
        assert_eq!(result.stdout_raw, if stdout { b"out\n".as_slice() } else { b"" });
        assert_eq!(result.stderr_raw, if stderr { b"err\n".as_slice() } else { b"" });
    }
    for (size_bytes, fits) in [(500_000, true), (5_000_000, false)] {
        let action = unique_script(&format!("head -c {size_bytes} /dev/zero; echo err >&2"));
        let (response, client) = execute_inline(&action, true, true).await?;
        let result = response.result.context("a result")?;
        assert_eq!(result.stdout_raw.len(), if fits { size_bytes } else { 0 });
        assert_eq!(result.stderr_raw, b"err\n");
        let digest = Digest::from_wire(client.function(), result.stdout_digest.as_ref())?;
        assert_eq!(digest.size_bytes(), size_bytes as u64);
        assert_eq!(client.missing([&digest]).await?, []);
    }
    Ok(())
}

/// What comes inline has its digest too, and is stored.
#[tokio::test]
async fn res_06() -> Result<()> {
    let _longshore = crate::shared().await?;
    let action = unique_script("printf 'o\\0\\377'; echo err >&2; exit 3");
    let (response, client) = execute_inline(&action, true, true).await?;
    let result = response.result.context("a result")?;
    assert_eq!((result.exit_code, result.stdout_raw.as_slice()), (3, b"o\0\xff".as_slice()));
    for (raw, digest) in
        [(&result.stdout_raw, &result.stdout_digest), (&result.stderr_raw, &result.stderr_digest)]
    {
        let digest = Digest::from_wire(client.function(), digest.as_ref())?;
        assert_eq!(client.read(&digest).await?, raw.as_slice());
    }
    Ok(())
}

/// A command that writes without end is stopped at the bound, with `RESOURCE_EXHAUSTED` and what fits.
#[tokio::test]
async fn res_07() -> Result<()> {
    const LIMIT_BYTES: u64 = 2 << 20;
    let flags = ["--max-log-size", "2MiB"].map(str::to_owned).to_vec();
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    let endless = ["yes", "yes >&2", "trap '' TERM; while :; do echo line; done"];
    for script in endless {
        let ran =
            run_by(&client, &TestAction::shell(&format!("echo a > a; {script}")).outputs(["a"])).await?;
        ran.failed_with(Code::ResourceExhausted, &["2097152"])?;
        let result = ran.any_result()?;
        assert_eq!(result.exit_code, 137);
        assert_eq!(ran.outcome()?.verdict(), Verdict::OutputLimit);
        let size = |digest: &Option<reapi::Digest>| digest.as_ref().map_or(0, |digest| digest.size_bytes);
        let sizes = [size(&result.stdout_digest), size(&result.stderr_digest)];
        assert!(sizes.contains(&LIMIT_BYTES.cast_signed()) && sizes.contains(&0), "{sizes:?}");
        assert_eq!(ran.listing()?, ["file a"]);
    }
    // One that came to its end all the same is cut, and told.
    let ran = run_by(&client, &TestAction::shell("head -c 2097153 /dev/zero; exit 5")).await?;
    ran.failed_with(Code::ResourceExhausted, &["cut off"])?;
    assert_eq!((ran.any_result()?.exit_code, ran.outcome()?.verdict()), (5, Verdict::Exited));
    // The bound itself is allowed.
    let ran = run_by(&client, &TestAction::shell("head -c 2097152 /dev/zero")).await?;
    assert_eq!(ran.blob(ran.result().await?.stdout_digest.as_ref()).await?.len() as u64, LIMIT_BYTES);
    Ok(())
}

/// There are no `server_logs`.
/// Absent: What a person should know about an action is in `ExecuteResponse.message`.
#[tokio::test]
async fn res_08() -> Result<()> {
    for script in ["true", "exit 1", "kill -9 $$", "mkfifo pipe"] {
        assert!(run_script(script, &["pipe"]).await?.response.server_logs.is_empty(), "{script}");
    }
    Ok(())
}

/// The message is empty for an ordinary end, and tells nothing of the action's environment.
#[tokio::test]
async fn res_09() -> Result<()> {
    assert_eq!(run_script("echo a; exit 3", &[]).await?.response.message, "");
    for script in ["kill -9 $$", "mkfifo pipe", "sleep 1000"] {
        let action = TestAction::shell(script).environment("TOKEN", "hunter2").outputs(["pipe"]);
        let ran = run(&action.timeout(Duration::from_millis(500))).await?;
        let status = ran.status();
        assert!(!ran.response.message.is_empty() || status.code != 0, "{script}");
        assert!(!format!("{} {}", ran.response.message, status.message).contains("hunter2"));
    }
    Ok(())
}

/// `cached_result` is true if the result came from the action cache, and only then.
#[tokio::test]
async fn res_10() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let action = unique_script("echo a > a").outputs(["a"]);
    let first = client.run(&action).await?;
    let second = client.run(&action).await?;
    let anew = run_by(&client, &action).await?.response;
    assert_eq!([first.cached_result, second.cached_result, anew.cached_result], [false, true, false]);
    assert_eq!(first.result, second.result);
    Ok(())
}

/// There is a result whenever the status is OK, and whenever a command has run.
#[tokio::test]
async fn res_11() -> Result<()> {
    for (script, code) in [
        ("true", Code::Ok),
        ("exit 9", Code::Ok),
        ("kill -9 $$", Code::Ok),
        ("mkfifo pipe", Code::InvalidArgument),
        ("sleep 1000", Code::DeadlineExceeded),
    ] {
        let action = TestAction::shell(script).outputs(["pipe"]).timeout(Duration::from_millis(800));
        let ran = run(&action).await?;
        assert_eq!(ran.code(), code, "{script}");
        assert!(ran.any_result()?.stdout_digest.is_some());
    }
    Ok(())
}

/// A result is never the empty message: it names its worker.
#[tokio::test]
async fn res_12() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let action = unique_script("true");
    for _ in 0..2 {
        let response = client.run(&action).await?;
        let metadata = response.result.and_then(|result| result.execution_metadata);
        assert!(!metadata.context("metadata")?.worker.is_empty());
    }
    Ok(())
}

/// A result with an exit code other than 0 is not cached.
#[tokio::test]
async fn res_13() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for script in ["exit 1", "kill -9 $$"] {
        let action = unique_script(script);
        for _ in 0..2 {
            assert!(!client.run(&action).await?.cached_result, "{script}");
        }
        let request = reapi::GetActionResultRequest {
            action_digest: Some(action.build(client.function()).digest.to_wire()),
            ..Default::default()
        };
        let found = client.action_cache().get_action_result(request).await;
        assert_eq!(found.map_err(|status| status.code()).err(), Some(Code::NotFound));
    }
    Ok(())
}
