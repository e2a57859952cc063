//! The three steps of collecting, and the lists of an `ActionResult`.

use longshore_cas_store::blob::BlobPin;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::dir::FileKind;
use longshore_proto::reapi;

use super::assemble::{Assembler, Blob, is_executable};
use super::find::{FoundOutput, Inventory, Link, Node, find};
use super::ingest::ingest;
use super::intake::Intake;
use super::{ActionFolder, CollectError, DeclaredKind, DeclaredOutputs, Outputs};

/// Outputs whose files are in the store, and whose messages are not yet.
#[derive(Debug)]
pub struct Gathered {
    outputs: Outputs,
    messages: Vec<Blob>,
}

/// Finds the declared outputs in `folder` and takes their files in. Blocks; call on the pool.
///
/// Every process of the action must be dead. Files may be moved out of the folder.
pub fn gather(
    folder: &ActionFolder,
    declared: &DeclaredOutputs,
    intake: &Intake,
) -> Result<Gathered, CollectError> {
    let inventory = find(folder, declared)?;
    let pins = ingest(&folder.root, &inventory.files, intake)?;
    let (outputs, messages) = report(inventory, pins, intake.function(), declared);
    Ok(Gathered { outputs, messages })
}

impl Gathered {
    /// Stores the messages that describe output directories.
    pub async fn store(self, intake: &Intake) -> Result<Outputs, CollectError> {
        let Self { mut outputs, messages } = self;
        if !messages.is_empty() {
            let messages = messages.into_iter().map(|blob| (blob.digest, blob.data)).collect();
            outputs.pins.extend(intake.put_many(messages).await?);
        }
        Ok(outputs)
    }
}

/// The result's lists, and the messages that they name and that are not stored yet.
fn report(
    mut inventory: Inventory,
    pins: Vec<BlobPin>,
    function: DigestFunction,
    declared: &DeclaredOutputs,
) -> (Outputs, Vec<Blob>) {
    let mut found = std::mem::take(&mut inventory.outputs);
    found.sort_unstable_by(|a, b| a.declared.cmp(&b.declared));
    let notes = std::mem::take(&mut inventory.notes);
    let digests: Vec<Digest> = pins.iter().map(|pin| *pin.digest()).collect();
    let assembler = Assembler::new(&inventory, &digests, function, declared.node_properties);
    let mut report = Report {
        inventory: &inventory,
        digests: &digests,
        assembler,
        separate_directories: declared.directory_format.wants_directories(),
        outputs: Outputs { pins, notes, ..Outputs::default() },
        messages: Vec::new(),
    };
    for output in found {
        report.add(output);
    }
    let Report { outputs, mut messages, .. } = report;
    messages.sort_unstable_by_key(|blob| blob.digest);
    messages.dedup_by_key(|blob| blob.digest);
    (outputs, messages)
}

struct Report<'a> {
    inventory: &'a Inventory,
    digests: &'a [Digest],
    assembler: Assembler<'a>,
    /// Whether every `Directory` message is stored as a blob of its own too.
    separate_directories: bool,
    outputs: Outputs,
    messages: Vec<Blob>,
}

impl Report<'_> {
    fn add(&mut self, output: FoundOutput) {
        match output.node {
            Node::File(file) => self.add_file(output.declared, file),
            Node::Directory(directory) | Node::DirectoryLink(directory, _) => {
                self.add_directory(output.declared, directory);
            }
            Node::Link(link) => self.add_link(output.declared, output.kind, output.leads_to, link),
        }
    }

    fn add_file(&mut self, path: String, file: usize) {
        let stat = &self.inventory.files[file].stat;
        self.outputs.files.push(reapi::OutputFile {
            path,
            digest: Some(self.digests[file].to_wire()),
            is_executable: is_executable(stat),
            node_properties: self.assembler.properties(stat),
            ..Default::default()
        });
    }

    fn add_directory(&mut self, path: String, directory: usize) {
        let tree = self.assembler.tree(directory);
        let mut root_directory_digest = None;
        if self.separate_directories {
            let directories = self.assembler.directories(directory);
            root_directory_digest = directories.first().map(|root| root.digest.to_wire());
            self.messages.extend(directories);
        }
        self.outputs.directories.push(reapi::OutputDirectory {
            path,
            tree_digest: Some(tree.digest.to_wire()),
            is_topologically_sorted: true,
            root_directory_digest,
        });
        self.messages.push(tree);
    }

    /// `output_symlinks` belongs to `output_paths`; the older lists are filled for every client, since a reader
    /// of an older version sees no other. They say what a link leads to; of one that dangles, only what its
    /// declaration says is known.
    fn add_link(&mut self, path: String, kind: DeclaredKind, leads_to: Option<FileKind>, link: Link) {
        let node_properties = self.assembler.link_properties(&link);
        let link = reapi::OutputSymlink { path, target: link.target, node_properties };
        if kind == DeclaredKind::Path {
            self.outputs.symlinks.push(link.clone());
        }
        match (leads_to, kind) {
            (Some(FileKind::Directory), _) | (None, DeclaredKind::Directory) => {
                self.outputs.directory_symlinks.push(link);
            }
            (None, DeclaredKind::Path) => {}
            _ => self.outputs.file_symlinks.push(link),
        }
    }
}

#[cfg(test)]
mod tests;
