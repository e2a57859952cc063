//! A load client: actions of every kind on a running longshore, for a while, each result checked.
//!
//! `load URI SECONDS AT_ONCE` prints how many actions there were of each kind, and every error; it exits with 1 if
//! there was one. An outcome that was asked for, such as a timeout, is no error; another one is. Actions are distinct,
//! also from those of an earlier run. It measures nothing that depends on a quiet machine.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use longshore_cas_store::digest::Digest;
use longshore_proto::{Message as _, longrunning, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::{Client, finished};
use longshore_tests::tree::InputTree;
use tonic::Code;

/// Actions on one connection: then there is a new one, so that what a connection leaves behind adds up.
const ACTIONS_PER_CONNECTION: usize = 25;

/// Errors that are printed in full.
const ERRORS_SHOWN: usize = 20;

/// The size of a large input, and of the output that is its copy: above what one message holds.
const LARGE_BYTES: usize = 5 << 20;

/// Files of an output directory.
const TREE_FILES: usize = 30;

/// What one action does, and what has to come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A small file in, a small file out; then the same from the cache.
    Small,
    /// Several MiB in and out.
    Large,
    /// A directory comes back.
    Tree,
    /// Exits with 7.
    Failing,
    /// Hangs, with a child in the background, until its timeout.
    TimedOut,
    /// Hangs until its client cancels it.
    Cancelled,
    /// Its client goes away without a word.
    Abandoned,
    /// Names an input that was never uploaded.
    MissingInput,
}

/// The kinds other than [`Kind::Small`], which come one after another.
const RARE: [Kind; 7] = [
    Kind::Large,
    Kind::Tree,
    Kind::Failing,
    Kind::TimedOut,
    Kind::Cancelled,
    Kind::Abandoned,
    Kind::MissingInput,
];

/// One in so many actions is a rare one.
const RARE_EVERY: usize = 8;

/// What came of many actions.
#[derive(Debug, Default)]
struct Tally {
    done: BTreeMap<Kind, usize>,
    errors: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [uri, seconds, at_once] = &arguments[..] else {
        anyhow::bail!("usage: load URI SECONDS AT_ONCE");
    };
    let until = Instant::now() + Duration::from_secs(seconds.parse().context("SECONDS")?);
    let at_once: usize = at_once.parse().context("AT_ONCE")?;

    let lanes = (0..at_once).map(|lane| tokio::spawn(lane_of_actions(uri.clone(), lane, until)));
    let mut total = Tally::default();
    for lane in lanes.collect::<Vec<_>>() {
        let tally = lane.await?;
        total.errors.extend(tally.errors);
        for (kind, count) in tally.done {
            *total.done.entry(kind).or_default() += count;
        }
    }

    let sum: usize = total.done.values().sum();
    let kinds: Vec<String> = total.done.iter().map(|(kind, count)| format!("{kind:?} {count}")).collect();
    println!("{sum} actions, {} errors ({})", total.errors.len(), kinds.join(", "));
    for error in total.errors.iter().take(ERRORS_SHOWN) {
        println!("{error}");
    }
    Ok(if total.errors.is_empty() && sum > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One action after another until the time is up, on one connection after another.
async fn lane_of_actions(uri: String, lane: usize, until: Instant) -> Tally {
    let mut tally = Tally::default();
    // Lanes begin at different places of the cycle.
    let mut index = lane * RARE_EVERY;
    while Instant::now() < until {
        let client = match Client::connect(&uri).await {
            Ok(client) => client,
            Err(error) => {
                tally.errors.push(format!("{error:#}"));
                // A server that is gone would be asked in a tight loop.
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        for _ in 0..ACTIONS_PER_CONNECTION {
            if Instant::now() >= until {
                break;
            }
            let kind = if index.is_multiple_of(RARE_EVERY) {
                RARE[index / RARE_EVERY % RARE.len()]
            } else {
                Kind::Small
            };
            index += 1;
            *tally.done.entry(kind).or_default() += 1;
            if let Err(error) = one(&client, kind).await {
                tally.errors.push(format!("{kind:?}: {error:#}"));
            }
        }
    }
    tally
}

/// One action, and whether it ended as its kind has to.
async fn one(client: &Client, kind: Kind) -> Result<()> {
    let unique = uuid::Uuid::new_v4().to_string();
    match kind {
        Kind::Small => small(client, &unique).await,
        Kind::Large => large(client, &unique).await,
        Kind::Tree => tree(client, &unique).await,
        Kind::Failing => failing(client, &unique).await,
        Kind::TimedOut => timed_out(client, &unique).await,
        Kind::Cancelled => cancelled(client, &unique).await,
        Kind::Abandoned => abandoned(client, &unique).await,
        Kind::MissingInput => missing_input(client, &unique).await,
    }
}

async fn small(client: &Client, unique: &str) -> Result<()> {
    let inputs = InputTree::new().file("in.txt", unique.to_owned());
    let action = TestAction::shell("cat in.txt > out.txt").inputs(inputs).outputs(["out.txt"]);
    for cached in [false, true] {
        let response = client.run(&action).await?;
        ensure!(response.cached_result == cached, "cached_result is {}", !cached);
        let text = client.output_file(result(&response, 0)?, "out.txt").await?;
        ensure!(text == unique, "{text} came back for {unique}");
    }
    Ok(())
}

async fn large(client: &Client, unique: &str) -> Result<()> {
    let content = unique.repeat(LARGE_BYTES / unique.len());
    let inputs = InputTree::new().file("in.bin", content.clone());
    let action = TestAction::shell("cat in.bin > out.bin").inputs(inputs).outputs(["out.bin"]);
    let response = client.run(&action).await?;
    let text = client.output_file(result(&response, 0)?, "out.bin").await?;
    ensure!(text == content, "{} bytes came back for {}, or other ones", text.len(), content.len());
    Ok(())
}

async fn tree(client: &Client, unique: &str) -> Result<()> {
    let script = format!("mkdir d && for i in $(seq {TREE_FILES}); do echo {unique} $i > d/$i; done");
    let response = client.run(&TestAction::shell(&script).outputs(["d"])).await?;
    let directory = result(&response, 0)?.output_directories.first().context("no directory")?;
    let digest = Digest::from_wire(client.function(), directory.tree_digest.as_ref())?;
    let tree = reapi::Tree::decode(client.read(&digest).await?)?;
    let files = tree.root.context("no root")?.files;
    ensure!(files.len() == TREE_FILES, "{} files", files.len());
    for file in files {
        let digest = Digest::from_wire(client.function(), file.digest.as_ref())?;
        let text = client.read(&digest).await?;
        ensure!(text == format!("{unique} {}\n", file.name), "{text:?} in {}", file.name);
    }
    Ok(())
}

async fn failing(client: &Client, unique: &str) -> Result<()> {
    let response = client.run(&TestAction::shell(&format!("echo {unique} >&2; exit 7"))).await?;
    let text = client.stderr(result(&response, 7)?).await?;
    ensure!(text == format!("{unique}\n"), "{text} on stderr");
    Ok(())
}

async fn timed_out(client: &Client, unique: &str) -> Result<()> {
    let script = format!("echo {unique}; setsid sleep 1000 & sleep 1000");
    let response = client.run(&TestAction::shell(&script).timeout(Duration::from_millis(200))).await?;
    status(&response, Code::DeadlineExceeded)
}

async fn cancelled(client: &Client, unique: &str) -> Result<()> {
    let action = TestAction::shell("sleep 1000").salt(unique.to_owned()).build(client.function());
    client.upload(&action.blobs).await?;
    let mut stream = client.start(&action.digest, false).await?;
    let operation = stream.next().await.context("no operation")??;
    let request = longrunning::CancelOperationRequest { name: operation.name };
    client.operations().cancel_operation(request).await.context("CancelOperation")?;
    status(&finished(stream).await?, Code::Cancelled)
}

async fn abandoned(client: &Client, unique: &str) -> Result<()> {
    let action = TestAction::shell("sleep 0.2").salt(unique.to_owned()).build(client.function());
    client.upload(&action.blobs).await?;
    let mut stream = client.start(&action.digest, false).await?;
    stream.next().await.context("no operation")??;
    Ok(())
}

async fn missing_input(client: &Client, unique: &str) -> Result<()> {
    let missing = client.function().digest(unique.as_bytes());
    let inputs = InputTree::new().file("in.txt", unique.to_owned());
    let action = TestAction::shell("true").inputs(inputs).build(client.function());
    let blobs: Vec<_> = action.blobs.into_iter().filter(|(digest, _)| *digest != missing).collect();
    client.upload(&blobs).await?;
    status(&client.execute(&action.digest, false).await?, Code::FailedPrecondition)
}

/// The result of an action that ran and exited with `exit_code`.
fn result(response: &reapi::ExecuteResponse, exit_code: i32) -> Result<&reapi::ActionResult> {
    if let Some(status) = &response.status {
        ensure!(status.code == 0, "{status:?}");
    }
    let result = response.result.as_ref().context("no result")?;
    ensure!(result.exit_code == exit_code, "{result:?}");
    Ok(result)
}

/// The action ended with that status.
fn status(response: &reapi::ExecuteResponse, code: Code) -> Result<()> {
    let status = response.status.as_ref().context("no status")?;
    ensure!(status.code == i32::from(code), "{status:?}, not {code:?}");
    Ok(())
}
