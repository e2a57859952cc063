//! zstd frames, a piece at a time: what one piece expands to is never in memory at once.

use bytes::Bytes;
use longshore_cas_store::digest::Digest;
use zstd::stream::raw::{Decoder, Encoder, InBuffer, Operation as _, OutBuffer};

use crate::packing;

/// What is expanded or packed at once.
const PIECE_BYTES: usize = 128 << 10;
/// The largest window that a frame may ask us to keep, as a power of two: what zstd itself keeps to.
const WINDOW_LOG_MAX: u32 = 27;
/// The level we pack with: the network is waited for, not the disk.
const LEVEL: i32 = 1;

/// Expands a stream of frames.
pub(super) struct Inflater {
    decoder: Decoder<'static>,
    input: Bytes,
    /// What is expanded goes here first: a piece takes no more memory than it has bytes.
    piece: Box<[u8]>,
    /// The last call filled its buffer: more may come without input.
    is_full: bool,
}

impl Inflater {
    pub(super) fn new() -> Result<Self, String> {
        let mut decoder = Decoder::new().map_err(|error| error.to_string())?;
        decoder
            .set_parameter(zstd::zstd_safe::DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .map_err(|error| error.to_string())?;
        let piece = vec![0; PIECE_BYTES].into();
        Ok(Self { decoder, input: Bytes::new(), piece, is_full: false })
    }

    /// Adds input, all of the last having been taken out.
    pub(super) fn push(&mut self, input: Bytes) {
        self.input = input;
    }

    /// The next piece; nothing if more input is needed.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, String> {
        while !self.input.is_empty() || self.is_full {
            let mut input = InBuffer::around(&self.input);
            let mut output = OutBuffer::around(&mut self.piece[..]);
            self.decoder
                .run(&mut input, &mut output)
                .map_err(|error| format!("is no zstd frame: {error}"))?;
            let (taken, len) = (input.pos(), output.pos());
            self.input = self.input.slice(taken..);
            self.is_full = len == PIECE_BYTES;
            if len > 0 {
                return Ok(Some(Bytes::copy_from_slice(&self.piece[..len])));
            }
        }
        Ok(None)
    }
}

/// Packs a stream into one frame.
pub(super) struct Deflater(Encoder<'static>);

impl Deflater {
    pub(super) fn new() -> Result<Self, String> {
        Encoder::new(LEVEL).map(Self).map_err(|error| error.to_string())
    }

    /// Packs `data`; the frame is closed with the last.
    pub(super) fn pack(&mut self, data: &[u8], is_last: bool) -> Result<Bytes, String> {
        let mut packed = Vec::new();
        let mut piece = vec![0; PIECE_BYTES];
        let mut input = InBuffer::around(data);
        while input.pos() < data.len() {
            let mut output = OutBuffer::around(&mut piece[..]);
            self.0.run(&mut input, &mut output).map_err(|error| error.to_string())?;
            packed.extend_from_slice(output.as_slice());
        }
        let mut is_open = is_last;
        while is_open {
            let mut output = OutBuffer::around(&mut piece[..]);
            let left = self.0.finish(&mut output, true).map_err(|error| error.to_string())?;
            packed.extend_from_slice(output.as_slice());
            is_open = left > 0;
        }
        Ok(packed.into())
    }
}

/// Expands a small blob, to no more than its size.
pub(super) fn expand(digest: &Digest, packed: &[u8]) -> Result<Bytes, String> {
    let len = usize::try_from(digest.size_bytes()).map_err(|error| error.to_string())?;
    let data = packing::expand(packed, len).map_err(|error| format!("is no zstd frame: {error}"))?;
    Ok(data.into())
}

/// Packs a small blob.
pub(super) fn pack(data: &[u8]) -> Result<Vec<u8>, String> {
    packing::pack(data).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use longshore_cas_store::digest::DigestFunction;
    use proptest::prelude::*;

    use super::*;

    fn inflate(pieces: &[&[u8]]) -> Result<Vec<u8>, String> {
        let mut inflater = Inflater::new()?;
        let mut data = Vec::new();
        for piece in pieces {
            inflater.push(Bytes::copy_from_slice(piece));
            while let Some(out) = inflater.next()? {
                data.extend_from_slice(&out);
            }
        }
        Ok(data)
    }

    // Frames without content are no pieces: whoever collects pieces would be given any number of them.
    #[test]
    fn nothing_is_no_piece() {
        let empty = zstd::encode_all(&b""[..], 0).unwrap();
        let mut inflater = Inflater::new().unwrap();
        inflater.push(empty.repeat(100).into());
        assert_eq!(inflater.next().unwrap(), None);
    }

    proptest! {
        #[test]
        fn what_is_packed_is_what_is_unpacked(
            data in prop::collection::vec(any::<u8>(), 0..2000),
            repeat in 1..400usize,
            cut in any::<prop::sample::Index>(),
        ) {
            let data = data.repeat(repeat);
            let mut deflater = Deflater::new().unwrap();
            let at = cut.index(data.len() + 1);
            let mut packed = deflater.pack(&data[..at], false).unwrap().to_vec();
            packed.extend_from_slice(&deflater.pack(&data[at..], true).unwrap());
            let at = cut.index(packed.len() + 1);
            prop_assert_eq!(&inflate(&[&packed[..at], &packed[at..]]).unwrap(), &data);
            // Several frames in a row are one stream.
            prop_assert_eq!(inflate(&[&packed, &packed]).unwrap(), data.repeat(2));
        }
    }

    // A small message must not become a large allocation.
    #[test]
    fn a_bomb_is_refused_before_it_is_expanded() {
        let packed = pack(&vec![0; 10 << 20]).unwrap();
        assert!(packed.len() < 10_000);
        let digest = DigestFunction::Sha256.digest(b"four");
        assert!(expand(&digest, &packed).is_err());
        assert!(expand(&digest, b"garbage").is_err());
        assert!(inflate(&[b"garbage"]).is_err());
    }
}
