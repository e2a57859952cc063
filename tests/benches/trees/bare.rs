//! Baseline (c): nothing but `mkdirat`, `openat` and `linkat`, fork-join by directory, every name prepared.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use longshore_cas_store::tree::Directory;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::Mode;
use rayon::Scope;

/// A tree as the names that system calls take.
pub(crate) struct Plan {
    store: OwnedFd,
    pub(crate) root: Node,
}

pub(crate) struct Node {
    pub(crate) name: CString,
    pub(crate) links: Vec<Link>,
    pub(crate) children: Vec<Node>,
}

pub(crate) struct Link {
    /// The path of the inode below the root of the store.
    pub(crate) stored: CString,
    pub(crate) name: CString,
}

/// Where the inodes are linked from.
#[derive(Clone)]
pub(crate) enum Source {
    /// The store.
    Store,
    /// A cached tree, directory by directory.
    Tree(PathBuf),
}

impl Plan {
    pub(crate) fn of(tree: &Directory, root: &Path) -> Result<Self> {
        Ok(Self { store: open(AT_FDCWD, root)?, root: Node::of(tree, ".")? })
    }

    /// Writes the tree out in the fresh directory `to`.
    pub(crate) fn write(&self, source: &Source, to: &Path) -> Result<()> {
        nix::sys::stat::mkdirat(AT_FDCWD, to, Mode::from_bits_truncate(0o755))?;
        let to = open(AT_FDCWD, to)?;
        let from = match source {
            Source::Store => None,
            Source::Tree(path) => Some(open(AT_FDCWD, path)?),
        };
        self.root.fill(self.store.as_fd(), from.as_ref(), &to)?;
        rayon::scope(|scope| self.fork(scope, &self.root, &Arc::new((from, to))));
        Ok(())
    }

    fn fork<'s>(&'s self, scope: &Scope<'s>, node: &'s Node, place: &Arc<(Option<OwnedFd>, OwnedFd)>) {
        for child in &node.children {
            let place = place.clone();
            scope.spawn(move |scope| {
                let (from, to) = &*place;
                let enter = || {
                    nix::sys::stat::mkdirat(to, &*child.name, Mode::from_bits_truncate(0o755))?;
                    let to = open(to, &*child.name)?;
                    let from = from.as_ref().map(|from| open(from, &*child.name)).transpose()?;
                    child.fill(self.store.as_fd(), from.as_ref(), &to)?;
                    nix::Result::Ok(Arc::new((from, to)))
                };
                let own = enter().expect("a bare system call");
                drop(place);
                self.fork(scope, child, &own);
            });
        }
    }
}

impl Node {
    fn of(directory: &Directory, name: &str) -> Result<Self> {
        let links = directory.files.iter().map(|file| {
            let (digest, hash) = (file.key.digest, file.key.digest.hash_hex());
            let shelf = if file.key.executable { "executables" } else { "blobs" };
            let stored = format!("{shelf}/sha256/{}/{hash}-{}", &hash[..2], digest.size_bytes());
            Ok(Link { stored: CString::new(stored)?, name: CString::new(file.name.as_str())? })
        });
        let children = directory.directories.iter();
        Ok(Self {
            name: CString::new(name)?,
            links: links.collect::<Result<_>>()?,
            children: children
                .map(|child| Self::of(&child.directory, child.name.as_str()))
                .collect::<Result<_>>()?,
        })
    }

    fn fill(&self, store: BorrowedFd<'_>, from: Option<&OwnedFd>, to: &OwnedFd) -> nix::Result<()> {
        for link in &self.links {
            let (dir, path): (BorrowedFd<'_>, &CStr) = match from {
                Some(from) => (from.as_fd(), &link.name),
                None => (store, &link.stored),
            };
            nix::unistd::linkat(dir, path, to, &*link.name, AtFlags::empty())?;
        }
        Ok(())
    }
}

fn open<P: nix::NixPath + ?Sized>(dir: impl AsFd, path: &P) -> nix::Result<OwnedFd> {
    nix::fcntl::openat(dir, path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}
