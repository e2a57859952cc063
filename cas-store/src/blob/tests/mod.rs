//! The promises of the store that need several of its rooms, on real files.

mod adopt;
mod content;
mod evict;
mod faults;
mod ingest;
mod link;
mod recover;
mod stress;

use bytes::Bytes;
use futures::StreamExt;
use nix::errno::Errno;

use super::testing::{Fixture, noise, sha};
use super::*;
use crate::digest::{Digest, DigestFunction, FileKey};
use crate::dir::OsDir;

async fn collect(mut reader: BlobReader) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = reader.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes)
}
