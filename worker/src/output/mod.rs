//! Outputs: declared, found, hashed and taken into the store, never from outside the action's input root.
//!
//! Three steps, in that order, because taking a file in may move it away: `find` looks at everything that is
//! declared and at everything below it, once an inode; `ingest` takes each file into the store ([`Intake`]), once; and
//! `assemble` writes the messages. Paths are opened through `reach` alone, which never leaves the folder;
//! `follow` says where a symbolic link leads, with the same bounds.
//!
//! The module does not know how the input root was made or what ran in it, and uploads nothing.

mod assemble;
mod collect;
mod declare;
mod find;
mod follow;
mod ingest;
mod intake;
mod reach;

use std::path::PathBuf;

use longshore_cas_store::blob::{BlobPin, StoreError};
use longshore_cas_store::dir::{OsDir, PathError};
use longshore_cas_store::name::RelPath;
use longshore_proto::reapi;

pub use collect::{Gathered, gather};
pub use declare::{
    DeclareError, DeclaredKind, DeclaredOutput, DeclaredOutputs, DirectoryFormat, ReportedProperties, declare,
};
pub use intake::Intake;

/// The folder in which an action ran.
#[derive(Debug)]
pub struct ActionFolder {
    /// The input root, open.
    pub root: OsDir,
    /// The absolute path under which the action knew it.
    pub path: PathBuf,
}

/// Whether `path` is a directory inside `root`, through symbolic links too if they stay inside.
pub fn is_directory_below(root: &OsDir, path: &RelPath) -> bool {
    root.open_beneath(path.as_ref()).is_ok()
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
