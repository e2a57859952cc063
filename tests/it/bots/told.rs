//! What a worker tells of a scheduler that it cannot work for: whoever operates it sees what is wrong.

use anyhow::Result;
use longshore_tests::fake_bots::{FakeBots, Fault, Handshake};
use longshore_tests::longshore::Longshore;

/// Where nobody listens.
const NOBODY: &str = "grpc://127.0.0.1:1";

/// A worker for one scheduler alone.
async fn work(kind: &str, endpoint: &str, more: &str) -> Result<Longshore> {
    let config = format!(
        "[worker]\nmax_size = \"1GiB\"\n[[scheduler]]\nkind = {kind:?}\nendpoint = {endpoint:?}\n{more}\n"
    );
    Longshore::work(&config, None).await
}

#[tokio::test]
async fn a_scheduler_that_hangs_is_told_of() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    server.once(Fault::Silence);
    let worker = work("bots", server.uri(), "").await?;
    worker.prints(&["WARN", server.uri(), "does not answer in time"]).await
}

#[tokio::test]
async fn what_was_behind_a_failure_is_told() -> Result<()> {
    for kind in ["bots", "buildbarn", "nativelink"] {
        let worker = work(kind, NOBODY, "").await?;
        worker.prints(&["WARN", NOBODY, "Connection refused (os error"]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_token_that_is_not_there_is_no_fault_of_the_scheduler() -> Result<()> {
    let worker = work("bots", NOBODY, "token_file = \"/nowhere/token\"").await?;
    worker.prints(&["WARN", "there is no token to send", "/nowhere/token: No such file"]).await?;
    assert!(!worker.output().contains("the scheduler does not answer"), "{}", worker.output());
    Ok(())
}
