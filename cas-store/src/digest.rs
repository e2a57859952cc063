//! Digests: which bytes, by which function, and how many.
//!
//! A [`Digest`] that exists is well formed: its hash has the length of its function and its size is not
//! negative. Everything behind [`Digest::parse`] relies on that, paths on disk included.

use std::fmt;
use std::hash::{Hash, Hasher as StdHasher};

use longshore_proto::reapi;
use sha2::Digest as _;

/// The longest hash of any function, in bytes.
const HASH_LEN_MAX: usize = 64;

/// A digest function of REAPI (`DigestFunction.Value`) that longshore computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DigestFunction {
    /// SHA-256, which every client speaks.
    Sha256,
    /// SHA-1.
    Sha1,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
    /// BLAKE3 with 256 bits of output.
    Blake3,
}

impl DigestFunction {
    /// Every function, the default first.
    pub const ALL: [Self; 5] = [Self::Sha256, Self::Sha1, Self::Sha384, Self::Sha512, Self::Blake3];

    /// The length of a hash, in bytes.
    pub const fn hash_len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 | Self::Blake3 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The lowercase name of the REAPI enum value: a path component in resource names and on disk.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha1 => "sha1",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Blake3 => "blake3",
        }
    }

    /// The function of that lowercase name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|function| function.name() == name)
    }

    /// The function that a hash of `hex_len` digits implies where a request names none.
    ///
    /// BLAKE3 is never implied: its hashes look like SHA-256 (REAPI, `digest_function` fields).
    pub fn implied_by(hex_len: usize) -> Option<Self> {
        match hex_len {
            40 => Some(Self::Sha1),
            64 => Some(Self::Sha256),
            96 => Some(Self::Sha384),
            128 => Some(Self::Sha512),
            _ => None,
        }
    }

    /// Whether resource names carry the function's name (only for functions newer than REAPI 2.4).
    pub const fn is_named_in_resources(self) -> bool {
        matches!(self, Self::Blake3)
    }

    /// The value of the REAPI enum.
    pub const fn to_wire(self) -> reapi::digest_function::Value {
        use reapi::digest_function::Value;
        match self {
            Self::Sha256 => Value::Sha256,
            Self::Sha1 => Value::Sha1,
            Self::Sha384 => Value::Sha384,
            Self::Sha512 => Value::Sha512,
            Self::Blake3 => Value::Blake3,
        }
    }

    /// The function of an REAPI enum value; nothing for `UNKNOWN` and for functions we do not compute.
    pub fn from_wire(value: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|function| function.to_wire() as i32 == value)
    }

    /// Starts a hash.
    pub fn hasher(self) -> Hasher {
        let state = match self {
            Self::Sha256 => HasherState::Sha256(sha2::Sha256::new()),
            Self::Sha1 => HasherState::Sha1(sha1::Sha1::new()),
            Self::Sha384 => HasherState::Sha384(sha2::Sha384::new()),
            Self::Sha512 => HasherState::Sha512(Box::new(sha2::Sha512::new())),
            Self::Blake3 => HasherState::Blake3(Box::new(blake3::Hasher::new())),
        };
        Hasher { state, size_bytes: 0 }
    }

    /// The digest of `data`.
    pub fn digest(self, data: &[u8]) -> Digest {
        let mut hasher = self.hasher();
        hasher.update(data);
        hasher.finish()
    }
}

impl fmt::Display for DigestFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A hash in progress, with the count of its bytes.
pub struct Hasher {
    state: HasherState,
    size_bytes: u64,
}

enum HasherState {
    Sha256(sha2::Sha256),
    Sha1(sha1::Sha1),
    Sha384(sha2::Sha384),
    Sha512(Box<sha2::Sha512>),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.size_bytes += data.len() as u64;
        match &mut self.state {
            HasherState::Sha256(state) => state.update(data),
            HasherState::Sha1(state) => state.update(data),
            HasherState::Sha384(state) => state.update(data),
            HasherState::Sha512(state) => state.update(data),
            HasherState::Blake3(state) => {
                state.update(data);
            }
        }
    }

    /// The number of bytes added so far.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        let size_bytes = self.size_bytes;
        match self.state {
            HasherState::Sha256(state) => {
                Digest::from_hash(DigestFunction::Sha256, &state.finalize(), size_bytes)
            }
            HasherState::Sha1(state) => {
                Digest::from_hash(DigestFunction::Sha1, &state.finalize(), size_bytes)
            }
            HasherState::Sha384(state) => {
                Digest::from_hash(DigestFunction::Sha384, &state.finalize(), size_bytes)
            }
            HasherState::Sha512(state) => {
                Digest::from_hash(DigestFunction::Sha512, &state.finalize(), size_bytes)
            }
            HasherState::Blake3(state) => {
                Digest::from_hash(DigestFunction::Blake3, state.finalize().as_bytes(), size_bytes)
            }
        }
    }
}

/// The digest of a blob: function, hash and size. Two that differ in any of them are different blobs.
///
/// Displays as `hash/size`, the form of REAPI resource names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest {
    function: DigestFunction,
    hash: [u8; HASH_LEN_MAX],
    size_bytes: u64,
}

/// Why a digest of a message is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The message has no digest where it needs one.
    #[error("digest is absent")]
    Absent,
    /// The hash has another length than the function's.
    #[error("hash {hash:?} has {} characters, {function} has {}", .hash.len(), .function.hash_len() * 2)]
    HashLength {
        /// The hash as received, shortened.
        hash: String,
        /// The function of the request.
        function: DigestFunction,
    },
    /// The hash has a character outside `0-9a-f`.
    #[error("hash {hash:?} is not lowercase hexadecimal")]
    HashCharacter {
        /// The hash as received, shortened.
        hash: String,
    },
    /// The size is negative.
    #[error("size_bytes {0} is negative")]
    NegativeSize(i64),
}

impl Digest {
    /// Parses the `hash` and `size_bytes` of an REAPI `Digest`.
    pub fn parse(function: DigestFunction, hash: &str, size_bytes: i64) -> Result<Self, DigestError> {
        if hash.len() != function.hash_len() * 2 {
            return Err(DigestError::HashLength { hash: shorten(hash), function });
        }
        let mut bytes = [0; HASH_LEN_MAX];
        // A tree has tens of thousands of these: no branch a digit.
        let mut seen = 0;
        for (byte, pair) in bytes.iter_mut().zip(hash.as_bytes().chunks_exact(2)) {
            let (high, low) = (HEX_VALUES[usize::from(pair[0])], HEX_VALUES[usize::from(pair[1])]);
            seen |= high | low;
            *byte = high << 4 | low & 0xf;
        }
        if seen & NO_HEX != 0 {
            return Err(DigestError::HashCharacter { hash: shorten(hash) });
        }
        let size_bytes = u64::try_from(size_bytes).map_err(|_| DigestError::NegativeSize(size_bytes))?;
        Ok(Self { function, hash: bytes, size_bytes })
    }

    /// Parses an REAPI `Digest` field.
    pub fn from_wire(function: DigestFunction, wire: Option<&reapi::Digest>) -> Result<Self, DigestError> {
        let wire = wire.ok_or(DigestError::Absent)?;
        Self::parse(function, &wire.hash, wire.size_bytes)
    }

    fn from_hash(function: DigestFunction, hash: &[u8], size_bytes: u64) -> Self {
        let mut bytes = [0; HASH_LEN_MAX];
        bytes[..hash.len()].copy_from_slice(hash);
        Self { function, hash: bytes, size_bytes }
    }

    /// The digest of no bytes.
    pub fn empty(function: DigestFunction) -> Self {
        function.digest(&[])
    }

    /// Whether this is the digest of no bytes: such a blob is always present (REAPI, `Digest`).
    pub fn is_empty(&self) -> bool {
        self.size_bytes == 0 && *self == Self::empty(self.function)
    }

    /// The function that made it.
    pub fn function(&self) -> DigestFunction {
        self.function
    }

    /// The hash, as many bytes as the function gives.
    pub fn hash(&self) -> &[u8] {
        &self.hash[..self.function.hash_len()]
    }

    /// The hash in lowercase hexadecimal.
    pub fn hash_hex(&self) -> String {
        let mut hex = Vec::with_capacity(self.hash().len() * 2);
        for byte in self.hash() {
            hex.extend_from_slice(&HEX_PAIRS[usize::from(*byte)]);
        }
        String::from_utf8(hex).expect("digits are ASCII")
    }

    /// The size of the blob.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The REAPI message.
    pub fn to_wire(&self) -> reapi::Digest {
        reapi::Digest {
            hash: self.hash_hex(),
            // Parsed from an i64 or counted from memory: it fits.
            size_bytes: i64::try_from(self.size_bytes).unwrap_or(i64::MAX),
        }
    }
}

impl Hash for Digest {
    /// Feeds 16 bytes of the hash: they are uniform already, and the rest would only cost time.
    fn hash<H: StdHasher>(&self, state: &mut H) {
        state.write(&self.hash[..16]);
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.hash_hex(), self.size_bytes)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{self}", self.function)
    }
}

/// What names an inode that files of trees share: the content, and whether it can be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    /// The content.
    pub digest: Digest,
    /// Whether the inode has execute permission.
    pub executable: bool,
}

/// Set in the value of what is no lowercase hexadecimal digit.
const NO_HEX: u8 = 0x80;

/// The value of each character as a digit.
const HEX_VALUES: [u8; 256] = {
    let mut values = [NO_HEX; 256];
    let mut value = 0;
    while value < 16 {
        values[HEX_DIGITS[value as usize] as usize] = value;
        value += 1;
    }
    values
};

/// The two digits of each byte.
const HEX_PAIRS: [[u8; 2]; 256] = {
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [HEX_DIGITS[byte >> 4], HEX_DIGITS[byte & 15]];
        byte += 1;
    }
    pairs
};

const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

/// A text from outside, short enough for an error message.
fn shorten(text: &str) -> String {
    const CHARACTERS_MAX: usize = 140;
    text.chars().take(CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_blob_has_the_published_hash() {
        let cases = [
            (DigestFunction::Sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (DigestFunction::Sha1, "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            (DigestFunction::Blake3, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
        ];
        for (function, hash) in cases {
            assert_eq!(Digest::empty(function).hash_hex(), hash, "{function}");
            assert!(Digest::parse(function, hash, 0).unwrap().is_empty(), "{function}");
            assert!(!Digest::parse(function, hash, 1).unwrap().is_empty(), "{function} of another size");
        }
    }

    #[test]
    fn what_is_parsed_is_what_was_hashed() {
        for function in DigestFunction::ALL {
            let digest = function.digest(b"cargo");
            assert_eq!(Digest::parse(function, &digest.hash_hex(), 5).unwrap(), digest, "{function}");
            assert_eq!(DigestFunction::from_name(function.name()), Some(function));
            assert_eq!(DigestFunction::from_wire(function.to_wire() as i32), Some(function));
        }
    }

    #[test]
    fn malformed_digests_are_refused() {
        let good = DigestFunction::Sha256.digest(b"x").hash_hex();
        let parse = |hash: &str, size| Digest::parse(DigestFunction::Sha256, hash, size);
        assert!(matches!(parse(&good[1..], 1), Err(DigestError::HashLength { .. })));
        assert!(matches!(parse(&good.to_uppercase(), 1), Err(DigestError::HashCharacter { .. })));
        assert!(matches!(parse(&good.replace('a', "g"), 1), Err(DigestError::HashCharacter { .. })));
        assert_eq!(parse(&good, -1), Err(DigestError::NegativeSize(-1)));
        assert_eq!(Digest::from_wire(DigestFunction::Sha256, None), Err(DigestError::Absent));
    }

    // SHA-256 and BLAKE3 hashes look alike; the function is part of the key.
    #[test]
    fn functions_never_alias() {
        let hash = DigestFunction::Sha256.digest(b"x").hash_hex();
        let sha = Digest::parse(DigestFunction::Sha256, &hash, 1).unwrap();
        let blake = Digest::parse(DigestFunction::Blake3, &hash, 1).unwrap();
        assert_ne!(sha, blake);
    }
}
