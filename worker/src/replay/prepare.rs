//! Before the first execution: what the server lacks is uploaded, and every action becomes one whose result is not
//! cached. Whatever is wrong with the recording's blobs is found here, and costs only the actions that need them.

use std::collections::HashMap;

use anyhow::Context as _;
use bytes::Bytes;
use longshore_cas_store::digest::Digest;
use longshore_proto::{Message as _, reapi};

use super::name_of;
use super::recording::{RecordedAction, Recording};
use super::server::Server;
use super::supply::{Broken, Supply, Uploaded};
use crate::status_line::{Bar, size};

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

/// Makes everything ready; fails when the server cannot be asked, or wants nothing of us.
pub(crate) async fn prepare(server: &Server, recording: &Recording, bar: &Bar) -> anyhow::Result<Prepared> {
    server.reach().await?;
    let supply = Supply::new(recording.blobs.clone());
    let mut preparation = Preparation { server, supply, broken: Broken::new(), no_actions: HashMap::new() };
    let mut ready = preparation.actions(&recording.actions).await?;
    if !preparation.supply.blobs.is_elsewhere() {
        preparation.directories().await?;
        preparation.upload(bar).await?;
    }
    let Preparation { supply, broken, no_actions, .. } = preparation;
    let spoilt = supply.closure.spoilt(broken.keys().copied());
    ready.retain(|(index, _)| !spoilt.contains_key(&recording.actions[*index].digest));
    let made = ready.iter().map(|(_, uncached)| *uncached).collect();
    let unsent = supply.send(server, made, |_| {}).await?;
    let mut left_out = Vec::new();
    for (index, action) in recording.actions.iter().enumerate() {
        if let Some(reason) = no_actions.get(&action.digest) {
            left_out.push((index, format!("the action {reason}")));
        } else if let Some(blob) = spoilt.get(&action.digest) {
            left_out.push((index, wrong_with(action.digest, *blob, &broken[blob])));
        }
    }
    for (index, uncached) in &ready {
        if let Some(reason) = unsent.get(uncached) {
            left_out.push((*index, format!("the action {reason}")));
        }
    }
    left_out.sort_unstable();
    ready.retain(|(_, uncached)| !unsent.contains_key(uncached));
    Ok(Prepared { ready, left_out, supply })
}

struct Preparation<'s> {
    server: &'s Server,
    supply: Supply,
    /// Blobs that are not to be had, and why.
    broken: Broken,
    /// Blobs that are no Actions, and why: nothing is wrong with them for whoever needs them as something else.
    no_actions: HashMap<Digest, String>,
}

impl Preparation<'_> {
    /// Reads all Actions, and makes uncached ones of them.
    async fn actions(&mut self, actions: &[RecordedAction]) -> anyhow::Result<Vec<(usize, Digest)>> {
        let wanted: Vec<_> = actions.iter().map(|action| action.digest).collect();
        let messages = self.messages(wanted).await.context("cannot read the actions")?;
        let mut ready = Vec::with_capacity(actions.len());
        for (index, action) in actions.iter().enumerate() {
            let Some(message) = messages.get(&action.digest) else { continue };
            match self.supply.closure.action(action.digest, message) {
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

    /// Reads messages from the recording, and from the server what is not in order there.
    async fn messages(&mut self, mut wanted: Vec<Digest>) -> anyhow::Result<HashMap<Digest, Bytes>> {
        let mut messages = HashMap::with_capacity(wanted.len());
        let mut reasons = Broken::new();
        if !self.supply.blobs.is_elsewhere() {
            for (digest, outcome) in self.server.read_local(&self.supply.blobs, wanted).await {
                match outcome {
                    Ok(message) => drop(messages.insert(digest, message)),
                    Err(error) => drop(reasons.insert(digest, format!("cannot be read: {error}"))),
                }
            }
            wanted = reasons.keys().copied().collect();
        }
        let mut download = self.server.download(wanted);
        while let Some((digest, outcome)) = download.next().await? {
            match outcome {
                Ok(pin) => drop(messages.insert(digest, self.server.read(&pin).await?)),
                // What is wrong with the recording is the more useful of the two.
                Err(reason) => {
                    let reason = reasons.remove(&digest).unwrap_or(reason);
                    self.broken.insert(digest, reason);
                }
            }
        }
        Ok(messages)
    }

    /// Reads all Directories, level by level.
    async fn directories(&mut self) -> anyhow::Result<()> {
        loop {
            let pending = self.supply.closure.take_pending();
            if pending.is_empty() {
                return Ok(());
            }
            for (digest, message) in self.messages(pending).await.context("cannot read the folders")? {
                if let Err(reason) = self.supply.closure.directory(digest, &message) {
                    self.broken.insert(digest, reason);
                }
            }
        }
    }

    /// Uploads what the server lacks.
    async fn upload(&mut self, bar: &Bar) -> anyhow::Result<()> {
        let mut blobs: Vec<_> = self.supply.closure.blobs().into_iter().collect();
        blobs.retain(|digest| !self.broken.contains_key(digest));
        blobs.sort_unstable();
        let report = |uploaded: Uploaded| {
            bar.message(&format!("uploaded {} blobs, {}", uploaded.blobs, size(uploaded.bytes)));
        };
        let broken = self.supply.send(self.server, blobs, report).await?;
        self.broken.extend(broken);
        Ok(())
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

/// What is wrong with an action for want of a blob: which may be itself.
pub(super) fn wrong_with(action: Digest, blob: Digest, reason: &str) -> String {
    if action == blob { format!("the action {reason}") } else { format!("blob {blob} {reason}") }
}

/// The same action, not cached. Of one with fields that we do not know nothing is lost; any other one is written as every
/// client writes it, field by field.
fn uncached(message: &Bytes, mut action: reapi::Action) -> Bytes {
    if action.do_not_cache {
        message.clone()
    } else if action.encode_to_vec() == *message {
        action.do_not_cache = true;
        action.encode_to_vec().into()
    } else {
        [&message[..], &DO_NOT_CACHE].concat().into()
    }
}

#[cfg(test)]
mod tests {
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
}
