//! What a tree expands to, and how much of that is allowed.

use super::{Directory, DirectoryEntry, FileEntry, MalformedTree, SymlinkEntry};
use crate::name::PATH_LEN_MAX;

/// What a file of one byte takes on the disk, in bytes, on the file systems that longshore is used on.
const BLOCK_BYTES: u64 = 4096;

/// What a directory expands to when every shared subtree is written out, itself included. Saturating.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Files.
    pub files: u64,
    /// Directories, at least one.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// The sum of the sizes of all files by their digests; symbolic links count nothing.
    pub size_bytes: u64,
    /// What files with properties of their own take on the disk, in bytes: they share no inode.
    pub private_bytes: u64,
    /// Levels of directories, at least one.
    pub depth: u64,
    /// The longest path below the directory, in bytes.
    pub path_len: u64,
}

impl Totals {
    /// Adds up a directory's own nodes and the totals of its children.
    pub(super) fn of(files: &[FileEntry], directories: &[DirectoryEntry], symlinks: &[SymlinkEntry]) -> Self {
        let names = files.iter().map(|file| &file.name).chain(symlinks.iter().map(|link| &link.name));
        let mut totals = Self {
            files: files.len() as u64,
            directories: 1,
            symlinks: symlinks.len() as u64,
            size_bytes: files
                .iter()
                .fold(0, |sum: u64, file| sum.saturating_add(file.key.digest.size_bytes())),
            private_bytes: files.iter().map(private_bytes).fold(0, u64::saturating_add),
            depth: 1,
            path_len: names.map(|name| name.as_str().len() as u64).max().unwrap_or(0),
        };
        for child in directories {
            let below = &child.directory.totals;
            totals.files = totals.files.saturating_add(below.files);
            totals.directories = totals.directories.saturating_add(below.directories);
            totals.symlinks = totals.symlinks.saturating_add(below.symlinks);
            totals.size_bytes = totals.size_bytes.saturating_add(below.size_bytes);
            totals.private_bytes = totals.private_bytes.saturating_add(below.private_bytes);
            totals.depth = totals.depth.max(below.depth.saturating_add(1));
            let name_len = child.name.as_str().len() as u64;
            let slash_len = u64::from(below.path_len > 0);
            totals.path_len = totals.path_len.max((name_len + slash_len).saturating_add(below.path_len));
        }
        totals
    }

    /// All nodes: files, directories and symbolic links.
    pub fn nodes(&self) -> u64 {
        self.files.saturating_add(self.directories).saturating_add(self.symlinks)
    }

    /// What the tree takes on the disk beside the shared inodes, about.
    pub fn own_bytes(&self) -> u64 {
        self.directories.saturating_mul(BLOCK_BYTES).saturating_add(self.private_bytes)
    }
}

fn private_bytes(file: &FileEntry) -> u64 {
    let size_bytes = file.key.digest.size_bytes();
    if file.properties.is_empty() { 0 } else { size_bytes.saturating_add(BLOCK_BYTES) }
}

/// How large a tree may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeLimits {
    /// Files, directories and symbolic links after expansion.
    pub nodes_max: u64,
    /// The sum of file sizes after expansion.
    pub size_bytes_max: u64,
    /// Levels of directories.
    pub depth_max: u64,
    /// The longest path below the root, in bytes.
    pub path_len_max: u64,
    /// The size of one `Directory` message.
    pub message_bytes_max: u64,
}

impl Default for TreeLimits {
    /// Far above what builds use (a whole system root has about 300,000 nodes), far below what hurts.
    fn default() -> Self {
        Self {
            nodes_max: 4_000_000,
            size_bytes_max: 1 << 40,
            depth_max: 1_000,
            path_len_max: PATH_LEN_MAX as u64,
            message_bytes_max: 64 << 20,
        }
    }
}

impl TreeLimits {
    /// Checks a linked tree.
    pub fn check(&self, root: &Directory) -> Result<(), MalformedTree> {
        let totals = &root.totals;
        let checks = [
            ("nodes", totals.nodes(), self.nodes_max),
            ("bytes", totals.size_bytes, self.size_bytes_max),
            ("levels of directories", totals.depth, self.depth_max),
            ("bytes of path", totals.path_len, self.path_len_max),
        ];
        match checks.into_iter().find(|(_, value, value_max)| value > value_max) {
            Some((measure, value, value_max)) => {
                Err(MalformedTree::TooLarge { root: root.digest, measure, value, value_max })
            }
            None => Ok(()),
        }
    }
}
