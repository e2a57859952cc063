//! The fourth phase: logs and outputs are in the store.

use std::collections::{HashMap, HashSet};

use longshore_cas_store::blob::BlobPin;
use longshore_cas_store::digest::Digest;
use longshore_proto::reapi;

use super::journal::{Journal, Leftovers};
use super::runner::{Context, INLINE_BYTES_MAX};
use super::uploaded::Uploaded;
use crate::materialize::InputRoot;
use crate::output::Outputs;
use crate::status::Failure;

pub(super) struct Collected<'a> {
    pub(super) context: Context<'a>,
    pub(super) stdout: BlobPin,
    pub(super) stderr: BlobPin,
    pub(super) outputs: Outputs,
    pub(super) root: InputRoot,
    pub(super) failure: Option<Failure>,
}

impl Collected<'_> {
    /// Puts everything where the client reads it, and writes the result.
    pub(super) async fn upload(self, journal: &mut Journal) -> Result<Uploaded, Failure> {
        let Self { context, stdout, stderr, mut outputs, root, failure } = self;
        let mut pins = std::mem::take(&mut outputs.pins);
        pins.extend([stdout.clone(), stderr.clone()]);
        let sink = &context.ends.sink;
        context.unless_cancelled(async { Ok(sink.upload(&pins).await?) }).await?;

        let mut result = result_of(outputs, &stdout, &stderr);
        let mut room = Room { context: &context, left_bytes: INLINE_BYTES_MAX };
        if context.inline.stdout {
            result.stdout_raw = room.fill(&stdout).await?;
        }
        if context.inline.stderr {
            result.stderr_raw = room.fill(&stderr).await?;
        }
        // There may be many, of the wanted and of the outputs.
        let wanted: HashSet<_> = context.inline.output_files.iter().collect();
        if !wanted.is_empty() {
            let pins: HashMap<_, _> = pins.iter().map(|pin| (*pin.digest(), pin)).collect();
            for file in result.output_files.iter_mut().filter(|file| wanted.contains(&file.path)) {
                let digest = Digest::from_wire(context.function, file.digest.as_ref()).ok();
                if let Some(pin) = digest.and_then(|digest| pins.get(&digest)) {
                    file.contents = room.fill(pin).await?;
                }
            }
        }
        journal.uploaded();
        Ok(Uploaded { result, failure, leftovers: Leftovers::new(root, pins) })
    }
}

#[expect(deprecated, reason = "clients that speak REAPI 2.0 read no other fields")]
fn result_of(outputs: Outputs, stdout: &BlobPin, stderr: &BlobPin) -> reapi::ActionResult {
    reapi::ActionResult {
        output_files: outputs.files,
        output_directories: outputs.directories,
        output_symlinks: outputs.symlinks,
        output_file_symlinks: outputs.file_symlinks,
        output_directory_symlinks: outputs.directory_symlinks,
        stdout_digest: Some(stdout.digest().to_wire()),
        stderr_digest: Some(stderr.digest().to_wire()),
        ..Default::default()
    }
}

/// What is left of the room for content inside a result.
struct Room<'a> {
    context: &'a Context<'a>,
    left_bytes: u64,
}

impl Room<'_> {
    /// The blob's bytes if they fit, else nothing: the digest is there as well.
    async fn fill(&mut self, pin: &BlobPin) -> Result<Vec<u8>, Failure> {
        let size_bytes = pin.digest().size_bytes();
        let Some(left_bytes) = self.left_bytes.checked_sub(size_bytes) else { return Ok(Vec::new()) };
        self.left_bytes = left_bytes;
        let bytes = self.context.worker.store.read(pin, 0..size_bytes).await;
        Ok(bytes.map_err(|error| Failure::of_store("an output", &error))?.into())
    }
}
