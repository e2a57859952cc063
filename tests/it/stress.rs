//! Many actions at once that all behave badly: afterwards nothing of them is left.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use longshore_proto::{longrunning, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::{Client, finished};
use longshore_tests::longshore::{Launch, Longshore};
use longshore_tests::process::{Footprint, foreign_descendants};
use longshore_tests::wait::{empty, eventually};
use tonic::Code;

use crate::result_of;

/// Actions at once: queued and running.
const ACTIONS: usize = 60;
/// How many of them run.
const JOBS: usize = 16;
/// What the loud ones write to stdout.
const LOUD_BYTES: usize = 4 << 20;
/// The files of those that have many outputs.
const OUTPUTS: usize = 300;
/// Daemons of both kinds: by `setsid`, and by forking twice.
const DAEMONS: &str = "setsid sleep 1000 & (setsid sh -c 'sleep 1000 & exec sleep 1000' &)";

// Whatever actions do, their processes, files and descriptors are gone when they are.
#[tokio::test]
async fn nothing_is_left_of_actions_that_behave_badly() -> Result<()> {
    let flags = vec!["--jobs".to_owned(), JOBS.to_string()];
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    // Connections, threads and logs are there from the first action on.
    behave_badly(&client, 1).await?;
    settled(&longshore).await?;
    let before = Footprint::of(longshore.pid())?;

    let actions = (0..ACTIONS).map(|index| behave_badly(&client, index));
    futures::future::try_join_all(actions).await?;

    // The processes first: they were dead before the results came.
    assert_eq!(foreign_descendants(longshore.pid())?, Vec::<String>::new());
    settled(&longshore).await?;
    eventually("descriptors are closed", || {
        Ok(Footprint::of(longshore.pid())?.descriptors <= before.descriptors)
    })
    .await?;
    result_of(&client.run(&TestAction::shell("echo still here")).await?, 0)?;
    ensure!(longshore.stop().await?.success());
    Ok(())
}

/// Runs one action, whose misbehaviour depends on `index`, and checks how it ends.
async fn behave_badly(client: &Client, index: usize) -> Result<()> {
    let salt = |action: TestAction| action.salt(index.to_string());
    match index % 5 {
        0 => {
            let action =
                TestAction::shell(&format!("{DAEMONS}; sleep 1000")).timeout(Duration::from_millis(200));
            let response = client.run(&salt(action)).await?;
            let code = response.status.context("no status")?.code;
            ensure!(code == i32::from(Code::DeadlineExceeded), "{code}");
        }
        1 => {
            let response = client.run(&salt(TestAction::shell(&format!("{DAEMONS}; echo done")))).await?;
            result_of(&response, 0)?;
        }
        2 => {
            let action = TestAction::shell(&format!("head -c {LOUD_BYTES} /dev/zero"));
            let response = client.run(&salt(action)).await?;
            let stdout = result_of(&response, 0)?.stdout_digest.as_ref().context("no stdout")?;
            ensure!(stdout.size_bytes == i64::try_from(LOUD_BYTES)?, "{stdout:?}");
        }
        3 => {
            let script = format!("i=0; while [ $i -lt {OUTPUTS} ]; do echo $i > out/$i; i=$((i+1)); done");
            let action = TestAction::shell(&format!("mkdir -p out; {script}")).outputs(["out"]);
            let response = client.run(&salt(action)).await?;
            ensure!(result_of(&response, 0)?.output_directories.len() == 1);
        }
        _ => {
            let response =
                cancel(client, &salt(TestAction::shell(&format!("{DAEMONS}; sleep 1000")))).await?;
            let code = response.status.context("no status")?.code;
            ensure!(code == i32::from(Code::Cancelled), "{code}");
        }
    }
    Ok(())
}

/// Starts an action, and takes it back at once, whether it waits or runs.
async fn cancel(client: &Client, action: &TestAction) -> Result<reapi::ExecuteResponse> {
    let built = action.build(client.function());
    client.upload(&built.blobs).await?;
    let mut stream = client.start(&built.digest, false).await?;
    let name = stream.message().await?.context("an operation")?.name;
    client.operations().cancel_operation(longrunning::CancelOperationRequest { name }).await?;
    finished(stream).await
}

/// Waits until the background has removed what actions left on the disk.
async fn settled(longshore: &Longshore) -> Result<()> {
    for folder in ["work", "trash", "scratch"] {
        let folder = longshore.root().join(folder);
        empty(&folder).await?;
    }
    eventually("no process is left", || Ok(foreign_descendants(longshore.pid())?.is_empty())).await
}
