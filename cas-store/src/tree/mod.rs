//! Input trees: `Directory` messages decoded, checked and linked into a plan that needs no further look at
//! the wire.
//!
//! A [`Directory`] is immutable and shared: equal subtrees are one node, within a tree and between trees, so
//! that what a plan costs in memory is what is distinct in it. What a tree expands to is computed while it is
//! linked ([`Totals`]), by arithmetic over the shared nodes: a Merkle bomb is refused without being expanded.

mod decode;
mod limits;
mod link;
mod visit;

use std::sync::Arc;
use std::time::SystemTime;

pub use decode::{ChildDirectory, Decoded, check, decode};
pub use limits::{Totals, TreeLimits};
pub use link::link;
pub use visit::{Visitor, visit};

use crate::blob::layout::{BLOB_MODE, VARIANT_MODE, blob_mtime};
use crate::digest::{Digest, FileKey};
use crate::name::NodeName;

/// The mode of a directory that has none of its own.
const DIRECTORY_MODE: u32 = 0o755;

/// A decoded and linked `Directory`: everything below it is known.
#[derive(Debug)]
pub struct Directory {
    /// The digest of the message.
    pub digest: Digest,
    /// Files, in the order of the message.
    pub files: Box<[FileEntry]>,
    /// Subdirectories, in the order of the message.
    pub directories: Box<[DirectoryEntry]>,
    /// Symbolic links, in the order of the message.
    pub symlinks: Box<[SymlinkEntry]>,
    /// Properties of the directory itself.
    pub properties: NodeProperties,
    /// What it expands to, itself included.
    pub totals: Totals,
}

/// A file of a [`Directory`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Its name.
    pub name: NodeName,
    /// Its content and whether it can be executed.
    pub key: FileKey,
    /// Its own mode and time, where it has any; such a file shares no inode.
    pub properties: NodeProperties,
}

impl FileEntry {
    /// Whether it is a name of an inode that others have too: not if it has properties of its own. An empty file
    /// would only exhaust the links that one inode can have.
    pub fn is_shared(&self) -> bool {
        self.properties.is_empty() && self.key.digest.size_bytes() > 0
    }

    /// The permission bits it has in a tree. What REAPI calls executable is, whatever its own mode says.
    pub fn mode(&self) -> u32 {
        let plain = if self.key.executable { VARIANT_MODE } else { BLOB_MODE };
        let executable_bits = if self.key.executable { 0o111 } else { 0 };
        self.properties.unix_mode.map_or(plain, |mode| mode | executable_bits)
    }

    /// The modification time it has in a tree.
    pub fn mtime(&self) -> SystemTime {
        self.properties.mtime.unwrap_or_else(blob_mtime)
    }
}

impl Directory {
    /// The permission bits it has in a tree: never without its owner's right to read, write and pass.
    pub fn mode(&self) -> u32 {
        self.properties.unix_mode.map_or(DIRECTORY_MODE, |mode| mode | 0o700)
    }
}

/// A subdirectory of a [`Directory`].
#[derive(Clone, Debug)]
pub struct DirectoryEntry {
    /// Its name.
    pub name: NodeName,
    /// What is in it.
    pub directory: Arc<Directory>,
}

/// A symbolic link of a [`Directory`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymlinkEntry {
    /// Its name.
    pub name: NodeName,
    /// Where it points to, byte for byte as in the message.
    pub target: Box<str>,
    /// The link's own properties.
    pub properties: NodeProperties,
}

/// The node properties that longshore honours (REAPI `NodeProperties`); others are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeProperties {
    /// The modification time.
    pub mtime: Option<SystemTime>,
    /// The permission bits, within 0o1777.
    pub unix_mode: Option<u32>,
}

impl NodeProperties {
    /// Whether the node has a mode or a time of its own.
    pub fn is_empty(&self) -> bool {
        self.mtime.is_none() && self.unix_mode.is_none()
    }
}

/// A whole input tree.
pub type DirectoryTree = Arc<Directory>;

/// Why a tree cannot be built: the client's error, found before anything is created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedTree {
    /// A message is not a valid `Directory`.
    #[error("Directory {digest}: {field}: {reason}")]
    Directory {
        /// The message.
        digest: Digest,
        /// The offending field with the node's name, such as `files["a/b"].name`.
        field: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// The tree expands beyond a limit.
    #[error("input root {root} expands to {measure} {value}, at most {value_max} are allowed")]
    TooLarge {
        /// The root's digest.
        root: Digest,
        /// What is too large.
        measure: &'static str,
        /// How large it is; saturated.
        value: u64,
        /// The limit.
        value_max: u64,
    },
}

#[cfg(test)]
mod tests;
