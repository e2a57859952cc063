//! Where everything lies: names on the disk, and the file operations on them.
//!
//! `blobs/<function>/<xx>/<hash>-<size>` is a blob, 0444; the same below `executables/` is its variant, 0555;
//! `records/<xx>/<key>` is a record. `<xx>` is the first byte in hexadecimal. Shards are made when the first file
//! needs them: making all of them for every function would cost every new store 2,560 directories.
//!
//! What has a name here is whole: files get their name when they are complete. Nothing is synced.

use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;

use super::ledger::SlotKey;
use crate::digest::{Digest, DigestFunction};
use crate::dir::{Dir, FileKind, Op, PathError, PathErrorExt};

/// The modification time of every inode of the store, after 1970: 2000-01-01T00:00:00Z.
#[expect(clippy::duration_suboptimal_units, reason = "a Unix time is in seconds")]
pub const BLOB_MTIME: Duration = Duration::from_secs(946_684_800);

/// The mode of a blob.
pub(crate) const BLOB_MODE: u32 = 0o444;
/// The mode of an executable variant.
pub(crate) const VARIANT_MODE: u32 = 0o555;
/// The mode of a record: nobody else's business.
pub(crate) const RECORD_MODE: u32 = 0o400;
const SHARD_MODE: u32 = 0o700;

/// What an odd block size of a file system is cut to.
const BLOCK_BYTES_MAX: u64 = 1 << 20;

/// The folders of a store.
pub(crate) struct Layout {
    blobs: Box<dyn Dir>,
    executables: Box<dyn Dir>,
    records: Box<dyn Dir>,
    scratch: Box<dyn Dir>,
    /// Whether the file system has files without a name, and /proc is there to name them.
    has_unnamed_files: bool,
    temporaries: AtomicU64,
    block_bytes: u64,
}

impl Layout {
    /// Opens the folders below `root`, which exist.
    pub(crate) fn open(root: &dyn Dir) -> Result<Self, PathError> {
        let scratch = root.open_dir(Path::new("scratch"))?;
        clear(&*scratch)?;
        let status = nix::sys::statvfs::fstatvfs(root.fd()).at(Op::Stat, ".")?;
        let mut layout = Self {
            blobs: root.open_dir(Path::new("blobs"))?,
            executables: root.open_dir(Path::new("executables"))?,
            records: root.open_dir(Path::new("records"))?,
            has_unnamed_files: false,
            temporaries: AtomicU64::new(0),
            block_bytes: status.fragment_size().clamp(1, BLOCK_BYTES_MAX),
            scratch,
        };
        layout.has_unnamed_files = layout.probe_unnamed();
        for function in DigestFunction::ALL {
            for folder in [&layout.blobs, &layout.executables] {
                exists_or(folder.make_dir(Path::new(function.name()), SHARD_MODE))?;
            }
        }
        Ok(layout)
    }

    /// What a file of `size_bytes` takes on the disk.
    pub(crate) fn disk_bytes(&self, size_bytes: u64) -> u64 {
        size_bytes.div_ceil(self.block_bytes).saturating_mul(self.block_bytes)
    }

    /// The folder of a key, and its path in it.
    pub(crate) fn locate(&self, key: &SlotKey) -> (&dyn Dir, PathBuf) {
        match key {
            SlotKey::Blob(digest) => (&*self.blobs, blob_path(digest)),
            SlotKey::Variant(digest) => (&*self.executables, blob_path(digest)),
            SlotKey::Record(key) => (&*self.records, record_path(key)),
        }
    }

    /// Opens an inode of the store for reading.
    pub(crate) fn open_key(&self, key: &SlotKey) -> Result<File, PathError> {
        let (dir, path) = self.locate(key);
        dir.open_file(&path)
    }

    /// Removes the name of a key; that it has none is fine.
    pub(crate) fn unlink(&self, key: &SlotKey) -> Result<(), PathError> {
        let (dir, path) = self.locate(key);
        match dir.remove_file(&path) {
            Err(error) if error.errno != Errno::ENOENT => Err(error),
            _ => Ok(()),
        }
    }

    /// Moves the file `name` of `from` to the place of `key`, which must be free.
    pub(crate) fn move_in(&self, from: &dyn Dir, name: &Path, key: &SlotKey) -> Result<(), PathError> {
        self.in_shard(key, |dir, path| from.rename_new(name, dir, path))
    }

    /// The folder of temporary files.
    pub(crate) fn scratch(&self) -> &dyn Dir {
        &*self.scratch
    }

    pub(crate) fn blobs(&self) -> &dyn Dir {
        &*self.blobs
    }

    pub(crate) fn executables(&self) -> &dyn Dir {
        &*self.executables
    }

    pub(crate) fn records(&self) -> &dyn Dir {
        &*self.records
    }

    pub(super) fn has_unnamed_files(&self) -> bool {
        self.has_unnamed_files
    }

    /// A name in scratch that nobody else uses.
    pub(super) fn temporary_name(&self) -> PathBuf {
        PathBuf::from(format!("{:x}", self.temporaries.fetch_add(1, Ordering::Relaxed)))
    }

    /// Runs a creation at the place of `key`, making its shard if that is what is missing.
    pub(super) fn in_shard(
        &self,
        key: &SlotKey,
        create: impl Fn(&dyn Dir, &Path) -> Result<(), PathError>,
    ) -> Result<(), PathError> {
        let (dir, path) = self.locate(key);
        match create(dir, &path) {
            Err(error) if error.errno == Errno::ENOENT => {
                let shard = path.parent().expect("every key has a shard");
                exists_or(dir.make_dir(shard, SHARD_MODE))?;
                create(dir, &path)
            }
            outcome => outcome,
        }
    }

    fn probe_unnamed(&self) -> bool {
        let name = self.temporary_name();
        let probe = || {
            let file = self.scratch.create_unnamed(BLOB_MODE)?;
            self.scratch.link_file(&file, &name)?;
            self.scratch.remove_file(&name)
        };
        let outcome: Result<(), PathError> = probe();
        outcome.is_ok()
    }
}

impl std::fmt::Debug for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layout").field("has_unnamed_files", &self.has_unnamed_files).finish_non_exhaustive()
    }
}

/// The modification time of every inode of the store.
pub fn blob_mtime() -> SystemTime {
    SystemTime::UNIX_EPOCH + BLOB_MTIME
}

/// What a blob's path has beside the names of its function and its hash: a shard, separators, a size.
const BLOB_PATH_REST_LEN: usize = 25;

fn blob_path(digest: &Digest) -> PathBuf {
    let (function, hash) = (digest.function().name(), digest.hash_hex());
    // Every link of a tree comes by here: no formatting but of the size.
    let mut path = String::with_capacity(function.len() + hash.len() + BLOB_PATH_REST_LEN);
    for part in [function, "/", &hash[..2], "/", &hash, "-"] {
        path.push_str(part);
    }
    let _ = write!(path, "{}", digest.size_bytes());
    PathBuf::from(path)
}

/// The digest whose blob has this name in the shard `shard` of `function`; nothing for any other name.
pub(super) fn parse_blob_name(function: DigestFunction, shard: &str, name: &str) -> Option<Digest> {
    let (hash, size) = name.split_once('-')?;
    let digest = Digest::parse(function, hash, size.parse().ok()?).ok()?;
    // A second spelling of the same digest, such as a size with a leading zero, is none of ours.
    let is_ours = hash.starts_with(shard) && digest.size_bytes().to_string() == size;
    is_ours.then_some(digest)
}

fn record_path(key: &[u8; 32]) -> PathBuf {
    let hex = hex(key);
    PathBuf::from(format!("{}/{hex}", &hex[..2]))
}

/// The key whose record has this name in `shard`.
pub(super) fn parse_record_name(shard: &str, name: &str) -> Option<[u8; 32]> {
    if name.len() != 64 || !name.starts_with(shard) {
        return None;
    }
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(name.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    (hex(&key) == name).then_some(key)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// That the directory is there already is fine.
fn exists_or(outcome: Result<(), PathError>) -> Result<(), PathError> {
    match outcome {
        Err(error) if error.errno != Errno::EEXIST => Err(error),
        _ => Ok(()),
    }
}

/// Removes the files of a folder: what a crash left half written. Folders in it belong to others.
fn clear(dir: &dyn Dir) -> Result<(), PathError> {
    for entry in dir.entries()? {
        if entry.kind != FileKind::Directory {
            dir.remove_file(Path::new(&entry.name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_disk_lead_back_to_what_they_name() {
        for function in DigestFunction::ALL {
            let digest = function.digest(b"longshore");
            let path = blob_path(&digest);
            let parts: Vec<_> = path.to_str().unwrap().split('/').collect();
            assert_eq!(parts[0], function.name());
            assert_eq!(parse_blob_name(function, parts[1], parts[2]), Some(digest));
        }
        let key = [0xa5; 32];
        let path = record_path(&key);
        let (shard, name) = path.to_str().unwrap().split_once('/').unwrap();
        assert_eq!(parse_record_name(shard, name), Some(key));
    }

    #[test]
    fn names_that_are_not_ours_name_nothing() {
        let hash = DigestFunction::Sha256.digest(b"x").hash_hex();
        let shard = &hash[..2];
        let parse = |name: &str| parse_blob_name(DigestFunction::Sha256, shard, name);
        assert!(parse(&format!("{hash}-1")).is_some());
        for name in
            [format!("{hash}-01"), format!("{hash}-+1"), format!("{hash}-"), hash.clone(), "x-1".into()]
        {
            assert_eq!(parse(&name), None, "{name}");
        }
        assert_eq!(parse_blob_name(DigestFunction::Sha256, "zz", &format!("{hash}-1")), None);
        assert_eq!(parse_record_name("A5", &"A5".repeat(32)), None);
    }
}
