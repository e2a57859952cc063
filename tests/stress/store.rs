//! What lies on the disk, read without the store's own code.

use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::DigestFunction;
use nix::fcntl::{Flock, FlockArg};
use rayon::prelude::*;

/// Bytes of a block in `st_blocks`.
pub(crate) const BLOCK_BYTES: u64 = 512;

/// Waits until no process has `root`: one that was killed has it until it is dead.
pub(crate) async fn wait_until_left(root: &Path) -> Result<()> {
    let lock = std::fs::File::open(root.join("lock"))?;
    let locked = tokio::task::spawn_blocking(|| Flock::lock(lock, FlockArg::LockExclusive)).await?;
    drop(locked.map_err(|(_, errno)| errno).context("the lock of the root")?);
    Ok(())
}

/// Hashes every blob and executable below `root`, and returns how many there are. Nobody may use the root.
pub(crate) fn rehash(root: &Path) -> Result<usize> {
    let kinds = [("blobs", 0o444), ("executables", 0o555)];
    let mut files = Vec::new();
    for (kind, mode) in kinds {
        for function in DigestFunction::ALL {
            let mut paths = Vec::new();
            walk(&root.join(kind).join(function.name()), &mut |path, _| paths.push(path.to_owned()))?;
            files.extend(paths.into_iter().map(|path| (path, function, mode)));
        }
    }
    let count = files.len();
    ensure!(count > 0, "nothing is stored in {}", root.display());
    files.into_par_iter().try_for_each(|(path, function, mode)| {
        check(&path, function, mode).with_context(|| format!("{} is corrupt", path.display()))
    })?;
    Ok(count)
}

fn check(path: &Path, function: DigestFunction, mode: u32) -> Result<()> {
    let data = std::fs::read(path)?;
    let digest = function.digest(&data);
    let name = path.file_name().context("no name")?.to_string_lossy();
    ensure!(name == format!("{}-{}", digest.hash_hex(), digest.size_bytes()), "it has {digest}");
    let found = path.metadata()?.permissions().mode() & 0o7777;
    ensure!(found == mode, "its mode is {found:o}");
    Ok(())
}

/// Folders of what is stored.
const STORED: [&str; 4] = ["blobs", "executables", "records", "trees"];

/// How many files there are beside those.
pub(crate) fn beside(root: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            count += 1;
        } else if STORED.iter().all(|stored| entry.file_name() != *stored) {
            walk(&entry.path(), &mut |_, _| count += 1)?;
        }
    }
    Ok(count)
}

/// What the store's own folders take on the disk: every inode once, folders too.
pub(crate) fn disk_bytes(root: &Path) -> Result<u64> {
    let mut inodes: HashMap<u64, u64> = HashMap::new();
    for folder in STORED {
        walk(&root.join(folder), &mut |_, metadata| {
            inodes.insert(metadata.ino(), metadata.blocks() * BLOCK_BYTES);
        })?;
    }
    Ok(inodes.values().sum())
}

/// Names of what nothing but a running action, an upload or a removal has.
pub(crate) fn passing(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in ["work", "scratch", "trash"] {
        for entry in std::fs::read_dir(root.join(folder))? {
            found.push(entry?.path());
        }
    }
    Ok(found)
}

/// Calls `each` for every file below `folder`. What goes while it is looked at is not there.
fn walk(folder: &Path, each: &mut impl FnMut(&Path, &std::fs::Metadata)) -> Result<()> {
    let is_gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let entries = match std::fs::read_dir(folder) {
        Err(error) if is_gone(&error) => return Ok(()),
        entries => entries.with_context(|| folder.display().to_string())?,
    };
    for entry in entries {
        let entry = match entry {
            Err(error) if is_gone(&error) => continue,
            entry => entry?,
        };
        let metadata = match entry.metadata() {
            Err(error) if is_gone(&error) => continue,
            metadata => metadata?,
        };
        if metadata.is_dir() {
            walk(&entry.path(), each)?;
        } else {
            each(&entry.path(), &metadata);
        }
    }
    Ok(())
}
