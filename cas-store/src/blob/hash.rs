//! Hashing what lies in a file.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use crate::digest::{Digest, DigestFunction};
use crate::dir::{Op, PathError, PathErrorExt};

/// What is read at once.
const BUFFER_BYTES_MAX: u64 = 256 << 10;

/// The digest of the first `size_bytes` of a file, from its position on. Blocks.
pub(super) fn hash_file(
    function: DigestFunction,
    file: &File,
    size_bytes: u64,
    path: &Path,
) -> Result<Digest, PathError> {
    hash_into(function, file, size_bytes, &mut std::io::sink(), path)
}

/// Copies at most `size_bytes` from a file's position on; the digest is that of the bytes copied. Blocks.
pub(super) fn hash_into(
    function: DigestFunction,
    file: &File,
    size_bytes: u64,
    to: &mut dyn Write,
    path: &Path,
) -> Result<Digest, PathError> {
    let mut hasher = function.hasher();
    let buffer_bytes = usize::try_from(size_bytes.min(BUFFER_BYTES_MAX)).expect("at most the maximum");
    let mut buffer = vec![0; buffer_bytes.max(1)];
    let mut from = file.take(size_bytes);
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).at(Op::Read, path),
        };
        hasher.update(&buffer[..read]);
        to.write_all(&buffer[..read]).at(Op::Write, "scratch")?;
    }
}
