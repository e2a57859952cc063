//! Everything that actions need, as a graph: messages and what they refer to. Equal parts are shared.

use std::collections::{HashMap, HashSet};

use longshore_cas_store::digest::Digest;
use longshore_cas_store::tree;
use longshore_proto::{Message as _, reapi};

/// Blobs that actions need, as far as their messages have been read.
#[derive(Default)]
pub(crate) struct Closure {
    /// What each message that was read refers to.
    references: HashMap<Digest, Vec<Digest>>,
    /// Directories that were referred to and have not been taken yet.
    pending: Vec<Digest>,
    /// Directories that were ever pending.
    directories: HashSet<Digest>,
    /// Commands and files.
    leaves: HashSet<Digest>,
}

impl Closure {
    /// Takes in an Action.
    pub(crate) fn action(&mut self, digest: Digest, message: &[u8]) -> Result<reapi::Action, String> {
        let action = reapi::Action::decode(message).map_err(|error| format!("is no Action: {error}"))?;
        let function = digest.function();
        let parse = |field, wire| {
            Digest::from_wire(function, wire).map_err(|error| format!("is no Action: {field}: {error}"))
        };
        let command = parse("command_digest", action.command_digest.as_ref())?;
        let root = parse("input_root_digest", action.input_root_digest.as_ref())?;
        self.leaves.insert(command);
        self.refer_to_directory(root);
        self.references.insert(digest, vec![command, root]);
        Ok(action)
    }

    /// Takes in a Directory.
    pub(crate) fn directory(&mut self, digest: Digest, message: &[u8]) -> Result<(), String> {
        let directory = tree::decode(digest, message).map_err(|error| error.to_string())?;
        let files: Vec<_> = directory.files.iter().map(|file| file.key.digest).collect();
        let mut references: Vec<_> = directory.directories.iter().map(|child| child.digest).collect();
        for child in &references {
            self.refer_to_directory(*child);
        }
        self.leaves.extend(&files);
        references.extend(files);
        self.references.insert(digest, references);
        Ok(())
    }

    fn refer_to_directory(&mut self, digest: Digest) {
        if !digest.is_empty() && self.directories.insert(digest) {
            self.pending.push(digest);
        }
    }

    /// The directories that have to be read next.
    pub(crate) fn take_pending(&mut self) -> Vec<Digest> {
        std::mem::take(&mut self.pending)
    }

    /// Commands and files, without the empty one.
    pub(crate) fn leaves(&self) -> Vec<Digest> {
        self.leaves.iter().filter(|digest| !digest.is_empty()).copied().collect()
    }

    /// Directories and leaves, each once: everything but the actions.
    pub(crate) fn blobs(&self) -> HashSet<Digest> {
        self.leaves().into_iter().chain(self.directories.iter().copied()).collect()
    }

    /// All that one action needs beside itself, each once.
    pub(crate) fn needs(&self, action: Digest) -> HashSet<Digest> {
        let mut needs = HashSet::new();
        let mut reached = vec![action];
        while let Some(digest) = reached.pop() {
            for child in self.references.get(&digest).into_iter().flatten() {
                if !child.is_empty() && needs.insert(*child) {
                    reached.push(*child);
                }
            }
        }
        needs
    }

    /// Everything that needs one of `broken`, itself included, with the one that it needs.
    pub(crate) fn spoilt(&self, broken: impl IntoIterator<Item = Digest>) -> HashMap<Digest, Digest> {
        let mut cause: HashMap<_, _> = broken.into_iter().map(|digest| (digest, digest)).collect();
        if cause.is_empty() {
            return cause;
        }
        let mut needed_by: HashMap<Digest, Vec<Digest>> = HashMap::new();
        for (parent, children) in &self.references {
            for child in children {
                needed_by.entry(*child).or_default().push(*parent);
            }
        }
        let mut reached: Vec<_> = cause.keys().copied().collect();
        while let Some(digest) = reached.pop() {
            let why = cause[&digest];
            for parent in needed_by.get(&digest).into_iter().flatten() {
                if cause.insert(*parent, why).is_none() {
                    reached.push(*parent);
                }
            }
        }
        cause
    }
}

#[cfg(test)]
mod tests {
    use longshore_cas_store::digest::DigestFunction;

    use super::*;

    fn sha(data: &[u8]) -> Digest {
        DigestFunction::Sha256.digest(data)
    }

    fn directory(children: &[(&str, Digest)], files: &[(&str, Digest)]) -> (Digest, Vec<u8>) {
        let child = |(name, digest): &(&str, Digest)| reapi::DirectoryNode {
            name: (*name).to_owned(),
            digest: Some(digest.to_wire()),
        };
        let file = |(name, digest): &(&str, Digest)| reapi::FileNode {
            name: (*name).to_owned(),
            digest: Some(digest.to_wire()),
            ..Default::default()
        };
        let message = reapi::Directory {
            directories: children.iter().map(child).collect(),
            files: files.iter().map(file).collect(),
            ..Default::default()
        };
        let message = message.encode_to_vec();
        (sha(&message), message)
    }

    fn action(command: Digest, root: Digest) -> (Digest, Vec<u8>) {
        let action = reapi::Action {
            command_digest: Some(command.to_wire()),
            input_root_digest: Some(root.to_wire()),
            ..Default::default()
        };
        let message = action.encode_to_vec();
        (sha(&message), message)
    }

    // Two actions share a folder: it is read once, and what is wrong with it spoils both; what is wrong with one, one.
    #[test]
    fn equal_parts_are_shared() {
        let [command, empty, file, other] = [&b"command"[..], b"", b"file", b"other"].map(sha);
        let shared = directory(&[], &[("f", file), ("e", empty)]);
        let root_a = directory(&[("s", shared.0)], &[]);
        let root_b = directory(&[("s", shared.0), ("t", empty)], &[("o", other)]);
        let (a, b) = (action(command, root_a.0), action(command, root_b.0));

        let mut closure = Closure::default();
        for (digest, message) in [&a, &b] {
            closure.action(*digest, message).unwrap();
        }
        assert_eq!(closure.take_pending(), [root_a.0, root_b.0]);
        for (digest, message) in [&root_a, &root_b] {
            closure.directory(*digest, message).unwrap();
        }
        assert_eq!(closure.take_pending(), [shared.0], "once, and not the empty one");
        closure.directory(shared.0, &shared.1).unwrap();
        assert_eq!(closure.take_pending(), []);

        let all = HashSet::from([root_a.0, root_b.0, shared.0, command, file, other]);
        assert_eq!(closure.blobs(), all);
        assert_eq!(closure.needs(a.0), HashSet::from([command, root_a.0, shared.0, file]));
        assert_eq!(closure.spoilt([]), HashMap::new());
        let spoilt = closure.spoilt([file]);
        assert_eq!((spoilt.get(&a.0), spoilt.get(&b.0)), (Some(&file), Some(&file)));
        let spoilt = closure.spoilt([other]);
        assert_eq!((spoilt.get(&a.0), spoilt.get(&b.0)), (None, Some(&other)));
    }

    #[test]
    fn what_is_no_message_is_said() {
        let mut closure = Closure::default();
        assert!(closure.action(sha(b"x"), b"\xff").unwrap_err().contains("is no Action"));
        assert!(closure.action(sha(b""), b"").unwrap_err().contains("command_digest"));
        assert!(closure.directory(sha(b"x"), b"\xff").is_err());
    }
}
