//! The trees that are measured.

use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::{Message as _, reapi};

/// How a tree looks.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    files: usize,
    directories: usize,
}

/// T1, T2 and T3: a large action, a huge one, and the compilation of one file.
pub(crate) const SHAPES: [Shape; 3] = [
    Shape { name: "T1", files: 10_000, directories: 500 },
    Shape { name: "T2", files: 100_000, directories: 5_000 },
    Shape { name: "T3", files: 200, directories: 20 },
];

const FILE_BYTES: usize = 4096;
/// Subdirectories a directory: five levels below the root hold all of T2.
const FAN_OUT: usize = 6;
/// One file in so many is executable.
const EXECUTABLE_EVERY: usize = 20;

const FUNCTION: DigestFunction = DigestFunction::Sha256;

impl Shape {
    /// Hands every blob of the tree to `store`, and yields the digest of the root.
    pub(crate) fn blobs(&self, store: &mut dyn FnMut(Digest, Vec<u8>)) -> Digest {
        let files_each = self.files / self.directories;
        let mut children: Vec<Vec<reapi::DirectoryNode>> = vec![Vec::new(); self.directories];
        for number in (0..self.directories).rev() {
            let mut directory = reapi::Directory::default();
            for file in 0..files_each {
                let index = number * files_each + file;
                let mut data = format!("{} {index}\n", self.name).into_bytes();
                data.resize(FILE_BYTES, b'.');
                let digest = FUNCTION.digest(&data);
                store(digest, data);
                directory.files.push(reapi::FileNode {
                    name: format!("source_file_{file:03}.cc"),
                    digest: Some(digest.to_wire()),
                    is_executable: index.is_multiple_of(EXECUTABLE_EVERY),
                    node_properties: None,
                });
            }
            directory.directories = std::mem::take(&mut children[number]);
            directory.directories.reverse();
            let message = directory.encode_to_vec();
            let digest = FUNCTION.digest(&message);
            store(digest, message);
            if number == 0 {
                return digest;
            }
            let name = format!("directory_{number:04}");
            children[(number - 1) / FAN_OUT]
                .push(reapi::DirectoryNode { name, digest: Some(digest.to_wire()) });
        }
        unreachable!("a tree has a root")
    }
}
