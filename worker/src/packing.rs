//! zstd of small blobs, whole: to make a context costs more than to pack a few KiB, so each thread keeps one.

use std::cell::RefCell;
use std::io;

use zstd::bulk::{Compressor, Decompressor};

/// The network is waited for, not the disk.
const LEVEL: i32 = 1;

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// One frame with `data`.
pub(crate) fn pack(data: &[u8]) -> io::Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|kept| made(kept, || Compressor::new(LEVEL))?.compress(data))
}

/// The content of frames, which is at most `len_max` long.
pub(crate) fn expand(frames: &[u8], len_max: usize) -> io::Result<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|kept| made(kept, Decompressor::new)?.decompress(frames, len_max))
}

fn made<T>(kept: &mut Option<T>, make: impl FnOnce() -> io::Result<T>) -> io::Result<&mut T> {
    match kept {
        Some(kept) => Ok(kept),
        None => Ok(kept.insert(make()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A frame that failed leaves nothing behind in what the thread keeps.
    #[test]
    fn a_bad_frame_spoils_no_other() {
        for data in [b"some data".to_vec(), Vec::new(), vec![7; 100_000]] {
            let frame = pack(&data).unwrap();
            assert!(expand(&frame[..frame.len() - 1], data.len()).is_err());
            if !data.is_empty() {
                assert!(expand(&frame, data.len() - 1).is_err());
            }
            assert!(expand(b"no frame", 100).is_err());
            assert_eq!(expand(&frame, data.len()).unwrap(), data);
        }
    }
}
