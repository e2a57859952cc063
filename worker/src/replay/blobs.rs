//! Blobs that a recording brought along. They are what somebody stored under a digest: whoever reads them checks them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use bytes::Bytes;
use longshore_cas_store::digest::{Digest, DigestFunction};
use nix::libc::O_NONBLOCK;

use super::bundle;

/// What is hashed at a time.
const CHUNK_BYTES: usize = 256 << 10;

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
        // A pipe in a blob's place is empty, and not waited for.
        match File::options().read(true).custom_flags(O_NONBLOCK).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(absent()),
            file => Ok(Box::new(file?)),
        }
    }

    /// Whether that blob is stored, and is what its digest says.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.verify(digest).unwrap_or(false)
    }

    fn verify(&self, digest: &Digest) -> io::Result<bool> {
        Ok(digest_of(digest.function(), self.open(digest)?)? == *digest)
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

/// The digest of all that can be read.
pub(super) fn digest_of(function: DigestFunction, mut content: impl Read) -> io::Result<Digest> {
    let mut hasher = function.hasher();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = content.read(&mut chunk)?;
        if read == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&chunk[..read]);
    }
}

#[cfg(test)]
mod tests {
    use longshore_cas_store::digest::DigestFunction;
    use nix::sys::stat::Mode;

    use super::*;

    // Whatever lies in a blob's place is said, and nothing is waited for.
    #[test]
    fn what_is_no_file_is_no_blob() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = LocalBlobs::Bundle(folder.path().to_owned());
        let digest = DigestFunction::Sha256.digest(b"content");
        let path = folder.path().join(bundle::blob_path(&digest));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let error = || blobs.read(&digest).unwrap_err().to_string();
        assert_eq!(error(), "the recording lacks it");
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        assert_eq!(error(), "has not 7 bytes");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(error().contains("Is a directory"), "{}", error());
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, "contemt").unwrap();
        assert_eq!(error(), "has other content");
        assert!(!blobs.has(&digest));
        std::fs::write(&path, "content").unwrap();
        assert_eq!(blobs.read(&digest).unwrap(), "content");
        assert!(blobs.has(&digest));
        std::fs::write(&path, "content, and more").unwrap();
        assert!(!blobs.has(&digest));
    }
}
