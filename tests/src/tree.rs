//! Input trees in memory, with the blobs that describe them.
//!
//! [`InputTree`] is built path by path; [`Shape`] makes the large ones that benchmarks speak of. Both give a
//! [`MerkleTree`]: canonical Directory messages and file contents, ready to be uploaded or put into a store.

use std::collections::BTreeMap;

use bytes::Bytes;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::{Message as _, reapi};

/// A blob and its digest.
pub type Blob = (Digest, Bytes);

/// A directory that is being described.
#[derive(Clone, Debug, Default)]
pub struct InputTree {
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
enum Entry {
    Directory(InputTree),
    File { content: Bytes, executable: bool, properties: Option<reapi::NodeProperties> },
    Symlink { target: String },
}

/// Directory messages and file contents, each once.
#[derive(Clone, Debug)]
pub struct MerkleTree {
    /// The digest of the root Directory.
    pub root: Digest,
    /// The Directory messages, encoded.
    pub directories: Vec<Blob>,
    /// The contents of the files.
    pub files: Vec<Blob>,
}

impl InputTree {
    /// An empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a plain file; parents are made as needed.
    #[must_use]
    pub fn file(mut self, path: &str, content: impl Into<Bytes>) -> Self {
        let entry = Entry::File { content: content.into(), executable: false, properties: None };
        self.insert(path, entry);
        self
    }

    /// Adds an executable file.
    #[must_use]
    pub fn executable(mut self, path: &str, content: impl Into<Bytes>) -> Self {
        self.insert(path, Entry::File { content: content.into(), executable: true, properties: None });
        self
    }

    /// Adds a plain file with properties of its own.
    #[must_use]
    pub fn file_with(
        mut self,
        path: &str,
        content: impl Into<Bytes>,
        properties: reapi::NodeProperties,
    ) -> Self {
        let entry = Entry::File { content: content.into(), executable: false, properties: Some(properties) };
        self.insert(path, entry);
        self
    }

    /// Adds a symlink.
    #[must_use]
    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        self.insert(path, Entry::Symlink { target: target.to_owned() });
        self
    }

    /// Adds a directory, empty so far.
    #[must_use]
    pub fn directory(mut self, path: &str) -> Self {
        self.insert(path, Entry::Directory(Self::default()));
        self
    }

    /// The messages and contents, digested with `function`.
    pub fn build(&self, function: DigestFunction) -> MerkleTree {
        let mut blobs = Blobs { function, directories: BTreeMap::new(), files: BTreeMap::new() };
        let root = blobs.add(self);
        let list = |map: BTreeMap<String, Blob>| map.into_values().collect();
        MerkleTree { root, directories: list(blobs.directories), files: list(blobs.files) }
    }

    fn insert(&mut self, path: &str, entry: Entry) {
        match path.split_once('/') {
            None => {
                self.entries.insert(path.to_owned(), entry);
            }
            Some((first, rest)) => {
                let parent =
                    self.entries.entry(first.to_owned()).or_insert_with(|| Entry::Directory(Self::default()));
                let Entry::Directory(parent) = parent else {
                    panic!("{first} is not a directory, so it cannot hold {rest}");
                };
                parent.insert(rest, entry);
            }
        }
    }
}

impl MerkleTree {
    /// Everything that has to be in the store before the tree can be materialized.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.directories.iter().chain(&self.files)
    }
}

/// Blobs by their hash, collected on the way down.
struct Blobs {
    function: DigestFunction,
    directories: BTreeMap<String, Blob>,
    files: BTreeMap<String, Blob>,
}

impl Blobs {
    fn add(&mut self, tree: &InputTree) -> Digest {
        let mut message = reapi::Directory::default();
        for (name, entry) in &tree.entries {
            let name = name.clone();
            match entry {
                Entry::Directory(child) => {
                    let digest = Some(self.add(child).to_wire());
                    message.directories.push(reapi::DirectoryNode { name, digest });
                }
                Entry::File { content, executable, properties } => {
                    let digest = self.function.digest(content);
                    let wire = Some(digest.to_wire());
                    self.files.entry(digest.hash_hex()).or_insert_with(|| (digest, content.clone()));
                    message.files.push(reapi::FileNode {
                        name,
                        digest: wire,
                        is_executable: *executable,
                        node_properties: properties.clone(),
                    });
                }
                Entry::Symlink { target } => {
                    let target = target.clone();
                    message.symlinks.push(reapi::SymlinkNode { name, target, node_properties: None });
                }
            }
        }
        let bytes = Bytes::from(message.encode_to_vec());
        let digest = self.function.digest(&bytes);
        let root = digest;
        self.directories.entry(digest.hash_hex()).or_insert((digest, bytes));
        root
    }
}

/// A large tree by its numbers.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How it is called in tables.
    pub name: &'static str,
    /// Files in all.
    pub files: usize,
    /// Directories in all, the root not counted.
    pub directories: usize,
    /// How deep directories nest at most.
    pub depth_max: usize,
    /// One file in so many is executable.
    pub executable_every: usize,
    /// The size of each file.
    pub file_size_bytes: usize,
}

/// A large action: 10,000 files of 4 KiB in 500 directories.
pub const T1: Shape = Shape {
    name: "T1",
    files: 10_000,
    directories: 500,
    depth_max: 6,
    executable_every: 20,
    file_size_bytes: 4096,
};

/// A monorepo's worth: 100,000 files in 5,000 directories.
pub const T2: Shape = Shape { name: "T2", files: 100_000, directories: 5_000, ..T1 };

/// A C++ compile: 200 files in 20 directories.
pub const T3: Shape = Shape { name: "T3", files: 200, directories: 20, ..T1 };

impl Shape {
    /// A tree of this shape whose every file differs, and differs from those of another `seed`.
    pub fn tree(&self, seed: u64) -> InputTree {
        let folders = self.folders();
        let mut tree = InputTree::new();
        for folder in &folders {
            tree = tree.directory(folder);
        }
        for index in 0..self.files {
            let path = format!("{}/file_{index:06}", folders[index % folders.len()]);
            let content = self.content(seed, index);
            tree = if index % self.executable_every == 0 {
                tree.executable(&path, content)
            } else {
                tree.file(&path, content)
            };
        }
        tree
    }

    /// Paths of directories, parents before children, as deep as the shape says.
    fn folders(&self) -> Vec<String> {
        let mut folders: Vec<String> = Vec::with_capacity(self.directories);
        for index in 0..self.directories {
            // Each directory has four children until the depth is used up; the rest hangs below the root.
            let parent = index.checked_sub(1).map(|index| index / 4);
            let path = match parent.map(|parent| &folders[parent]) {
                Some(parent) if parent.split('/').count() < self.depth_max => {
                    format!("{parent}/dir_{index:04}")
                }
                _ => format!("dir_{index:04}"),
            };
            folders.push(path);
        }
        folders
    }

    fn content(&self, seed: u64, index: usize) -> Bytes {
        let line = format!("{} {seed} {index}\n", self.name);
        line.bytes().cycle().take(self.file_size_bytes).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use longshore_proto::{Message as _, reapi};

    use super::{DigestFunction, InputTree, T3};

    // A tree that the kit makes is one that the store accepts: names sorted, each once.
    #[test]
    fn directories_are_canonical() {
        let tree = InputTree::new()
            .file("b/plain", "1")
            .executable("b/run", "2")
            .directory("a/empty")
            .symlink("b/link", "plain")
            .build(DigestFunction::Sha256);
        for (digest, bytes) in &tree.directories {
            assert_eq!(*digest, DigestFunction::Sha256.digest(bytes));
            let directory = reapi::Directory::decode(bytes.clone()).unwrap();
            assert!(directory.files.is_sorted_by(|a, b| a.name < b.name));
            assert!(directory.directories.is_sorted_by(|a, b| a.name < b.name));
        }
        assert_eq!(tree.directories.len(), 4, "root, a, a/empty and b");
        assert_eq!(tree.files.len(), 2);
    }

    // The benchmarks' trees have the numbers that their tables claim.
    #[test]
    fn a_shape_keeps_its_numbers() {
        let tree = T3.tree(7).build(DigestFunction::Sha256);
        let mut files = 0;
        let mut executables = 0;
        for (_, bytes) in &tree.directories {
            let directory = reapi::Directory::decode(bytes.clone()).unwrap();
            files += directory.files.len();
            executables += directory.files.iter().filter(|file| file.is_executable).count();
        }
        assert_eq!(files, T3.files);
        assert_eq!(executables, T3.files / T3.executable_every);
        assert_eq!(tree.files.len(), T3.files, "every file differs");
        assert_eq!(tree.directories.len(), T3.directories + 1);
        let other = T3.tree(8).build(DigestFunction::Sha256);
        let hashes: BTreeSet<_> = tree.files.iter().map(|(digest, _)| digest.hash_hex()).collect();
        assert!(other.files.iter().all(|(digest, _)| !hashes.contains(&digest.hash_hex())));
    }
}
