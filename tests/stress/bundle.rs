//! What is replayed: a bundle of actions that tell what they saw.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use longshore_cas_store::digest::DigestFunction;
use longshore_tests::action::TestAction;
use longshore_tests::grpc_log::GrpcLog;
use longshore_tests::longshore::{Longshore, run_to_end};
use longshore_tests::tree::Shape;
use tempfile::TempDir;

use super::store::BLOCK_BYTES;

/// What every action has beside inputs of its own.
const SHARED_BYTES: usize = 20_000;
/// The size of an input.
const FILE_BYTES: usize = 4096;
/// Actions that are recorded at once.
const AT_ONCE: usize = 8;

/// A bundle in a folder of its own.
pub(crate) struct Bundle {
    folder: TempDir,
    pub(crate) actions: usize,
    /// What its blobs take on the disk.
    pub(crate) disk_bytes: u64,
}

impl Bundle {
    /// Records that many actions, each with that many inputs of its own.
    pub(crate) async fn record(actions: usize, inputs: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let longshore = Longshore::start().await?;
        let client = longshore.client().await?;
        let responses = (0..actions).map(|number| {
            let client = client.clone();
            async move {
                let action = action(number, inputs);
                let response = client.run(&action).await?;
                anyhow::Ok((action.build(DigestFunction::Sha256).digest, response))
            }
        });
        let ran: Vec<_> = futures::stream::iter(responses).buffered(AT_ONCE).try_collect().await?;
        let mut log = GrpcLog::default();
        for (action, response) in &ran {
            log.execute(action, response);
        }
        let path = folder.path().join("log");
        std::fs::write(&path, log.bytes())?;
        let bundle = folder.path().join("bundle");
        let arguments: [OsString; 5] =
            ["record".into(), path.into(), bundle.clone().into(), "--server".into(), longshore.uri().into()];
        let (status, output) = run_to_end(arguments).await?;
        ensure!(status.success(), "record: {output}");
        longshore.stop().await?;
        let disk_bytes = size_of(&bundle.join("blobs/sha256"))?;
        Ok(Self { folder, actions, disk_bytes })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("bundle")
    }
}

/// An action that lists the hashes of its inputs, and has outputs of every kind. Each seventh fails.
fn action(number: usize, inputs: usize) -> TestAction {
    let shape = Shape {
        name: "stress",
        files: inputs,
        directories: inputs.div_ceil(4),
        depth_max: 4,
        executable_every: 8,
        file_size_bytes: FILE_BYTES,
    };
    let seed = u64::try_from(number).expect("a small number");
    let shared: Vec<u8> = (0..SHARED_BYTES).map(|index| (index % 251).to_le_bytes()[0]).collect();
    let inputs = shape.tree(seed).file("shared/large", shared);
    let exit_code = if number % 7 == 6 { 3 } else { 0 };
    let script = format!(
        "find . -type f ! -name sums -exec sha256sum {{}} + | LC_ALL=C sort > sums && mkdir -p out/deep && \
         cp sums shared/large out/deep && ln -s deep out/link && echo seen && exit {exit_code}"
    );
    TestAction::shell(&script).inputs(inputs).outputs(["sums", "out"])
}

fn size_of(folder: &Path) -> Result<u64> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    entries.map(|entry| Ok(entry?.metadata()?.blocks() * BLOCK_BYTES)).sum()
}
