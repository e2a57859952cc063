//! What a server announces in `GetCapabilities`, as far as we heed it.

use std::sync::atomic::{AtomicBool, Ordering};

use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::reapi;

/// What a message may hold where the server names no limit: gRPC peers take 4 MiB, less what is around the blobs.
const BATCH_BYTES_MAX: u64 = (4 << 20) - (64 << 10);
/// What a blob costs in a batch beside its bytes: its digest, its status, field tags.
const BLOB_OVERHEAD_BYTES: u64 = 128;
/// Blobs above this are streamed even where a batch could hold one: they gain nothing by company.
const SMALL_BYTES_MAX: u64 = 1 << 20;
/// Blobs below this travel as they are: a frame around them gains nothing.
const COMPRESSED_BYTES_MIN: u64 = 4 << 10;

/// What the server does and how much it takes.
#[derive(Debug)]
pub(super) struct ServerLimits {
    /// The most that a batch may hold: of bytes, and of [`ServerLimits::cost`].
    batch_bytes_max: u64,
    blob_bytes_max: Option<u64>,
    /// Functions that it computes; nothing where it does not say.
    functions: Vec<DigestFunction>,
    zstd: Feature,
    zstd_batch: bool,
    /// `GetTree`.
    pub(super) tree: Feature,
}

/// What a server offers until it turns out that it does not.
#[derive(Debug)]
pub(super) struct Feature(AtomicBool);

impl Feature {
    fn new(is_offered: bool) -> Self {
        Self(AtomicBool::new(is_offered))
    }

    pub(super) fn is_offered(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn is_absent(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl ServerLimits {
    pub(super) fn unknown() -> Self {
        Self::of(&reapi::ServerCapabilities::default(), false)
    }

    pub(super) fn of(answer: &reapi::ServerCapabilities, compression: bool) -> Self {
        let cache = answer.cache_capabilities.clone().unwrap_or_default();
        let zstd = reapi::compressor::Value::Zstd as i32;
        let batch_bytes_max = match u64::try_from(cache.max_batch_total_size_bytes) {
            Ok(0) | Err(_) => BATCH_BYTES_MAX,
            Ok(bytes) => bytes.min(BATCH_BYTES_MAX),
        };
        let functions = cache.digest_functions.iter().filter_map(|value| DigestFunction::from_wire(*value));
        Self {
            batch_bytes_max,
            blob_bytes_max: u64::try_from(cache.max_cas_blob_size_bytes).ok().filter(|bytes| *bytes > 0),
            functions: functions.collect(),
            zstd: Feature::new(compression && cache.supported_compressors.contains(&zstd)),
            zstd_batch: compression && cache.supported_batch_update_compressors.contains(&zstd),
            tree: Feature::new(true),
        }
    }

    /// The most that the costs in one batch may add up to.
    pub(super) fn batch_bytes_max(&self) -> u64 {
        self.batch_bytes_max
    }

    /// What a blob costs in a batch.
    pub(super) fn cost(digest: &Digest) -> u64 {
        digest.size_bytes().saturating_add(BLOB_OVERHEAD_BYTES)
    }

    /// Whether a blob travels in a batch.
    pub(super) fn is_small(&self, digest: &Digest) -> bool {
        Self::cost(digest) <= self.batch_bytes_max.min(SMALL_BYTES_MAX + BLOB_OVERHEAD_BYTES)
    }

    /// Why the server will not take that blob, if so.
    pub(super) fn refusal(&self, digest: &Digest) -> Option<String> {
        let function = digest.function();
        if !self.functions.is_empty() && !self.functions.contains(&function) {
            return Some(format!("it does not offer the digest function {function}"));
        }
        let bytes_max = self.blob_bytes_max.filter(|bytes_max| digest.size_bytes() > *bytes_max)?;
        Some(format!("blob {digest} is larger than the {bytes_max} bytes that it takes"))
    }

    /// `compressed-blobs/zstd`, for a blob of that size.
    pub(super) fn zstd(&self, digest: &Digest) -> Option<&Feature> {
        let is_worth_it = digest.size_bytes() >= COMPRESSED_BYTES_MIN;
        Some(&self.zstd).filter(|feature| is_worth_it && feature.is_offered())
    }

    /// The compressors that a batch may come in.
    pub(super) fn acceptable_compressors(&self) -> Vec<i32> {
        if self.zstd.is_offered() { vec![reapi::compressor::Value::Zstd as i32] } else { Vec::new() }
    }

    /// Whether that blob is compressed in an uploaded batch.
    pub(super) fn is_compressed_in_batch(&self, digest: &Digest) -> bool {
        self.zstd_batch && digest.size_bytes() >= COMPRESSED_BYTES_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(max_batch_total_size_bytes: i64) -> ServerLimits {
        let cache = reapi::CacheCapabilities { max_batch_total_size_bytes, ..Default::default() };
        let answer = reapi::ServerCapabilities { cache_capabilities: Some(cache), ..Default::default() };
        ServerLimits::of(&answer, true)
    }

    #[test]
    fn a_batch_stays_below_the_servers_limit_and_below_a_messages() {
        assert_eq!(limits(65_536).batch_bytes_max(), 65_536);
        assert_eq!(limits(0).batch_bytes_max(), BATCH_BYTES_MAX);
        assert_eq!(limits(-1).batch_bytes_max(), BATCH_BYTES_MAX);
        assert_eq!(limits(1 << 30).batch_bytes_max(), BATCH_BYTES_MAX);
    }

    #[test]
    fn what_fits_no_batch_is_large() {
        let hash = DigestFunction::Sha256.digest(b"x").hash_hex();
        let blob = |size| Digest::parse(DigestFunction::Sha256, &hash, size).unwrap();
        assert!(limits(65_536).is_small(&blob(65_536 - 128)));
        assert!(!limits(65_536).is_small(&blob(65_536 - 127)));
        assert!(limits(0).is_small(&blob(1 << 20)));
        assert!(!limits(0).is_small(&blob((1 << 20) + 1)));
    }
}
