//! Replays with faults: what they shake out of a longshore.
//!
//! `stress PART [COUNT]` runs one part of the suite and prints what it saw; it exits with 1 if a promise was broken.
//! The actions list the hash of every input that they see: a wrong byte anywhere is a wrong result.

mod bundle;
mod disk;
mod holdings;
mod kills;
mod replaying;
mod same;
mod small;
mod store;
mod vanish;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

const USAGE: &str = "usage: stress kills ROUNDS | small ACTIONS | disk ROUNDS | same ROUNDS | vanish SECONDS";

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [part, count] = &arguments[..] else { bail!(USAGE) };
    let count: u32 = count.parse().context(USAGE)?;
    if part == "disk" {
        // A namespace of our own: while there is one thread.
        disk::mount()?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        match part.as_str() {
            "kills" => kills::run(count).await,
            "small" => small::run(count).await,
            "disk" => disk::run(count).await,
            "same" => same::run(count).await,
            "vanish" => vanish::run(count).await,
            _ => bail!(USAGE),
        }
    });
    match ended {
        Ok(()) => {
            println!("ok      {part}");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            println!("FAILED  {part}: {error:#}");
            Ok(ExitCode::FAILURE)
        }
    }
}
