//! What every remote execution takes at least, on this machine and in this run.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, ensure};
use longshore_proto::reapi;
use longshore_tests::client::Client;

use crate::load::Kind;
use crate::quantiles::Quantiles;

/// A call that makes the server do nothing.
pub(crate) async fn nothing(client: &Client, calls: usize) -> Result<Quantiles> {
    let mut capabilities = client.capabilities();
    let mut took = Vec::with_capacity(calls);
    for _ in 0..calls {
        let started = Instant::now();
        capabilities.get_capabilities(reapi::GetCapabilitiesRequest::default()).await?;
        took.push(started.elapsed());
    }
    Ok(Quantiles::of(took.into_iter()))
}

/// The command of an action, spawned by this process and waited for; each in a new folder below `parent`.
pub(crate) fn bare(parent: &Path, kind: Kind, runs: usize) -> Result<Quantiles> {
    let mut took = Vec::with_capacity(runs);
    for _ in 0..runs {
        let folder = tempfile::tempdir_in(parent)?;
        for (name, content) in kind.inputs("bare") {
            std::fs::write(folder.path().join(name), content)?;
        }
        let (program, arguments) = kind.arguments().split_first().expect("a program");
        let started = Instant::now();
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&folder).env_clear().stdin(Stdio::null());
        let status = command.status()?;
        ensure!(status.success(), "{status}");
        took.push(started.elapsed());
    }
    Ok(Quantiles::of(took.into_iter()))
}
