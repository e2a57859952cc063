//! A folder with one action, as `remotetool --operation=download_action` leaves it for people to change.
//!
//! `ac.textproto` and `cmd.textproto` are an Action and a Command, `input/` is the input root. The digests in
//! `ac.textproto` are those of before the change: they are made anew. Properties of nodes (`input_node_properties.textproto`)
//! are not taken over.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::{Message, reapi, text};

use super::blobs::{LocalBlobs, Origin, digest_of};
use super::recording::{InputError, RecordedAction, Recording};

/// The file with the Command, without which there is no action.
pub(crate) const COMMAND: &str = "cmd.textproto";
/// The file with the Action; without one there is no timeout, no salt and no platform.
const ACTION: &str = "ac.textproto";
/// The input root; without one it is empty.
const INPUT: &str = "input";
/// What is not taken over.
const PROPERTIES: &str = "input_node_properties.textproto";

/// What every server computes.
const FUNCTION: DigestFunction = DigestFunction::Sha256;

/// Reads the action in `folder`.
pub(crate) fn open(folder: &Path) -> Result<Recording, InputError> {
    let mut blobs = Gathered::default();
    let command = parse(&folder.join(COMMAND), text::command)?.unwrap_or_default();
    let mut action = parse(&folder.join(ACTION), text::action)?.unwrap_or_default();
    let input = folder.join(INPUT);
    let root = match fs::symlink_metadata(&input) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => blobs.message(&reapi::Directory::default()),
        _ => blobs.directory(&input)?,
    };
    action.input_root_digest = Some(root.to_wire());
    action.command_digest = Some(blobs.message(&command).to_wire());
    let digest = blobs.message(&action);
    let mut problems = Vec::new();
    if folder.join(PROPERTIES).exists() {
        problems.push(format!("{PROPERTIES} is not taken over: inputs have no properties of their own"));
    }
    let name = command.arguments.first().cloned().unwrap_or_default();
    let actions = vec![RecordedAction { name, ..RecordedAction::new(digest) }];
    Ok(Recording { actions, blobs: Arc::new(LocalBlobs::Scattered(blobs.0)), problems })
}

/// Reads a message in text form; nothing if there is no such file.
fn parse<M>(path: &Path, parse: fn(&str) -> Result<M, String>) -> Result<Option<M>, InputError> {
    match fs::read_to_string(path) {
        Ok(text) => parse(&text).map(Some).map_err(|reason| InputError::unsuitable(path, reason)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(InputError::read(path)(error)),
    }
}

/// Blobs, and where each one is.
#[derive(Default)]
struct Gathered(HashMap<Digest, Origin>);

impl Gathered {
    fn message(&mut self, message: &impl Message) -> Digest {
        let data = Bytes::from(message.encode_to_vec());
        let digest = FUNCTION.digest(&data);
        self.0.insert(digest, Origin::Memory(data));
        digest
    }

    /// Takes in a folder with everything below it.
    fn directory(&mut self, folder: &Path) -> Result<Digest, InputError> {
        let read = InputError::read(folder);
        let mut entries: Vec<_> =
            fs::read_dir(folder).and_then(Iterator::collect::<io::Result<_>>).map_err(&read)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        let mut message = reapi::Directory::default();
        for entry in entries {
            let path = entry.path();
            let name = entry.file_name().into_string();
            let name = name.map_err(|_| InputError::unsuitable(&path, "its name is not UTF-8"))?;
            let kind = entry.file_type().map_err(InputError::read(&path))?;
            if kind.is_dir() {
                let digest = Some(self.directory(&path)?.to_wire());
                message.directories.push(reapi::DirectoryNode { name, digest });
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).map_err(InputError::read(&path))?;
                let target = target.into_os_string().into_string();
                let target = target.map_err(|_| InputError::unsuitable(&path, "its target is not UTF-8"))?;
                message.symlinks.push(reapi::SymlinkNode { name, target, ..Default::default() });
            } else if kind.is_file() {
                message.files.push(self.file(name, &path).map_err(InputError::read(&path))?);
            } else {
                return Err(InputError::unsuitable(&path, "it is neither file nor folder nor symlink"));
            }
        }
        Ok(self.message(&message))
    }

    fn file(&mut self, name: String, path: &Path) -> io::Result<reapi::FileNode> {
        let file = fs::File::open(path)?;
        let is_executable = file.metadata()?.permissions().mode() & 0o100 != 0;
        let digest = digest_of(FUNCTION, file)?;
        self.0.insert(digest, Origin::File(path.to_owned()));
        Ok(reapi::FileNode { name, digest: Some(digest.to_wire()), is_executable, ..Default::default() })
    }
}

#[cfg(test)]
mod tests {
    use longshore_cas_store::tree;

    use super::*;

    #[test]
    fn an_action_is_made_of_what_lies_in_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join(INPUT);
        fs::create_dir_all(input.join("sub/empty")).unwrap();
        fs::write(input.join("b.txt"), "hello").unwrap();
        fs::write(input.join("sub/run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(input.join("sub/run"), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("b.txt", input.join("a")).unwrap();
        fs::write(folder.path().join(COMMAND), "arguments: \"sub/run\"\noutput_paths: \"out\"\n").unwrap();
        fs::write(folder.path().join(ACTION), "command_digest {hash: \"stale\"}\ntimeout {seconds: 9}")
            .unwrap();

        let recording = open(folder.path()).unwrap();
        assert_eq!(recording.problems, Vec::<String>::new());
        assert_eq!(recording.actions[0].name, "sub/run");
        let blobs = &recording.blobs;
        let action = blobs.read(&recording.actions[0].digest).unwrap();
        let action = reapi::Action::decode(action).unwrap();
        assert_eq!(action.timeout.unwrap().seconds, 9);
        let read = |wire: Option<&reapi::Digest>| {
            let digest = Digest::from_wire(FUNCTION, wire).unwrap();
            (digest, blobs.read(&digest).unwrap())
        };
        let command = reapi::Command::decode(read(action.command_digest.as_ref()).1).unwrap();
        assert_eq!(command.arguments, ["sub/run"]);
        let (digest, root) = read(action.input_root_digest.as_ref());
        tree::decode(digest, &root).unwrap();
        let root = reapi::Directory::decode(root).unwrap();
        assert_eq!(root.symlinks[0].target, "b.txt");
        assert_eq!(read(root.files[0].digest.as_ref()).1, "hello");
        let sub = reapi::Directory::decode(read(root.directories[0].digest.as_ref()).1).unwrap();
        assert!(sub.files[0].is_executable && !root.files[0].is_executable);
        assert_eq!(sub.directories[0].name, "empty");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = |folder: &Path| open(folder).unwrap_err().to_string();
        fs::write(folder.path().join(COMMAND), "argument: 1").unwrap();
        assert!(error(folder.path()).contains("cmd.textproto"));
        fs::write(folder.path().join(COMMAND), "arguments: \"a\"").unwrap();
        fs::create_dir(folder.path().join(INPUT)).unwrap();
        let pipe = folder.path().join(INPUT).join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(error(folder.path()).contains("neither file nor folder"));
        fs::remove_file(pipe).unwrap();
        // An input root that is none is not an empty one.
        fs::remove_dir(folder.path().join(INPUT)).unwrap();
        fs::write(folder.path().join(INPUT), "").unwrap();
        assert!(error(folder.path()).contains("input: Not a directory"));
        fs::remove_file(folder.path().join(INPUT)).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join(INPUT)).unwrap();
        assert!(error(folder.path()).contains("input: No such file"));
        fs::remove_file(folder.path().join(INPUT)).unwrap();
        fs::write(folder.path().join(PROPERTIES), "").unwrap();
        assert_eq!(open(folder.path()).unwrap().problems.len(), 1);
    }
}
