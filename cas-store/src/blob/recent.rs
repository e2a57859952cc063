//! Small blobs that were written last, in memory as well: an Action, its Command and its Directories are read right
//! after they came, and to find, open and read a file each is a good part of a small tree's construction.
//!
//! What is in here was verified when it was written, and says nothing about what is in the store: who reads it holds
//! the blob's pin.
//!
//! *Locking*: one lock, held for changes of the map only; nothing is copied or freed within it.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use hashbrown::DefaultHashBuilder;
use parking_lot::Mutex;

use crate::digest::Digest;

/// The largest blob that is kept: most messages are smaller, and most other files larger.
const BLOB_BYTES_MAX: u64 = 8 << 10;

/// What all of them may take in memory.
const TOTAL_BYTES_MAX: u64 = 4 << 20;

/// What each takes beside its bytes.
const ENTRY_BYTES: u64 = 160;

/// The small blobs that were written last.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    blobs: HashMap<Digest, Bytes, DefaultHashBuilder>,
    /// In the order in which they came.
    order: VecDeque<Digest>,
    bytes: u64,
}

impl Recent {
    /// Keeps a blob, which is the `pieces` one after another, if it is small.
    pub(super) fn keep<P: AsRef<[u8]>>(&self, digest: Digest, pieces: &[P]) {
        if digest.size_bytes() > BLOB_BYTES_MAX {
            return;
        }
        // A copy: what came may be a part of something that is much larger.
        let mut blob = Vec::with_capacity(pieces.iter().map(|piece| piece.as_ref().len()).sum());
        for piece in pieces {
            blob.extend_from_slice(piece.as_ref());
        }
        debug_assert_eq!(blob.len() as u64, digest.size_bytes());
        let forgotten = self.0.lock().keep(digest, blob.into());
        drop(forgotten);
    }

    /// The bytes of a blob, if it was written lately.
    pub(super) fn get(&self, digest: &Digest) -> Option<Bytes> {
        if digest.size_bytes() > BLOB_BYTES_MAX {
            return None;
        }
        self.0.lock().blobs.get(digest).cloned()
    }
}

impl Kept {
    /// Keeps `blob`; yields those that have no room any more.
    fn keep(&mut self, digest: Digest, blob: Bytes) -> Vec<Bytes> {
        self.bytes += weight(&blob);
        let mut forgotten: Vec<_> = self.blobs.insert(digest, blob).into_iter().collect();
        match forgotten.first() {
            // Evicted since, and written again: its place in the order stays.
            Some(former) => self.bytes -= weight(former),
            None => self.order.push_back(digest),
        }
        while self.bytes > TOTAL_BYTES_MAX {
            let Some(blob) = self.order.pop_front().and_then(|oldest| self.blobs.remove(&oldest)) else {
                break;
            };
            self.bytes -= weight(&blob);
            forgotten.push(blob);
        }
        forgotten
    }
}

fn weight(blob: &Bytes) -> u64 {
    blob.len() as u64 + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::DigestFunction;

    fn blob(number: u64, size_bytes: u64) -> (Digest, Vec<u8>) {
        let mut bytes = number.to_le_bytes().to_vec();
        bytes.resize(size_bytes.try_into().unwrap(), 0);
        (DigestFunction::Sha256.digest(&bytes), bytes)
    }

    #[test]
    fn the_oldest_are_forgotten_when_there_are_too_many_bytes() {
        let recent = Recent::default();
        let count = 2 * TOTAL_BYTES_MAX / (BLOB_BYTES_MAX + ENTRY_BYTES);
        for number in 0..count {
            let (digest, bytes) = blob(number, BLOB_BYTES_MAX);
            recent.keep(digest, &[bytes]);
            assert!(recent.0.lock().bytes <= TOTAL_BYTES_MAX);
        }
        let kept: Vec<_> =
            (0..count).filter(|number| recent.get(&blob(*number, BLOB_BYTES_MAX).0).is_some()).collect();
        assert_eq!(kept, (count - count / 2..count).collect::<Vec<_>>());
    }

    #[test]
    fn a_blob_in_pieces_is_put_together_once_and_a_large_one_is_not_kept() {
        let recent = Recent::default();
        let (digest, bytes) = blob(1, 100);
        recent.keep(digest, &[&bytes[..7], &bytes[7..]]);
        recent.keep(digest, &[&bytes]);
        assert_eq!(recent.get(&digest).as_deref(), Some(&bytes[..]));
        assert_eq!(recent.0.lock().bytes, 100 + ENTRY_BYTES);
        let (large, bytes) = blob(2, BLOB_BYTES_MAX + 1);
        recent.keep(large, &[bytes]);
        assert_eq!(recent.get(&large), None);
    }
}
