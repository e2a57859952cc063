//! Where the project's own files are, for tests that look at them.

use std::path::{Path, PathBuf};

/// The root of the source tree: where cargo built from, or the runfiles of a test that Bazel runs.
pub fn source_root() -> PathBuf {
    match std::env::var_os("TEST_SRCDIR") {
        Some(_) => std::env::current_dir().expect("a working directory"),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join(".."),
    }
}

/// Every file below `folder` with that extension, sorted.
pub fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for entry in entries {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
