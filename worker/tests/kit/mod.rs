//! What the test binaries of this crate share.

use std::path::PathBuf;

/// The binary under test: `LONGSHORE_BIN`, or what cargo built beside the test.
pub(crate) fn longshore() -> PathBuf {
    let named = std::env::var_os("LONGSHORE_BIN").map(PathBuf::from);
    let program = named.unwrap_or_else(|| env!("CARGO_BIN_EXE_longshore").into());
    // Commands run elsewhere, where a relative path leads nowhere.
    std::path::absolute(program).expect("a working directory")
}
