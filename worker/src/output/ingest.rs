//! Found files into the store, each inode once, in parallel.

use std::collections::BTreeMap;
use std::path::Path;

use longshore_cas_store::blob::BlobPin;
use longshore_cas_store::dir::OsDir;
use rayon::prelude::*;

use super::CollectError;
use super::find::FoundFile;
use super::intake::Intake;
use super::reach::{reach, unlocking};

/// Takes `files` in; their pins in the same order. Blocks; call on the pool.
///
/// The files may be gone from below `root` afterwards.
pub(super) fn ingest(
    root: &OsDir,
    files: &[FoundFile],
    intake: &Intake,
) -> Result<Vec<BlobPin>, CollectError> {
    let mut by_parent: BTreeMap<&Path, Vec<usize>> = BTreeMap::new();
    for (index, file) in files.iter().enumerate() {
        by_parent.entry(&file.parent).or_default().push(index);
    }
    let ingest_folder = |(parent, indexes): (&Path, Vec<usize>)| {
        let dir = reach(root, parent)?;
        let ingest_one = |index: usize| {
            let name = Path::new(&files[index].name);
            let pin = unlocking(&dir, |dir| intake.adopt(dir, name))?;
            Ok((index, pin))
        };
        indexes.into_par_iter().map(ingest_one).collect::<Result<Vec<_>, CollectError>>()
    };
    let folders = by_parent.into_par_iter().map(ingest_folder).collect::<Result<Vec<_>, CollectError>>()?;
    let mut pins: Vec<_> = folders.into_iter().flatten().collect();
    pins.sort_unstable_by_key(|(index, _)| *index);
    Ok(pins.into_iter().map(|(_, pin)| pin).collect())
}
