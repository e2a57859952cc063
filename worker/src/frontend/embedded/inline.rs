//! Contents that travel inside an `ActionResult`: in, they become blobs; out, they are a favour to the client.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::{Message as _, reapi};

use super::digests::digest;
use super::limits::{INLINE_BYTES_MAX, RESPONSE_BYTES_MAX};
use crate::status::Failure;

/// What a client would like to find inside a result.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Inline<'a> {
    /// The standard output.
    pub(super) stdout: bool,
    /// The standard error.
    pub(super) stderr: bool,
    /// The output files of those paths.
    pub(super) output_files: &'a [String],
}

/// Stores all contents in `result` as blobs, so that it names them by digest alone.
pub(super) async fn move_out(
    store: &Arc<BlobStore>,
    function: DigestFunction,
    result: &mut reapi::ActionResult,
) -> Result<(), Failure> {
    let streams = [
        ("stdout".to_owned(), &mut result.stdout_raw, &mut result.stdout_digest),
        ("stderr".to_owned(), &mut result.stderr_raw, &mut result.stderr_digest),
    ];
    let files = result.output_files.iter_mut().enumerate().map(|(index, file)| {
        let reapi::OutputFile { contents, digest, .. } = file;
        (format!("output_files[{index}]"), contents, digest)
    });
    let (mut blobs, mut fields) = (Vec::new(), Vec::new());
    for (field, contents, wire) in streams.into_iter().chain(files) {
        if contents.is_empty() {
            continue;
        }
        let data = Bytes::from(std::mem::take(contents));
        let stored_as = match wire.as_ref() {
            Some(wire) => digest(function, &format!("{field}: digest"), Some(wire))?,
            None => function.digest(&data),
        };
        *wire = Some(stored_as.to_wire());
        blobs.push((stored_as, data));
        fields.push(field);
    }
    for (field, stored) in fields.iter().zip(store.put_many(blobs).await) {
        stored.map_err(|error| Failure::from(error).within(field))?;
    }
    Ok(())
}

/// Puts the contents that are `wanted` into `result`, as far as they are here and few enough.
pub(super) async fn move_in(
    store: &Arc<BlobStore>,
    function: DigestFunction,
    wanted: &Inline<'_>,
    result: &mut reapi::ActionResult,
) -> Result<(), Failure> {
    // The message must stay one that peers accept.
    let room_bytes = RESPONSE_BYTES_MAX.saturating_sub(result.encoded_len()) as u64;
    let streams = [
        (wanted.stdout, &result.stdout_digest, &mut result.stdout_raw),
        (wanted.stderr, &result.stderr_digest, &mut result.stderr_raw),
    ];
    // There may be as many as fit into a message, of both.
    let wanted_files: HashSet<_> = wanted.output_files.iter().collect();
    let files = result.output_files.iter_mut().map(|file| {
        let reapi::OutputFile { path, contents, digest, .. } = file;
        (wanted_files.contains(path), &*digest, contents)
    });
    let mut left_bytes = INLINE_BYTES_MAX.min(room_bytes);
    let (mut digests, mut places) = (Vec::new(), Vec::new());
    for (wanted, wire, contents) in streams.into_iter().chain(files) {
        let Ok(digest) = Digest::from_wire(function, wire.as_ref()) else { continue };
        if wanted && contents.is_empty() && digest.size_bytes() <= left_bytes {
            left_bytes -= digest.size_bytes();
            digests.push(digest);
            places.push(contents);
        }
    }
    for (contents, content) in places.into_iter().zip(store.read_many(digests).await?) {
        *contents = content.unwrap_or_default().into();
    }
    Ok(())
}
