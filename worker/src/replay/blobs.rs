//! Blobs that a recording brought along. They are what somebody stored under a digest: whoever reads them checks them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use bytes::Bytes;
use longshore_cas_store::digest::Digest;

use super::bundle;

/// Where the blobs are.
#[derive(Debug, Default)]
pub(crate) enum LocalBlobs {
    /// With the server.
    #[default]
    Elsewhere,
    /// In the folder of a bundle.
    Bundle(PathBuf),
    /// Wherever each one is.
    Scattered(HashMap<Digest, Origin>),
}

/// Where one blob is.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    Memory(Bytes),
    File(PathBuf),
}

impl LocalBlobs {
    /// Whether the server has to have everything.
    pub(crate) fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Elsewhere)
    }

    /// Opens what is stored as `digest`.
    pub(crate) fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read + Send>> {
        let absent = || io::Error::new(io::ErrorKind::NotFound, "the recording lacks it");
        let path = match self {
            Self::Elsewhere => return Err(absent()),
            Self::Bundle(folder) => folder.join(bundle::blob_path(digest)),
            Self::Scattered(origins) => match origins.get(digest).ok_or_else(absent)? {
                Origin::Memory(data) => return Ok(Box::new(io::Cursor::new(data.clone()))),
                Origin::File(path) => path.clone(),
            },
        };
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(absent()),
            file => Ok(Box::new(file?)),
        }
    }

    /// Reads a message whole, and checks it.
    pub(crate) fn read(&self, digest: &Digest) -> io::Result<Bytes> {
        if digest.is_empty() {
            return Ok(Bytes::new());
        }
        let mut data = Vec::new();
        // One more byte than there ought to be shows that there are too many.
        self.open(digest)?.take(digest.size_bytes().saturating_add(1)).read_to_end(&mut data)?;
        let found = digest.function().digest(&data);
        if found == *digest {
            return Ok(data.into());
        }
        let size = found.size_bytes();
        let reason = if size == digest.size_bytes() {
            "has other content".to_owned()
        } else {
            format!("has not {} bytes", digest.size_bytes())
        };
        Err(io::Error::new(io::ErrorKind::InvalidData, reason))
    }
}
