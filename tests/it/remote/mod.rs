//! The client of somebody else's CAS, against a fake with faults and against a real longshore.

mod any;
mod downloads;
mod executing;
mod faults;
mod instances;
mod prefetch;
mod real;
mod rules;
mod uploads;

use bytes::Bytes;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_tests::fake_cas::FakeCas;
use longshore_worker::remote::RemoteOptions;

/// Options for a fake.
fn options(cas: &FakeCas) -> RemoteOptions {
    RemoteOptions::new(cas.uri())
}

/// Bytes that do not compress, and look like no others.
fn noise(len: usize, seed: u8) -> Bytes {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(byte).take(len).collect()
}

fn sha(data: &[u8]) -> Digest {
    DigestFunction::Sha256.digest(data)
}

/// Larger than anything that travels in a batch.
const LARGE_BYTES: usize = 3 << 20;
