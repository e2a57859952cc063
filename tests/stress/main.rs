//! Replays with faults: what they shake out of a longshore.
//!
//! `stress PART COUNT` runs one part of the suite, for so many rounds, and exits with 1 if a promise was broken;
//! `--seconds` ends the rounds earlier, `--figures` appends what was seen to a file, and `stress report FILE` says what such
//! a file amounts to. The actions list the hash of every input that they see: a wrong byte anywhere is a wrong result.

mod bundle;
mod disk;
mod figures;
mod holdings;
mod kills;
mod replaying;
mod same;
mod small;
mod store;
mod vanish;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use disk::SmallDisk;
use figures::{Bounds, Figures};

const USAGE: &str = "usage: stress kills ROUNDS | small ACTIONS | disk ROUNDS | same ROUNDS | vanish SECONDS \
                     [--seconds N] [--figures FILE]\n       stress report FILE";

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [part, count, flags @ ..] = &arguments[..] else { bail!(USAGE) };
    if part == "report" {
        print!("{}", figures::report(Path::new(count))?);
        return Ok(ExitCode::SUCCESS);
    }
    let began = Instant::now();
    let mut bounds = Bounds { count: count.parse().context(USAGE)?, until: None };
    let mut path = None;
    for flag in flags.chunks(2) {
        match flag {
            [name, value] if name == "--seconds" => {
                bounds.until = Some(began + Duration::from_secs(value.parse().context(USAGE)?));
            }
            [name, value] if name == "--figures" => path = Some(PathBuf::from(value)),
            _ => bail!(USAGE),
        }
    }
    // A namespace of our own: while there is one thread.
    let disk = if part == "disk" { Some(SmallDisk::mount()?) } else { None };
    let mut figures = Figures::default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(run(part, bounds, &mut figures, disk.as_ref()));
    // Something may wait for what does not end.
    runtime.shutdown_background();
    let error = ended.err().map(|error| format!("{error:#}"));
    if let Some(path) = path {
        figures.write(&path, part, began.elapsed().as_secs(), error.as_deref())?;
    }
    match error {
        None => println!("ok      {part}"),
        Some(ref error) => println!("FAILED  {part}: {error}"),
    }
    Ok(if error.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a part until its end, or a signal: then what it has started ends with it.
async fn run(part: &str, bounds: Bounds, figures: &mut Figures, disk: Option<&SmallDisk>) -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let run = async {
        match part {
            "kills" => kills::run(bounds, figures).await,
            "small" => small::run(bounds, figures).await,
            "disk" => disk::run(bounds, figures, disk.context("a disk")?).await,
            "same" => same::run(bounds, figures).await,
            "vanish" => vanish::run(bounds, figures).await,
            _ => bail!(USAGE),
        }
    };
    tokio::select! {
        ended = run => ended,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}
