//! From what was found to `Directory` and `Tree` messages: pure.
//!
//! Messages are canonical (REAPI, `Directory`): lists sorted by name, equal content gives equal bytes. A `Tree`
//! has its root first, every distinct directory once, and parents before their children.

use std::collections::HashSet;

use bytes::Bytes;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::dir::Stat;
use longshore_proto::{Message as _, reapi, time};

use super::ReportedProperties;
use super::find::{FoundDirectory, Inventory, Link, Node};

/// A message as it is stored.
#[derive(Clone, Debug)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) data: Bytes,
}

/// Writes the messages of an inventory's directories.
pub(super) struct Assembler<'a> {
    inventory: &'a Inventory,
    /// By the file's index.
    digests: &'a [Digest],
    function: DigestFunction,
    properties: ReportedProperties,
    /// By the directory's index; nothing while it is not finished.
    built: Vec<Option<Built>>,
    /// How many directories that are being built a directory contains, itself included; by its index.
    contains_open: Vec<usize>,
}

struct Built {
    message: reapi::Directory,
    blob: Blob,
    /// Indexes of the distinct directories that the message names, in its order.
    children: Vec<usize>,
}

/// A directory that is being built.
struct Frame {
    index: usize,
    children: Vec<usize>,
    /// Which of the children is next.
    next: usize,
}

impl<'a> Assembler<'a> {
    pub(super) fn new(
        inventory: &'a Inventory,
        digests: &'a [Digest],
        function: DigestFunction,
        properties: ReportedProperties,
    ) -> Self {
        let built = inventory.directories.iter().map(|_| None).collect();
        let contains_open = vec![0; inventory.directories.len()];
        Self { inventory, digests, function, properties, built, contains_open }
    }

    /// The `Directory` messages of the directory `root` and of all below it, each distinct one once, parents
    /// first.
    pub(super) fn directories(&mut self, root: usize) -> Vec<Blob> {
        self.build(root);
        self.order(root).into_iter().map(|index| self.built(index).blob.clone()).collect()
    }

    /// The `Tree` message of the directory `root`.
    pub(super) fn tree(&mut self, root: usize) -> Blob {
        self.build(root);
        let mut messages = self.order(root).into_iter().map(|index| self.built(index).message.clone());
        let tree = reapi::Tree { root: messages.next(), children: messages.collect() };
        self.blob(tree.encode_to_vec())
    }

    /// The properties that the client asked for, of a file or directory.
    pub(super) fn properties(&self, stat: &Stat) -> Option<reapi::NodeProperties> {
        let ReportedProperties { mtime, unix_mode } = self.properties;
        (mtime || unix_mode).then(|| reapi::NodeProperties {
            mtime: mtime.then(|| time::timestamp(stat.mtime)),
            unix_mode: unix_mode.then_some(longshore_proto::protobuf::UInt32Value { value: stat.mode }),
            ..Default::default()
        })
    }

    /// The properties that the client asked for, of a symbolic link: its mode means nothing.
    pub(super) fn link_properties(&self, link: &Link) -> Option<reapi::NodeProperties> {
        let mtime = self.properties.mtime.then(|| time::timestamp(link.mtime))?;
        Some(reapi::NodeProperties { mtime: Some(mtime), ..Default::default() })
    }

    /// Builds everything below `root` first, by a stack of its own: trees can be deeper than a thread's stack.
    fn build(&mut self, root: usize) {
        if self.built[root].is_some() {
            return;
        }
        let mut stack = vec![self.open(root)];
        while let Some(frame) = stack.last_mut() {
            let Some(&child) = frame.children.get(frame.next) else {
                self.close(frame.index);
                stack.pop();
                continue;
            };
            frame.next += 1;
            if self.built[child].is_none() {
                stack.push(self.open(child));
            }
        }
    }

    fn open(&mut self, index: usize) -> Frame {
        for above in self.upwards(index) {
            self.contains_open[above] += 1;
        }
        Frame { index, children: self.children(index), next: 0 }
    }

    fn close(&mut self, index: usize) {
        self.built[index] = Some(self.finish(index));
        for above in self.upwards(index) {
            self.contains_open[above] -= 1;
        }
    }

    /// The directory and those that contain it.
    fn upwards(&self, index: usize) -> impl Iterator<Item = usize> + use<'a> {
        let inventory = self.inventory;
        std::iter::successors(Some(index), |index| inventory.directories[*index].parent)
    }

    /// The directories that the message of `index` names, in its order.
    fn children(&self, index: usize) -> Vec<usize> {
        let entries = self.directory(index).entries.iter();
        entries.filter_map(|(_, node)| self.as_directory(node)).collect()
    }

    /// The directory that a node is reported as.
    ///
    /// A link to a directory that contains what is being built stays a link. Hence no real subdirectory is ever
    /// found open: only a link leads from below a directory to above it.
    fn as_directory(&self, node: &Node) -> Option<usize> {
        match node {
            Node::Directory(child) => Some(*child),
            Node::DirectoryLink(child, _) if self.contains_open[*child] == 0 => Some(*child),
            Node::DirectoryLink(..) | Node::File(_) | Node::Link(_) => None,
        }
    }

    fn finish(&self, index: usize) -> Built {
        let directory = self.directory(index);
        let mut message =
            reapi::Directory { node_properties: self.properties(&directory.stat), ..Default::default() };
        for (name, node) in &directory.entries {
            let name = name.clone();
            match (self.as_directory(node), node) {
                (Some(child), _) => {
                    let digest = Some(self.built(child).blob.digest.to_wire());
                    message.directories.push(reapi::DirectoryNode { name, digest });
                }
                (None, Node::File(file)) => message.files.push(self.file_node(name, *file)),
                (None, Node::Link(link) | Node::DirectoryLink(_, link)) => {
                    let (target, node_properties) = (link.target.clone(), self.link_properties(link));
                    message.symlinks.push(reapi::SymlinkNode { name, target, node_properties });
                }
                (None, Node::Directory(_)) => unreachable!("a directory is reported as itself"),
            }
        }
        let blob = self.blob(message.encode_to_vec());
        Built { message, blob, children: self.children(index) }
    }

    fn file_node(&self, name: String, file: usize) -> reapi::FileNode {
        let stat = &self.inventory.files[file].stat;
        reapi::FileNode {
            name,
            digest: Some(self.digests[file].to_wire()),
            is_executable: is_executable(stat),
            node_properties: self.properties(stat),
        }
    }

    /// `root` and all below it, one index a distinct digest, parents before children.
    fn order(&self, root: usize) -> Vec<usize> {
        let mut seen = HashSet::from([self.built(root).blob.digest]);
        let mut finished = Vec::new();
        let mut stack = vec![(root, 0)];
        while let Some((index, next)) = stack.last_mut() {
            let Some(&child) = self.built(*index).children.get(*next) else {
                finished.push(*index);
                stack.pop();
                continue;
            };
            *next += 1;
            if seen.insert(self.built(child).blob.digest) {
                stack.push((child, 0));
            }
        }
        finished.reverse();
        finished
    }

    fn built(&self, index: usize) -> &Built {
        self.built[index].as_ref().expect("children are built before their parents")
    }

    fn directory(&self, index: usize) -> &'a FoundDirectory {
        &self.inventory.directories[index]
    }

    fn blob(&self, data: Vec<u8>) -> Blob {
        Blob { digest: self.function.digest(&data), data: data.into() }
    }
}

/// Whether anybody may execute the file (REAPI, `OutputFile.is_executable`).
pub(super) fn is_executable(stat: &Stat) -> bool {
    stat.mode & 0o111 != 0
}

#[cfg(test)]
mod tests;
