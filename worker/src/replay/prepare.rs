//! Before the first execution: what the server lacks is uploaded, and every action becomes one whose result is not
//! cached. Whatever is wrong with the recording's blobs is found here, and costs only the actions that need them.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use futures::StreamExt as _;
use longshore_cas_store::blob::StoreError;
use longshore_cas_store::digest::Digest;
use longshore_cas_store::source::FetchError;
use longshore_proto::{Message as _, reapi};
use parking_lot::Mutex;

use super::blobs::LocalBlobs;
use super::closure::Closure;
use super::name_of;
use super::recording::{RecordedAction, Recording};
use super::server::Server;
use crate::status_line::{Bar, size};

/// Blobs of one wave: they are on our disk until they are uploaded.
const WAVE_BLOBS_MAX: usize = 4096;
/// Their bytes, beside a single larger blob.
const WAVE_BYTES_MAX: u64 = 256 << 20;
/// Blobs that are verified at once.
const TAKEN_IN_AT_ONCE: usize = 8;

/// `Action.do_not_cache` on the wire: field 7, a varint, 1.
const DO_NOT_CACHE: [u8; 2] = [7 << 3, 1];

/// The actions of a recording, ready to be executed on one server.
pub(crate) struct Prepared {
    /// By index into the recording: the digest to execute.
    pub(crate) ready: Vec<(usize, Digest)>,
    /// By index into the recording: why an action cannot be executed.
    pub(crate) left_out: Vec<(usize, String)>,
    supply: Supply,
}

/// What was sent to the server.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Uploaded {
    pub(crate) blobs: u64,
    pub(crate) bytes: u64,
}

/// What the server can be given.
struct Supply {
    closure: Closure,
    blobs: Arc<LocalBlobs>,
    /// Actions that are not cached: the recording does not have them.
    made: HashMap<Digest, Bytes>,
    uploaded: Mutex<Uploaded>,
}

/// Makes everything ready; fails when the server cannot be asked, or refuses.
pub(crate) async fn prepare(server: &Server, recording: &Recording, bar: &Bar) -> anyhow::Result<Prepared> {
    server.reach().await?;
    let blobs = recording.blobs.clone();
    let supply =
        Supply { closure: Closure::default(), blobs, made: HashMap::new(), uploaded: Mutex::default() };
    let mut preparation = Preparation { server, supply, broken: HashMap::new(), no_actions: HashMap::new() };
    let ready = preparation.actions(&recording.actions).await?;
    if !preparation.supply.blobs.is_elsewhere() {
        preparation.directories().await;
        preparation.upload(bar).await?;
    }
    let Preparation { supply, broken, no_actions, .. } = preparation;
    let made: Vec<_> = supply.made.keys().copied().collect();
    supply.send(server, made, |_| {}).await?;
    let spoilt = supply.closure.spoilt(broken.keys().copied());
    let mut left_out = Vec::new();
    for (index, action) in recording.actions.iter().enumerate() {
        if let Some(reason) = no_actions.get(&action.digest) {
            left_out.push((index, format!("the action {reason}")));
        } else if let Some(blob) = spoilt.get(&action.digest) {
            left_out.push((index, wrong_with(action.digest, *blob, &broken[blob])));
        }
    }
    let is_whole = |(index, _): &(usize, Digest)| !spoilt.contains_key(&recording.actions[*index].digest);
    Ok(Prepared { ready: ready.into_iter().filter(is_whole).collect(), left_out, supply })
}

struct Preparation<'s> {
    server: &'s Server,
    supply: Supply,
    /// Blobs that are not to be had, and why.
    broken: HashMap<Digest, String>,
    /// Blobs that are no Actions, and why: nothing is wrong with them for whoever needs them as something else.
    no_actions: HashMap<Digest, String>,
}

impl Preparation<'_> {
    /// Reads all Actions, and makes uncached ones of them.
    async fn actions(&mut self, actions: &[RecordedAction]) -> anyhow::Result<Vec<(usize, Digest)>> {
        let wanted: Vec<_> = actions.iter().map(|action| action.digest).collect();
        let messages = self.messages(wanted).await?;
        let mut ready = Vec::with_capacity(actions.len());
        for (index, action) in actions.iter().enumerate() {
            let Some(message) = messages.get(&action.digest) else { continue };
            match self.supply.closure.action(action.digest, message) {
                Ok(decoded) if decoded.do_not_cache => ready.push((index, action.digest)),
                Ok(decoded) => {
                    let data = uncached(message, decoded);
                    let digest = action.digest.function().digest(&data);
                    self.supply.made.insert(digest, data);
                    ready.push((index, digest));
                }
                Err(reason) => {
                    self.no_actions.insert(action.digest, reason);
                }
            }
        }
        Ok(ready)
    }

    /// Reads messages from the recording, or else from the server.
    async fn messages(&mut self, wanted: Vec<Digest>) -> anyhow::Result<HashMap<Digest, Bytes>> {
        let mut messages = HashMap::with_capacity(wanted.len());
        if !self.supply.blobs.is_elsewhere() {
            for (digest, outcome) in self.server.read_local(&self.supply.blobs, wanted).await {
                match outcome {
                    Ok(message) => drop(messages.insert(digest, message)),
                    Err(error) => drop(self.broken.insert(digest, format!("cannot be read: {error}"))),
                }
            }
            return Ok(messages);
        }
        let mut fetches = self.server.fetch(wanted);
        while let Some(fetched) = fetches.next().await {
            match fetched.outcome {
                Ok(pin) => drop(messages.insert(fetched.digest, self.server.read(&pin).await?)),
                Err(error) => match wrong_there(&error) {
                    Some(reason) => drop(self.broken.insert(fetched.digest, reason)),
                    None => return Err(error).context("cannot read the actions"),
                },
            }
        }
        Ok(messages)
    }

    /// Reads all Directories, level by level.
    async fn directories(&mut self) {
        loop {
            let pending = self.supply.closure.take_pending();
            if pending.is_empty() {
                return;
            }
            for (digest, outcome) in self.server.read_local(&self.supply.blobs, pending).await {
                let read = outcome.map_err(|error| format!("cannot be read: {error}"));
                let taken = read.and_then(|message| self.supply.closure.directory(digest, &message));
                if let Err(reason) = taken {
                    self.broken.insert(digest, reason);
                }
            }
        }
    }

    /// Uploads what the server lacks.
    async fn upload(&mut self, bar: &Bar) -> anyhow::Result<()> {
        let mut blobs: Vec<_> = self.supply.closure.blobs().into_iter().collect();
        blobs.sort_unstable();
        let report = |uploaded: Uploaded| {
            bar.message(&format!("uploaded {} blobs, {}", uploaded.blobs, size(uploaded.bytes)));
        };
        let broken = self.supply.send(self.server, blobs, report).await?;
        self.broken.extend(broken);
        Ok(())
    }
}

impl Supply {
    /// Sends the server those of `blobs` that it lacks; returns those that are not to be had, and why.
    async fn send(
        &self,
        server: &Server,
        blobs: Vec<Digest>,
        report: impl Fn(Uploaded),
    ) -> anyhow::Result<HashMap<Digest, String>> {
        let missing = server.remote.find_missing(&blobs).await?;
        server.remote.forget(&missing);
        let mut broken = HashMap::new();
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
            server.remote.upload(&pins).await?;
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

impl Prepared {
    /// What was uploaded so far.
    pub(crate) fn uploaded(&self) -> Uploaded {
        *self.supply.uploaded.lock()
    }

    /// Sends once more what one action needs and the server has lost. Whether another attempt can help: somebody else may
    /// have sent it in the meantime.
    pub(crate) async fn supply_again(
        &self,
        server: &Server,
        recorded: &RecordedAction,
        uncached: Digest,
    ) -> anyhow::Result<bool> {
        let before = self.uploaded().blobs;
        let mut blobs = vec![uncached];
        if !self.supply.blobs.is_elsewhere() {
            blobs.extend(self.supply.closure.needs(recorded.digest));
        }
        let broken = self.supply.send(server, blobs, |_| {}).await?;
        if let Some((blob, reason)) = broken.into_iter().next() {
            anyhow::bail!("{}: blob {blob} {reason}", name_of(recorded));
        }
        Ok(self.uploaded().blobs > before || !self.supply.blobs.is_elsewhere())
    }
}

/// What is wrong with one blob on the server; nothing where the server itself, or our disk, cannot be used.
pub(super) fn wrong_there(error: &FetchError) -> Option<String> {
    match error {
        FetchError::Missing => Some("is not on the server".to_owned()),
        FetchError::Corrupt { .. } => Some(format!("is wrong on the server: {error}")),
        FetchError::Store(store) if matches!(**store, StoreError::TooLarge { .. }) => {
            Some("is too large to be fetched".to_owned())
        }
        FetchError::Store(_) | FetchError::Unavailable { .. } => None,
    }
}

/// What is wrong with an action for want of a blob: which may be itself.
pub(super) fn wrong_with(action: Digest, blob: Digest, reason: &str) -> String {
    if action == blob { format!("the action {reason}") } else { format!("blob {blob} {reason}") }
}

/// The same action, not cached. Of one with fields that we do not know nothing is lost; any other one is written as every
/// client writes it, field by field.
fn uncached(message: &Bytes, mut action: reapi::Action) -> Bytes {
    if action.encode_to_vec() == *message {
        action.do_not_cache = true;
        action.encode_to_vec().into()
    } else {
        [&message[..], &DO_NOT_CACHE].concat().into()
    }
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
    use longshore_cas_store::digest::DigestFunction;
    use proptest::prelude::*;

    use super::*;

    // A server may know more of an action than we do.
    #[test]
    fn an_action_keeps_what_we_do_not_know_of_it() {
        let known = reapi::Action { salt: b"salt".into(), ..Default::default() };
        let expected = reapi::Action { do_not_cache: true, ..known.clone() };
        let plain = Bytes::from(known.encode_to_vec());
        assert_eq!(uncached(&plain, known.clone()), expected.encode_to_vec());
        // Field 100, a varint, 5.
        let unknown = [0xa0, 0x06, 0x05];
        let whole = Bytes::from([&plain[..], &unknown].concat());
        let made = uncached(&whole, reapi::Action::decode(whole.clone()).unwrap());
        assert_eq!(reapi::Action::decode(made.clone()).unwrap(), expected);
        assert!(made.windows(unknown.len()).any(|window| window == unknown), "{made:?}");
    }

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
