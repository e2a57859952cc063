//! zstd, as the compressors of REAPI have it: a blob in one or more frames, whole and in a row.
//!
//! What comes out is bounded by the digest, never by what a frame says of itself; what goes in is bounded by what
//! comes out; the window, and so the memory of a decoder, by [`WINDOW_LOG_MAX`]. Nothing here knows who sends.

use std::io::{Read as _, Write as _};

use bytes::{Buf as _, Bytes};
use zstd::stream::raw::{DParameter, InBuffer, Operation as _, OutBuffer};

use super::limits::WINDOW_LOG_MAX;
use crate::packing;

/// Fast enough not to be what a transfer waits for.
const COMPRESSION_LEVEL: i32 = 1;

/// What one step of decompression yields at most: a block of the format.
const STEP_BYTES_MAX: usize = 128 << 10;

/// What frames may take beyond twice their content: headers, checksums, and frames that are skipped.
const OVERHEAD_BYTES_MAX: u64 = 1 << 20;

/// Why data are not the zstd form of a blob.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecompressError {
    /// Not zstd, or damaged, or with a window that is too large.
    #[error("is not zstd as it is taken here: {0}")]
    Malformed(#[source] std::io::Error),
    /// More comes out than the digest says.
    #[error("has more than {size_bytes} bytes when it is decompressed")]
    TooMuch {
        /// The size that the digest says.
        size_bytes: u64,
    },
    /// Too much is sent for what it may become.
    #[error("has more compressed bytes than a blob of {size_bytes} bytes can need")]
    Padded {
        /// The size that the digest says.
        size_bytes: u64,
    },
    /// The last frame is cut off.
    #[error("ends within a zstd frame")]
    CutOff,
}

/// Decompresses a stream of frames, a step at a time.
pub(super) struct Decompressor {
    decoder: zstd::stream::raw::Decoder<'static>,
    buffer: Vec<u8>,
    size_bytes: u64,
    left_bytes: u64,
    left_input_bytes: u64,
    is_within_frame: bool,
    /// The last step filled its buffer: there may be more inside the decoder.
    has_more: bool,
}

impl Decompressor {
    /// For a blob of `size_bytes`.
    pub(super) fn new(size_bytes: u64) -> Result<Self, DecompressError> {
        let mut decoder = zstd::stream::raw::Decoder::new().map_err(DecompressError::Malformed)?;
        let window = DParameter::WindowLogMax(WINDOW_LOG_MAX);
        decoder.set_parameter(window).map_err(DecompressError::Malformed)?;
        Ok(Self {
            decoder,
            buffer: vec![0; STEP_BYTES_MAX],
            size_bytes,
            left_bytes: size_bytes,
            left_input_bytes: size_bytes.saturating_mul(2).saturating_add(OVERHEAD_BYTES_MAX),
            is_within_frame: false,
            has_more: false,
        })
    }

    /// Takes from `input` what one step needs, and yields what comes out; nothing when `input` is used up.
    pub(super) fn step(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, DecompressError> {
        let mut output = OutBuffer::around(&mut self.buffer[..]);
        while output.pos() < output.capacity() && (!input.is_empty() || self.has_more) {
            if !self.is_within_frame {
                self.decoder.reinit().map_err(DecompressError::Malformed)?;
            }
            let before = output.pos();
            let mut from = InBuffer::around(input);
            let hint = self.decoder.run(&mut from, &mut output).map_err(DecompressError::Malformed)?;
            let taken = from.pos();
            input.advance(taken);
            self.is_within_frame = hint != 0;
            self.has_more = self.is_within_frame && output.pos() == output.capacity();
            let (size_bytes, produced) = (self.size_bytes, (output.pos() - before) as u64);
            let left_bytes = self.left_bytes.checked_sub(produced);
            self.left_bytes = left_bytes.ok_or(DecompressError::TooMuch { size_bytes })?;
            let left_bytes = self.left_input_bytes.checked_sub(taken as u64);
            self.left_input_bytes = left_bytes.ok_or(DecompressError::Padded { size_bytes })?;
        }
        let output = Bytes::copy_from_slice(output.as_slice());
        Ok((!output.is_empty()).then_some(output))
    }

    /// Checks that nothing is cut off. How much came out is for the digest to judge.
    pub(super) fn finish(&self) -> Result<(), DecompressError> {
        if self.is_within_frame { Err(DecompressError::CutOff) } else { Ok(()) }
    }
}

/// Compresses a stream into one frame.
pub(super) struct Compressor(zstd::stream::write::Encoder<'static, Vec<u8>>);

impl Compressor {
    pub(super) fn new() -> std::io::Result<Self> {
        zstd::stream::write::Encoder::new(Vec::new(), COMPRESSION_LEVEL).map(Self)
    }

    /// Takes `data` in; yields what is compressed so far, perhaps nothing.
    pub(super) fn push(&mut self, data: &[u8]) -> std::io::Result<Vec<u8>> {
        self.0.write_all(data)?;
        Ok(std::mem::take(self.0.get_mut()))
    }

    /// Ends the frame, and yields the rest of it.
    pub(super) fn finish(self) -> std::io::Result<Vec<u8>> {
        self.0.finish()
    }
}

/// The content of zstd frames, which have to be whole and at most `size_bytes` large together.
pub(super) fn decompress(data: &[u8], size_bytes: u64) -> Result<Vec<u8>, DecompressError> {
    // A blob without bytes may be sent as nothing at all.
    if data.is_empty() && size_bytes == 0 {
        return Ok(Vec::new());
    }
    let mut content = Vec::new();
    let mut decoder = zstd::Decoder::new(data).map_err(DecompressError::Malformed)?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(DecompressError::Malformed)?;
    // One byte more than there may be tells whether there is more; a frame is not trusted to know its size.
    let read = decoder.take(size_bytes.saturating_add(1)).read_to_end(&mut content);
    read.map_err(DecompressError::Malformed)?;
    if content.len() as u64 > size_bytes {
        return Err(DecompressError::TooMuch { size_bytes });
    }
    Ok(content)
}

/// The content as zstd, if that is less.
pub(super) fn smaller(content: &[u8]) -> Option<Vec<u8>> {
    let compressed = packing::pack(content).ok()?;
    (compressed.len() < content.len()).then_some(compressed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn in_parts(compressed: &[u8], part_bytes: usize, size_bytes: u64) -> Result<Vec<u8>, DecompressError> {
        let mut decompressor = Decompressor::new(size_bytes)?;
        let mut content = Vec::new();
        for part in compressed.chunks(part_bytes) {
            let mut part = Bytes::copy_from_slice(part);
            while let Some(bytes) = decompressor.step(&mut part)? {
                content.extend_from_slice(&bytes);
            }
            assert!(part.is_empty());
        }
        decompressor.finish().map(|()| content)
    }

    // A frame of the format that everybody skips: a magic number, a length, and anything.
    fn skippable(content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap().to_le_bytes();
        [&0x184D_2A50_u32.to_le_bytes()[..], &length, content].concat()
    }

    proptest! {
        #[test]
        fn whatever_is_compressed_comes_out(
            data in proptest::collection::vec(0..4_u8, 0..100_000),
            cut in 0..100_000_usize,
            part_bytes in 1..10_000_usize,
        ) {
            let mut compressor = Compressor::new().unwrap();
            let mut compressed = Vec::new();
            let (first, second) = data.split_at(cut.min(data.len()));
            for part in [first, second] {
                compressed.extend(compressor.push(part).unwrap());
            }
            compressed.extend(compressor.finish().unwrap());
            let size_bytes = data.len() as u64;
            prop_assert_eq!(&in_parts(&compressed, part_bytes, size_bytes).unwrap(), &data);
            prop_assert_eq!(&decompress(&compressed, size_bytes).unwrap(), &data);
            // Frames in a row are as good as one, and some are there to be skipped.
            let row = [zstd::bulk::compress(first, 3).unwrap(), skippable(b"note"), zstd::bulk::compress(second, 3).unwrap()];
            prop_assert_eq!(&in_parts(&row.concat(), part_bytes, size_bytes).unwrap(), &data);
        }

        #[test]
        fn anything_else_is_an_error_and_no_panic(data in proptest::collection::vec(any::<u8>(), 1..1000)) {
            prop_assert!(in_parts(&data, 100, 1 << 20).is_err());
        }
    }

    // A frame that grows beyond the digest is given up at once.
    #[test]
    fn a_bomb_stops_at_the_size_of_the_digest() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        let mut decompressor = Decompressor::new(1000).unwrap();
        let mut input = Bytes::from(bomb);
        assert!(matches!(decompressor.step(&mut input), Err(DecompressError::TooMuch { size_bytes: 1000 })));
        assert!(!input.is_empty(), "most of it was not even looked at");
    }

    #[test]
    fn what_is_cut_off_trailed_or_padded_is_refused() {
        let frame = zstd::bulk::compress(b"content", 3).unwrap();
        assert!(matches!(in_parts(&frame[..frame.len() - 1], 3, 7), Err(DecompressError::CutOff)));
        let trailed = [&frame[..], b"junk"].concat();
        assert!(in_parts(&trailed, 100, 7).is_err());
        let padding = skippable(&vec![0; 2 << 20]);
        assert!(matches!(in_parts(&padding, 1 << 16, 7), Err(DecompressError::Padded { .. })));
    }

    // The memory of a decoder is what a frame asks for, up to a bound.
    #[test]
    fn windows_are_bounded() {
        let compress = |window_log| {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(window_log).unwrap();
            encoder.write_all(b"content").unwrap();
            encoder.finish().unwrap()
        };
        let (widest, too_wide) = (compress(WINDOW_LOG_MAX), compress(WINDOW_LOG_MAX + 1));
        assert_eq!(in_parts(&widest, 100, 7).unwrap(), b"content");
        assert_eq!(decompress(&widest, 7).unwrap(), b"content");
        assert!(in_parts(&too_wide, 100, 7).is_err());
        assert!(decompress(&too_wide, 7).is_err());
    }
}
