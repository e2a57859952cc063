//! Outputs: found, hashed and taken into the store, never from outside the action's input root.

use std::sync::Arc;

use longshore_cas_store::blob::{BlobPin, BlobStore, StoreError};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::dir::{OsDir, PathError};
use longshore_cas_store::io::IoPool;
use longshore_cas_store::name::RelPath;
use longshore_proto::reapi;

/// What a Command declares about its outputs, checked.
#[derive(Clone, Debug, Default)]
pub struct DeclaredOutputs {
    /// Each declared path, in the order of the Command, each once.
    pub paths: Vec<DeclaredOutput>,
    /// `Command.output_directory_format`.
    pub directory_format: DirectoryFormat,
    /// Node properties to report (`Command.output_node_properties`), all supported.
    pub node_properties: Vec<String>,
}

/// One declared output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredOutput {
    /// The path exactly as the Command has it: results echo it.
    pub declared: String,
    /// Where it is, relative to the input root.
    pub path: RelPath,
    /// Which field declared it, and so what it may be.
    pub kind: DeclaredKind,
}

/// Which field of the Command declared an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeclaredKind {
    /// `output_paths`: anything.
    Path,
    /// `output_files`.
    File,
    /// `output_directories`.
    Directory,
}

/// `Command.OutputDirectoryFormat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectoryFormat {
    /// A `Tree` message.
    #[default]
    TreeOnly,
    /// `Directory` messages; the Tree is given too, which is allowed.
    DirectoryOnly,
    /// Both.
    TreeAndDirectory,
}

/// What was found, with everything that it names kept in the store.
#[derive(Debug, Default)]
pub struct Outputs {
    /// Files, sorted by path.
    pub files: Vec<reapi::OutputFile>,
    /// Directories, sorted by path.
    pub directories: Vec<reapi::OutputDirectory>,
    /// `ActionResult.output_symlinks`.
    pub symlinks: Vec<reapi::OutputSymlink>,
    /// `ActionResult.output_file_symlinks`.
    pub file_symlinks: Vec<reapi::OutputSymlink>,
    /// `ActionResult.output_directory_symlinks`.
    pub directory_symlinks: Vec<reapi::OutputSymlink>,
    /// Every blob that the result names.
    pub pins: Vec<BlobPin>,
    /// What a person should know (skipped sockets, links that lead outside), for `ExecuteResponse.message`.
    pub notes: Vec<String>,
}

/// Why outputs cannot be reported.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CollectError {
    /// An output is not what the Command declared, or nothing that REAPI can describe: the client's error.
    #[error("output {path:?} {reason}")]
    Undeclarable {
        /// The declared path.
        path: String,
        /// What is wrong.
        reason: String,
        /// Whether REAPI calls it a failed precondition (else an invalid argument).
        precondition: bool,
    },
    /// The disk failed or is full.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file operation failed.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// Finds the declared outputs below `root` and takes them into `store`.
///
/// Every process of the action must be dead. Files may be moved out of `root`.
pub async fn collect(
    root: OsDir,
    declared: DeclaredOutputs,
    function: DigestFunction,
    store: Arc<BlobStore>,
    io: IoPool,
) -> Result<Outputs, CollectError> {
    todo!("{root:?} {declared:?} {function} {store:?} {io:?} {:?}", None::<Digest>)
}
