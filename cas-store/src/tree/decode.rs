//! One `Directory` message: bytes to checked nodes. Children are known by digest only.

use std::time::{Duration, SystemTime};

use longshore_proto::{Message as _, protobuf, reapi};

use super::{FileEntry, MalformedTree, NodeProperties, SymlinkEntry};
use crate::digest::{Digest, FileKey};
use crate::name::{NodeName, PATH_LEN_MAX};

/// A `Directory` message whose children are not linked yet.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// The digest of the message.
    pub digest: Digest,
    /// Files, in the order of the message.
    pub files: Vec<FileEntry>,
    /// Subdirectories, in the order of the message.
    pub directories: Vec<ChildDirectory>,
    /// Symbolic links, in the order of the message.
    pub symlinks: Vec<SymlinkEntry>,
    /// Properties of the directory itself.
    pub properties: NodeProperties,
}

/// A subdirectory that is known by its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildDirectory {
    /// Its name.
    pub name: NodeName,
    /// The digest of its message.
    pub digest: Digest,
}

/// Decodes and checks the message with that digest; see [`check`].
pub fn decode(digest: Digest, message: &[u8]) -> Result<Decoded, MalformedTree> {
    let wire = reapi::Directory::decode(message).map_err(|error| MalformedTree::Directory {
        digest,
        field: "message".to_owned(),
        reason: format!("is not a Directory: {error}"),
    })?;
    check(digest, &wire)
}

/// Checks a decoded message with that digest.
///
/// Names must be single components and unique over all three lists, digests well formed, targets possible.
/// The order of the lists is not insisted on: some clients sort wrongly, and nothing here depends on it.
pub fn check(digest: Digest, wire: &reapi::Directory) -> Result<Decoded, MalformedTree> {
    let wrong = |field: String, reason: String| MalformedTree::Directory { digest, field, reason };
    let function = digest.function();

    let mut files = Vec::with_capacity(wire.files.len());
    for node in &wire.files {
        let at = |field: &str| format!("files[{:?}].{field}", node.name);
        let name = NodeName::parse(&node.name).map_err(|error| wrong(at("name"), error.to_string()))?;
        let content = Digest::from_wire(function, node.digest.as_ref())
            .map_err(|error| wrong(at("digest"), error.to_string()))?;
        let properties = properties(node.node_properties.as_ref())
            .map_err(|(field, reason)| wrong(at(&format!("node_properties.{field}")), reason))?;
        let key = FileKey { digest: content, executable: node.is_executable };
        files.push(FileEntry { name, key, properties });
    }

    let mut directories = Vec::with_capacity(wire.directories.len());
    for node in &wire.directories {
        let at = |field: &str| format!("directories[{:?}].{field}", node.name);
        let name = NodeName::parse(&node.name).map_err(|error| wrong(at("name"), error.to_string()))?;
        let child = Digest::from_wire(function, node.digest.as_ref())
            .map_err(|error| wrong(at("digest"), error.to_string()))?;
        directories.push(ChildDirectory { name, digest: child });
    }

    let mut symlinks = Vec::with_capacity(wire.symlinks.len());
    for node in &wire.symlinks {
        let at = |field: &str| format!("symlinks[{:?}].{field}", node.name);
        let name = NodeName::parse(&node.name).map_err(|error| wrong(at("name"), error.to_string()))?;
        check_target(&node.target).map_err(|reason| wrong(at("target"), reason))?;
        let properties = properties(node.node_properties.as_ref())
            .map_err(|(field, reason)| wrong(at(&format!("node_properties.{field}")), reason))?;
        symlinks.push(SymlinkEntry { name, target: node.target.as_str().into(), properties });
    }

    let properties = properties(wire.node_properties.as_ref())
        .map_err(|(field, reason)| wrong(format!("node_properties.{field}"), reason))?;
    let decoded = Decoded { digest, files, directories, symlinks, properties };
    check_unique(&decoded).map_err(|name| wrong(format!("name {name:?}"), "is used twice".to_owned()))?;
    Ok(decoded)
}

fn check_unique(decoded: &Decoded) -> Result<(), NodeName> {
    let mut names: Vec<&NodeName> = decoded
        .files
        .iter()
        .map(|file| &file.name)
        .chain(decoded.directories.iter().map(|child| &child.name))
        .chain(decoded.symlinks.iter().map(|link| &link.name))
        .collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(pair[0].clone()),
        None => Ok(()),
    }
}

fn check_target(target: &str) -> Result<(), String> {
    if target.is_empty() {
        return Err("is empty".to_owned());
    }
    if target.contains('\0') {
        return Err("contains a NUL byte".to_owned());
    }
    if target.len() > PATH_LEN_MAX {
        return Err(format!("is {} bytes long, at most {PATH_LEN_MAX} are possible", target.len()));
    }
    Ok(())
}

fn properties(wire: Option<&reapi::NodeProperties>) -> Result<NodeProperties, (&'static str, String)> {
    let Some(wire) = wire else { return Ok(NodeProperties::default()) };
    let mtime = wire.mtime.as_ref().map(time).transpose().map_err(|reason| ("mtime", reason))?;
    let unix_mode = match wire.unix_mode.as_ref().map(|mode| mode.value) {
        Some(mode) if mode & 0o6000 != 0 => {
            return Err(("unix_mode", format!("{mode:#o} has set-user-ID or set-group-ID")));
        }
        Some(mode) => Some(mode & 0o1777),
        None => None,
    };
    Ok(NodeProperties { mtime, unix_mode })
}

fn time(wire: &protobuf::Timestamp) -> Result<SystemTime, String> {
    let wrong = || format!("{} s and {} ns is no time of a file", wire.seconds, wire.nanos);
    let nanos = u32::try_from(wire.nanos).ok().filter(|nanos| *nanos < 1_000_000_000).ok_or_else(wrong)?;
    let seconds = Duration::from_secs(wire.seconds.unsigned_abs());
    let whole = if wire.seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    whole.and_then(|whole| whole.checked_add(Duration::from_nanos(u64::from(nanos)))).ok_or_else(wrong)
}
