//! What the last owner left: found by names alone, counted, and verified where the machine may have torn it.
//!
//! Names that are not ours are removed: nothing would ever count or evict them. When the root is
//! [unverified](Trust::Unverified), every file is hashed before the store is handed out, and what is not what its
//! name says is removed; nothing unverified is ever served.

use std::path::Path;
use std::sync::Arc;

use rayon::iter::{IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};

use super::Recovered;
use super::hash::hash_file;
use super::layout::{Layout, parse_blob_name, parse_record_name};
use super::ledger::SlotKey;
use super::space::Space;
use crate::digest::DigestFunction;
use crate::dir::{Dir, DirEntry, FileKind, PathError, file};
use crate::root::Trust;

/// A file that was found, and what it takes on the disk.
#[derive(Clone, Copy)]
struct Found {
    key: SlotKey,
    bytes: u64,
}

/// Fills the ledger of a new store. Blocks; forks over the pool.
pub(super) fn recover(space: &Arc<Space>, trust: Trust) -> Result<Recovered, PathError> {
    if trust == Trust::Fresh {
        return Ok(Recovered::default());
    }
    let layout = &space.layout;
    let mut found = space.environment.io.install(|| scan(layout))?;
    if trust == Trust::Unverified {
        let count = found.len();
        found = space.environment.io.install(|| verify(layout, &found));
        tracing::info!(verified = found.len(), dropped = count - found.len(), "verified the store's files");
    }
    let mut recovered = Recovered::default();
    space.change(|state| {
        for Found { key, bytes } in found {
            state.ledger.count_recovered(bytes);
            let id = state.ledger.insert(key, bytes);
            state.ledger.release(id);
            recovered.blobs += u64::from(matches!(key, SlotKey::Blob(_)));
            recovered.size_bytes += bytes;
        }
    });
    Ok(recovered)
}

fn scan(layout: &Layout) -> Result<Vec<Found>, PathError> {
    let mut shards = Vec::new();
    for function in DigestFunction::ALL {
        for (folder, is_variant) in [(layout.blobs(), false), (layout.executables(), true)] {
            let dir: Arc<dyn Dir> = folder.open_dir(Path::new(function.name()))?.into();
            for entry in dir.entries()? {
                shards.push((dir.clone(), entry, Kind::Content(function, is_variant)));
            }
        }
    }
    let records: Arc<dyn Dir> = layout.records().open_dir(Path::new("."))?.into();
    for entry in records.entries()? {
        shards.push((records.clone(), entry, Kind::Record));
    }
    let scanned: Result<Vec<_>, _> =
        shards.into_par_iter().map(|(dir, shard, kind)| scan_shard(layout, &*dir, &shard, kind)).collect();
    Ok(scanned?.into_iter().flatten().collect())
}

/// What a shard is a shard of.
#[derive(Clone, Copy)]
enum Kind {
    Content(DigestFunction, bool),
    Record,
}

fn scan_shard(layout: &Layout, dir: &dyn Dir, shard: &DirEntry, kind: Kind) -> Result<Vec<Found>, PathError> {
    if shard.kind != FileKind::Directory {
        remove_odd(dir, shard);
        return Ok(Vec::new());
    }
    let shard_dir = dir.open_dir(Path::new(&shard.name))?;
    let shard_name = shard.name.to_str().filter(|name| name.len() == 2);
    let mut found = Vec::new();
    for entry in shard_dir.entries()? {
        let names = shard_name.zip(entry.name.to_str()).filter(|_| entry.kind == FileKind::File);
        let key = names.and_then(|(shard, name)| match kind {
            Kind::Content(function, is_variant) => {
                let digest = parse_blob_name(function, shard, name)?;
                Some(if is_variant { SlotKey::Variant(digest) } else { SlotKey::Blob(digest) })
            }
            Kind::Record => parse_record_name(shard, name).map(SlotKey::Record),
        });
        match key {
            None => remove_odd(&*shard_dir, &entry),
            Some(key @ (SlotKey::Blob(digest) | SlotKey::Variant(digest))) => {
                found.push(Found { key, bytes: layout.disk_bytes(digest.size_bytes()) });
            }
            Some(key) => {
                let size_bytes = shard_dir.stat(Path::new(&entry.name))?.size_bytes;
                found.push(Found { key, bytes: layout.disk_bytes(size_bytes) });
            }
        }
    }
    Ok(found)
}

/// Keeps what is what its name says; the rest is removed. Records verify themselves when they are read.
fn verify(layout: &Layout, found: &[Found]) -> Vec<Found> {
    let is_right = |found: &&Found| {
        let (SlotKey::Blob(digest) | SlotKey::Variant(digest)) = found.key else { return true };
        let path = layout.locate(&found.key).1;
        let opened = layout.open_key(&found.key);
        let hashed = opened.and_then(|file| {
            let size_bytes = file::stat(&file, &path)?.size_bytes;
            if size_bytes == digest.size_bytes() {
                hash_file(digest.function(), &file, size_bytes, &path).map(Some)
            } else {
                Ok(None)
            }
        });
        if hashed == Ok(Some(digest)) {
            return true;
        }
        tracing::warn!(?digest, "a file is damaged and is dropped");
        if let Err(error) = layout.unlink(&found.key) {
            tracing::warn!(%error, "a damaged file cannot be removed");
        }
        false
    };
    found.par_iter().filter(is_right).copied().collect()
}

fn remove_odd(dir: &dyn Dir, entry: &DirEntry) {
    let path = Path::new(&entry.name);
    let removed =
        if entry.kind == FileKind::Directory { dir.remove_dir(path) } else { dir.remove_file(path) };
    match removed {
        Ok(()) => tracing::warn!(name = ?entry.name, "removed a file that is not the store's"),
        Err(error) => tracing::warn!(%error, "a file that is not the store's stays"),
    }
}
