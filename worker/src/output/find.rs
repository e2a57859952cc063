//! What lies at the declared paths and below them: every inode once, before anything is moved.
//!
//! Directories are listed level by level, each level's in parallel; the bookkeeping in between is done alone.
//!
//! Absolute symbolic links into the action's folder lead nowhere once the folder is gone. Clients that declare
//! `output_paths` get them verbatim, as REAPI says; clients of the older fields get what they lead to, as these
//! clients expect of every server. Nothing outside of the folder is looked at for anybody.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use longshore_cas_store::dir::{Dir as _, FileKind, OsDir, PathError, Stat};
use nix::errno::Errno;
use rayon::prelude::*;

use super::follow::{LinkEnd, follow};
use super::reach::{reach, unlocking};
use super::{ActionFolder, CollectError, DeclaredKind, DeclaredOutput, DeclaredOutputs};

/// Everything that was found.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub(super) files: Vec<FoundFile>,
    pub(super) directories: Vec<FoundDirectory>,
    pub(super) outputs: Vec<FoundOutput>,
    pub(super) notes: Vec<String>,
}

/// A regular file, once an inode.
#[derive(Debug)]
pub(super) struct FoundFile {
    /// The directory of one of its names, relative to the root.
    pub(super) parent: PathBuf,
    /// Its name there.
    pub(super) name: OsString,
    pub(super) stat: Stat,
}

/// A directory, once an inode.
#[derive(Debug)]
pub(super) struct FoundDirectory {
    pub(super) stat: Stat,
    /// The index of the directory that contains it, if that was looked at.
    pub(super) parent: Option<usize>,
    /// Sorted by name.
    pub(super) entries: Vec<(String, Node)>,
}

/// A declared output that exists.
#[derive(Debug)]
pub(super) struct FoundOutput {
    /// The path as declared.
    pub(super) declared: String,
    pub(super) kind: DeclaredKind,
    pub(super) node: Node,
    /// What a link leads to inside the folder.
    pub(super) leads_to: Option<FileKind>,
}

/// Something that has a name; files and directories are indexes into the [`Inventory`].
#[derive(Clone, Debug)]
pub(super) enum Node {
    File(usize),
    Directory(usize),
    Link(Link),
    /// A link that is reported as the directory it leads to, unless that contains the link.
    DirectoryLink(usize, Link),
}

/// A symbolic link.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) target: String,
    pub(super) mtime: SystemTime,
}

/// Looks at all outputs of `declared` in `folder`. Blocks; call on the pool.
pub(super) fn find(folder: &ActionFolder, declared: &DeclaredOutputs) -> Result<Inventory, CollectError> {
    let mut finder = Finder {
        folder,
        inventory: Inventory::default(),
        files: HashMap::new(),
        directories: HashMap::new(),
        unlisted: Vec::new(),
    };
    for output in &declared.paths {
        if let Some(found) = finder.find_output(output)? {
            finder.inventory.outputs.push(found);
        }
    }
    finder.list_directories()?;
    Ok(finder.inventory)
}

struct Finder<'a> {
    folder: &'a ActionFolder,
    inventory: Inventory,
    /// By device and inode.
    files: HashMap<(u64, u64), usize>,
    directories: HashMap<(u64, u64), usize>,
    unlisted: Vec<Unlisted<'a>>,
}

/// A directory whose entries are not known yet.
struct Unlisted<'a> {
    index: usize,
    path: PathBuf,
    /// The output that it was found for.
    output: &'a DeclaredOutput,
}

/// What a directory lists.
struct Listed {
    name: OsString,
    stat: Stat,
    /// Of a symbolic link.
    target: Option<OsString>,
    /// Where an absolute link into the folder leads, for clients that want it followed.
    end: Option<LinkEnd>,
}

impl<'a> Finder<'a> {
    /// What lies at one declared path; nothing if nothing does, which is no error (REAPI, `ActionResult`).
    fn find_output(&mut self, output: &'a DeclaredOutput) -> Result<Option<FoundOutput>, CollectError> {
        let Some((parent, name)) = output.path.parent().zip(output.path.file_name()) else {
            let stat = unlocking(&self.folder.root, |root| root.stat(Path::new(".")))?;
            let node = Node::Directory(self.directory(stat, PathBuf::new(), output));
            return Ok(Some(found(output, node, None)));
        };
        let parent = Path::new(parent.as_str());
        let name = Path::new(name.as_str());
        let dir = match reach(&self.folder.root, parent) {
            Ok(dir) => dir,
            Err(error) => return self.absent_parent(output, error),
        };
        let stat = match unlocking(&dir, |dir| dir.stat(name)) {
            Ok(stat) => stat,
            Err(error) if error.errno == Errno::ENOENT => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if stat.kind != FileKind::Symlink {
            let node = self.plain(output, stat, parent.join(name))?;
            return Ok(Some(found(output, node, None)));
        }

        let target = dir.read_link(name)?;
        let end = follow(self.folder, parent, &target);
        if let (true, Some(end)) = (is_followed(output.kind, &target), &end) {
            let node = self.plain(output, end.stat, end.path.clone())?;
            return Ok(Some(found(output, node, None)));
        }
        let leads_to = end.map(|end| end.stat.kind);
        if output.kind == DeclaredKind::Directory && leads_to == Some(FileKind::File) {
            return Err(undeclarable(output, "is a symbolic link to a file, not to a directory", true));
        }
        let target = utf8(output, target.as_os_str())?.to_owned();
        let node = Node::Link(Link { target, mtime: stat.mtime });
        Ok(Some(found(output, node, leads_to)))
    }

    fn absent_parent(
        &mut self,
        output: &DeclaredOutput,
        error: PathError,
    ) -> Result<Option<FoundOutput>, CollectError> {
        match error.errno {
            Errno::ENOENT | Errno::ENOTDIR => Ok(None),
            Errno::EXDEV | Errno::ELOOP => {
                let path = &output.declared;
                self.inventory.notes.push(format!(
                    "output {path:?} was not collected: a symbolic link leads it out of the input root"
                ));
                Ok(None)
            }
            _ => Err(error.into()),
        }
    }

    /// The node of an output that is no symbolic link.
    fn plain(&mut self, output: &'a DeclaredOutput, stat: Stat, path: PathBuf) -> Result<Node, CollectError> {
        match stat.kind {
            FileKind::File if output.kind == DeclaredKind::Directory => {
                Err(undeclarable(output, "is a file, not a directory", true))
            }
            FileKind::File => Ok(Node::File(self.file(stat, &path))),
            // Also for `output_files`: clients of REAPI 2.0 know no other field for an output of either kind.
            FileKind::Directory => Ok(Node::Directory(self.directory(stat, path, output))),
            FileKind::Symlink | FileKind::Special => {
                Err(undeclarable(output, "is a FIFO, socket or device", false))
            }
        }
    }

    fn file(&mut self, stat: Stat, path: &Path) -> usize {
        let files = &mut self.inventory.files;
        *self.files.entry((stat.device, stat.inode)).or_insert_with(|| {
            let parent = path.parent().unwrap_or(Path::new("")).to_owned();
            let name = path.file_name().unwrap_or_default().to_owned();
            files.push(FoundFile { parent, name, stat });
            files.len() - 1
        })
    }

    fn directory(&mut self, stat: Stat, path: PathBuf, output: &'a DeclaredOutput) -> usize {
        let (directories, unlisted) = (&mut self.inventory.directories, &mut self.unlisted);
        *self.directories.entry((stat.device, stat.inode)).or_insert_with(|| {
            let index = directories.len();
            directories.push(FoundDirectory { stat, parent: None, entries: Vec::new() });
            unlisted.push(Unlisted { index, path, output });
            index
        })
    }

    fn list_directories(&mut self) -> Result<(), CollectError> {
        while !self.unlisted.is_empty() {
            let level = std::mem::take(&mut self.unlisted);
            let folder = self.folder;
            let listings: Vec<_> = level.par_iter().map(|directory| list(folder, directory)).collect();
            for (directory, listing) in level.iter().zip(listings) {
                self.enter(directory, listing?)?;
            }
        }
        Ok(())
    }

    fn enter(&mut self, directory: &Unlisted<'a>, listing: Vec<Listed>) -> Result<(), CollectError> {
        let output = directory.output;
        let mut entries = Vec::with_capacity(listing.len());
        for listed in listing {
            let path = directory.path.join(&listed.name);
            let name = utf8(output, &listed.name)?.to_owned();
            let node = match (listed.stat.kind, &listed.target) {
                (FileKind::File, _) => Node::File(self.file(listed.stat, &path)),
                (FileKind::Directory, _) => {
                    let child = self.directory(listed.stat, path, output);
                    self.inventory.directories[child].parent = Some(directory.index);
                    Node::Directory(child)
                }
                (FileKind::Symlink, Some(target)) => {
                    let target = utf8(output, target)?.to_owned();
                    self.link(output, Link { target, mtime: listed.stat.mtime }, listed.end)
                }
                _ => {
                    self.inventory
                        .notes
                        .push(format!("{:?} was left out: it is a FIFO, socket or device", path.display()));
                    continue;
                }
            };
            entries.push((name, node));
        }
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        self.inventory.directories[directory.index].entries = entries;
        Ok(())
    }

    fn link(&mut self, output: &'a DeclaredOutput, link: Link, end: Option<LinkEnd>) -> Node {
        match end {
            Some(end) if end.stat.kind == FileKind::File => Node::File(self.file(end.stat, &end.path)),
            Some(end) if end.stat.kind == FileKind::Directory => {
                Node::DirectoryLink(self.directory(end.stat, end.path, output), link)
            }
            _ => Node::Link(link),
        }
    }
}

fn list(folder: &ActionFolder, directory: &Unlisted<'_>) -> Result<Vec<Listed>, CollectError> {
    let dir = reach(&folder.root, &directory.path).map_err(|error| too_deep(directory, error))?;
    let entries = unlocking(&dir, OsDir::entries)?;
    let list_one = |name: OsString| {
        let stat = unlocking(&dir, |dir| dir.stat(Path::new(&name)))?;
        let target = match stat.kind {
            FileKind::Symlink => Some(dir.read_link(Path::new(&name))?),
            _ => None,
        };
        let followed = target.as_deref().filter(|target| is_followed(directory.output.kind, target));
        let end = followed.and_then(|target| follow(folder, &directory.path, target));
        Ok(Listed { name, stat, target, end })
    };
    entries.into_iter().map(|entry| list_one(entry.name)).collect()
}

fn is_followed(kind: DeclaredKind, target: &OsStr) -> bool {
    kind != DeclaredKind::Path && Path::new(target).is_absolute()
}

fn found(output: &DeclaredOutput, node: Node, leads_to: Option<FileKind>) -> FoundOutput {
    FoundOutput { declared: output.declared.clone(), kind: output.kind, node, leads_to }
}

fn undeclarable(output: &DeclaredOutput, reason: impl Into<String>, precondition: bool) -> CollectError {
    CollectError::Undeclarable { path: output.declared.clone(), reason: reason.into(), precondition }
}

/// REAPI's strings are UTF-8, and a name that is changed is another name.
fn utf8<'t>(output: &DeclaredOutput, text: &'t OsStr) -> Result<&'t str, CollectError> {
    text.to_str().ok_or_else(|| {
        let escaped = text.as_encoded_bytes().escape_ascii();
        undeclarable(output, format!("contains a name or a link that is not UTF-8: {escaped}"), true)
    })
}

fn too_deep(directory: &Unlisted<'_>, error: PathError) -> CollectError {
    if error.errno == Errno::ENAMETOOLONG {
        return undeclarable(directory.output, "contains a path that is longer than the kernel takes", false);
    }
    error.into()
}

#[cfg(test)]
mod tests;
