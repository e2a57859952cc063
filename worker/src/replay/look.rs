//! A look into folders that differ: their trees are read, from the recording or the server, and compared file by file.
//!
//! Whatever is not looked into is known afterwards, and why: its digests alone are what such an action is judged by.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use longshore_cas_store::digest::Digest;
use longshore_cas_store::source::FetchError;

use super::blobs::LocalBlobs;
use super::download::wrong_there;
use super::outcome::Outcome;
use super::recording::Recording;
use super::server::Server;
use super::tally::Tally;
use super::trees::{Entries, differing, flatten, spell_out};
use crate::status_line::Bar;

/// What trees take in memory at once, beside a single larger one.
const BYTES_AT_ONCE: u64 = 64 << 20;
/// The largest tree that is read.
const TREE_BYTES_MAX: u64 = 256 << 20;

/// Folders that differ, of all actions.
pub(crate) struct Look {
    /// In the order of the recording.
    wanted: Vec<Wanted>,
    /// How many of them it is done with.
    done: usize,
    /// Trees that are not to be had, and why: nobody asks for them twice.
    broken: HashMap<Digest, String>,
    /// Why the server is not asked any more.
    gone: Option<String>,
    /// By index into the recording: why an action is judged by digests alone.
    unread: Vec<(usize, String)>,
}

/// The folders of one action that differ.
struct Wanted {
    /// Into the recording.
    index: usize,
    /// By path.
    trees: BTreeMap<String, BTreeSet<Digest>>,
}

impl Wanted {
    fn digests(&self) -> impl Iterator<Item = Digest> {
        self.trees.values().flatten().copied()
    }
}

impl Look {
    /// At all that differs, which may be nothing.
    pub(crate) fn new(recording: &Recording, tally: &Tally) -> Self {
        let both = recording.actions.iter().zip(&tally.seen).enumerate();
        let wanted = both.map(|(index, (action, seen))| {
            let outcomes: Vec<_> = seen.outcomes().chain(action.outcome.as_ref()).collect();
            let trees = if seen.is_empty() { BTreeMap::new() } else { differing(&outcomes) };
            Wanted { index, trees }
        });
        let wanted = wanted.filter(|wanted| !wanted.trees.is_empty()).collect();
        Self { wanted, done: 0, broken: HashMap::new(), gone: None, unread: Vec::new() }
    }

    /// Looks into one folder after the other. Dropped early, it has looked into some of them.
    pub(crate) async fn run(
        &mut self,
        server: &Server,
        recording: &mut Recording,
        tally: &mut Tally,
        bar: &Bar,
    ) {
        let blobs = recording.blobs.clone();
        while self.done < self.wanted.len() {
            let count = at_once(&self.wanted[self.done..]);
            let digests = self.wanted[self.done..][..count].iter().flat_map(Wanted::digests).collect();
            let messages = self.read(server, &blobs, digests).await;
            for wanted in &self.wanted[self.done..][..count] {
                let action = &mut recording.actions[wanted.index];
                let outcomes = tally.seen[wanted.index].outcomes_mut(&mut action.outcome);
                if let Err(reason) = compare(wanted, &messages, &self.broken, outcomes.collect()) {
                    self.unread.push((wanted.index, reason));
                }
            }
            self.done += count;
            bar.message(&format!("looked into folders of {} of {} actions", self.done, self.wanted.len()));
        }
    }

    /// By index into the recording: which actions are judged by the digests of folders, and why.
    pub(crate) fn unread(mut self) -> Vec<(usize, String)> {
        let never = self.wanted.drain(self.done..);
        self.unread.extend(never.map(|wanted| (wanted.index, "interrupted".to_owned())));
        self.unread
    }

    /// Those of `digests` that are to be had.
    async fn read(
        &mut self,
        server: &Server,
        blobs: &Arc<LocalBlobs>,
        mut digests: HashSet<Digest>,
    ) -> HashMap<Digest, Bytes> {
        digests.retain(|digest| !self.broken.contains_key(digest));
        for digest in digests.extract_if(|digest| digest.size_bytes() > TREE_BYTES_MAX) {
            self.broken.insert(digest, "is too large to be looked into".to_owned());
        }
        let mut messages = HashMap::with_capacity(digests.len());
        for (digest, outcome) in server.read_local(blobs, digests.iter().copied().collect()).await {
            if let Ok(message) = outcome {
                digests.remove(&digest);
                messages.insert(digest, message);
            }
        }
        if self.gone.is_none() {
            self.ask(server, &mut digests, &mut messages).await;
        }
        if let Some(reason) = &self.gone {
            self.broken.extend(digests.into_iter().map(|digest| (digest, reason.clone())));
        }
        messages
    }

    /// Moves what the server gives from `digests` to `messages`. A server that is gone is not waited for again.
    async fn ask(
        &mut self,
        server: &Server,
        digests: &mut HashSet<Digest>,
        messages: &mut HashMap<Digest, Bytes>,
    ) {
        let mut fetches = server.fetch(digests.iter().copied().collect());
        while let Some(fetched) = fetches.next().await {
            let digest = fetched.digest;
            let read = match fetched.outcome {
                Ok(pin) => server.read(&pin).await.map_err(|error| error.to_string()),
                Err(error @ FetchError::Unavailable { .. }) => {
                    self.gone = Some(format!("cannot be read: {error}"));
                    return;
                }
                Err(error) => Err(wrong_there(&error).unwrap_or_else(|| format!("cannot be read: {error}"))),
            };
            digests.remove(&digest);
            match read {
                Ok(message) => drop(messages.insert(digest, message)),
                Err(reason) => drop(self.broken.insert(digest, reason)),
            }
        }
    }
}

/// How many actions from the first on are looked into at once.
fn at_once(wanted: &[Wanted]) -> usize {
    let mut bytes = 0_u64;
    let fits = |wanted: &&Wanted| {
        bytes = wanted.digests().fold(bytes, |bytes, digest| bytes.saturating_add(digest.size_bytes()));
        bytes <= BYTES_AT_ONCE
    };
    wanted.iter().take_while(fits).count().max(1)
}

/// Spells the folders of one action out, as far as they can be read; otherwise what is wrong with one of them.
fn compare(
    wanted: &Wanted,
    messages: &HashMap<Digest, Bytes>,
    broken: &HashMap<Digest, String>,
    mut outcomes: Vec<&mut Outcome>,
) -> Result<(), String> {
    let mut fault = Ok(());
    for (path, trees) in &wanted.trees {
        let read = |digest: &Digest| -> Result<(Digest, Entries), String> {
            let entries = messages.get(digest).map(|message| flatten(digest.function(), message));
            let reason = || broken.get(digest).map_or("is no Tree that can be looked into", String::as_str);
            let entries = entries.flatten().ok_or_else(|| format!("{path}: tree {digest} {}", reason()))?;
            Ok((*digest, entries))
        };
        match trees.iter().map(read).collect::<Result<HashMap<_, _>, _>>() {
            Ok(contents) => spell_out(path, &contents, &mut outcomes),
            Err(reason) => fault = Err(reason),
        }
    }
    fault
}
