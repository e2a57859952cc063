//! What the server is given of what it lacks. Blobs that it will not have, or that the recording does not have in order,
//! cost themselves.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use longshore_cas_store::blob::BlobPin;
use longshore_cas_store::digest::{Digest, DigestFunction};
use parking_lot::Mutex;

use super::blobs::LocalBlobs;
use super::closure::Closure;
use super::server::{Server, is_about_us};
use crate::remote::RemoteError;

/// Blobs of one wave: they are on our disk until they are uploaded.
const WAVE_BLOBS_MAX: usize = 4096;
/// Their bytes, beside a single larger blob.
const WAVE_BYTES_MAX: u64 = 256 << 20;
/// Blobs that are verified at once.
const TAKEN_IN_AT_ONCE: usize = 8;
/// Blobs that are sent alone at once.
const ALONE_AT_ONCE: usize = 8;
/// Blobs of one wave for which a server that answers is unavailable: after more of them it is the server that is of no use.
const UNSENT_MAX: usize = 20;

/// What was sent to the server.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Uploaded {
    pub(crate) blobs: u64,
    pub(crate) bytes: u64,
}

/// What the server can be given.
pub(super) struct Supply {
    pub(super) closure: Closure,
    pub(super) blobs: Arc<LocalBlobs>,
    /// Actions as they are executed: the recording need not have them.
    pub(super) made: HashMap<Digest, Bytes>,
    pub(super) uploaded: Mutex<Uploaded>,
}

/// Blobs that did not get to the server, and why.
pub(super) type Broken = HashMap<Digest, String>;

impl Supply {
    pub(super) fn new(blobs: Arc<LocalBlobs>) -> Self {
        Self { closure: Closure::default(), blobs, made: HashMap::new(), uploaded: Mutex::default() }
    }

    /// Sends the server those of `blobs` that it lacks; returns those that are not to be had, and why.
    pub(super) async fn send(
        &self,
        server: &Server,
        blobs: Vec<Digest>,
        report: impl Fn(Uploaded),
    ) -> Result<Broken, RemoteError> {
        let mut broken = Broken::new();
        let missing = missing(server, blobs, &mut broken).await?;
        server.remote.forget(&missing);
        for wave in waves(missing) {
            let ingests = wave.into_iter().map(|digest| async move {
                let taken = match self.made.get(&digest) {
                    Some(data) => server.put(digest, data.clone()).await.map_err(|error| error.to_string()),
                    None => server.take_in(&self.blobs, digest).await,
                };
                (digest, taken)
            });
            let taken: Vec<_> =
                futures::stream::iter(ingests).buffer_unordered(TAKEN_IN_AT_ONCE).collect().await;
            let mut pins = Vec::with_capacity(taken.len());
            for (digest, outcome) in taken {
                match outcome {
                    Ok(pin) => pins.push(pin),
                    Err(reason) => drop(broken.insert(digest, format!("cannot be uploaded: {reason}"))),
                }
            }
            let pins = upload(server, pins, &mut broken).await?;
            let mut uploaded = self.uploaded.lock();
            uploaded.blobs += pins.len() as u64;
            uploaded.bytes += pins.iter().map(|pin| pin.digest().size_bytes()).sum::<u64>();
            let so_far = *uploaded;
            drop(uploaded);
            report(so_far);
        }
        Ok(broken)
    }
}

/// Which of `blobs` the server lacks. A function that it does not know, of several, breaks the blobs by it.
async fn missing(
    server: &Server,
    blobs: Vec<Digest>,
    broken: &mut Broken,
) -> Result<Vec<Digest>, RemoteError> {
    let mut by_function: BTreeMap<DigestFunction, Vec<Digest>> = BTreeMap::new();
    for digest in blobs {
        by_function.entry(digest.function()).or_default().push(digest);
    }
    let mut missing = Vec::new();
    let mut refused = Vec::new();
    let mut is_understood = by_function.is_empty();
    for digests in by_function.into_values() {
        match server.remote.find_missing(&digests).await {
            Ok(found) => {
                is_understood = true;
                missing.extend(found);
            }
            Err(error) if is_of_the_blobs(&error) => refused.push((digests, error)),
            Err(error) => return Err(error),
        }
    }
    for (digests, error) in refused {
        if !is_understood {
            return Err(error);
        }
        broken.extend(digests.into_iter().map(|digest| (digest, format!("cannot be uploaded: {error}"))));
    }
    Ok(missing)
}

/// Uploads what is on our disk, and returns what the server took. What a call for many refuses is sent once more, a blob at
/// a time.
async fn upload(
    server: &Server,
    pins: Vec<BlobPin>,
    broken: &mut Broken,
) -> Result<Vec<BlobPin>, RemoteError> {
    let Err(error) = server.remote.upload(&pins).await else { return Ok(pins) };
    if !is_of_one(server, &pins, &error).await {
        return Err(error);
    }
    let alone = pins.into_iter().map(|pin| async move {
        let sent = server.remote.upload(std::slice::from_ref(&pin)).await;
        (pin, sent)
    });
    let mut alone = futures::stream::iter(alone).buffer_unordered(ALONE_AT_ONCE);
    let mut taken = Vec::new();
    let mut unsent = 0;
    while let Some((pin, sent)) = alone.next().await {
        let Err(error) = sent else {
            taken.push(pin);
            continue;
        };
        unsent += usize::from(!is_of_the_blobs(&error));
        if unsent > UNSENT_MAX || !is_of_one(server, std::slice::from_ref(&pin), &error).await {
            return Err(error);
        }
        broken.insert(*pin.digest(), format!("cannot be uploaded: {error}"));
    }
    Ok(taken)
}

/// Whether an upload failed for what was uploaded, and not for the server or for us.
async fn is_of_one(server: &Server, pins: &[BlobPin], error: &RemoteError) -> bool {
    match (error, pins.first()) {
        (RemoteError::Unavailable { .. }, Some(first)) => server.answers(first.digest()).await,
        _ => is_of_the_blobs(error),
    }
}

/// Whether the server has understood, and will not have these blobs.
fn is_of_the_blobs(error: &RemoteError) -> bool {
    matches!(error, RemoteError::Refused { code, .. } if !is_about_us(*code))
}

/// Cuts a list of blobs into pieces that fit our disk.
fn waves(blobs: Vec<Digest>) -> Vec<Vec<Digest>> {
    let mut waves: Vec<Vec<Digest>> = Vec::new();
    let mut bytes = u64::MAX;
    for digest in blobs {
        let size_bytes = digest.size_bytes();
        bytes = bytes.saturating_add(size_bytes);
        match waves.last_mut() {
            Some(wave) if bytes <= WAVE_BYTES_MAX && wave.len() < WAVE_BLOBS_MAX => wave.push(digest),
            _ => {
                waves.push(vec![digest]);
                bytes = size_bytes;
            }
        }
    }
    waves
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waves_are_bounded_and_lose_nothing(sizes in prop::collection::vec(0_i64..200 << 20, 0..50)) {
            let hash = DigestFunction::Sha256.digest(b"").hash_hex();
            let blobs: Vec<_> = sizes
                .iter()
                .map(|size| Digest::parse(DigestFunction::Sha256, &hash, *size).unwrap())
                .collect();
            let waves = waves(blobs.clone());
            prop_assert_eq!(waves.concat(), blobs);
            for wave in waves {
                let bytes: u64 = wave.iter().map(Digest::size_bytes).sum();
                prop_assert!(wave.len() == 1 || bytes <= WAVE_BYTES_MAX);
                prop_assert!(!wave.is_empty() && wave.len() <= WAVE_BLOBS_MAX);
            }
        }
    }
}
