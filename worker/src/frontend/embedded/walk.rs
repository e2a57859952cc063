//! All directories below a root that are stored as `Directory` messages, each once, breadth first.
//!
//! The order depends on the messages alone, so that a walk can be taken up again behind any directory. Nothing is
//! kept of a directory but its digest: shared subtrees cost nothing, and memory is bounded by the count.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::Digest;
use longshore_proto::{Message as _, reapi};
use tonic::Code;

use super::limits::{DIRECTORIES_A_READ, DIRECTORIES_MAX, METADATA_BYTES_MAX, RESPONSE_BYTES_MAX};
use crate::status::Failure;

/// What became of one directory of a walk.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Visit {
    /// Which one.
    pub(super) digest: Digest,
    /// What it is.
    pub(super) found: Found,
}

/// What a digest that should be a directory's leads to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found {
    /// A directory.
    Directory(reapi::Directory),
    /// Nothing.
    Missing,
    /// Something else.
    Malformed(String),
}

/// A walk under way.
#[derive(Debug)]
pub(super) struct Walk {
    store: Arc<BlobStore>,
    queue: VecDeque<Digest>,
    seen: HashSet<Digest>,
    visits: VecDeque<Visit>,
}

impl Walk {
    /// Starts at `root`, which is the first that is visited.
    pub(super) fn new(store: Arc<BlobStore>, root: Digest) -> Self {
        Self { store, queue: [root].into(), seen: [root].into(), visits: VecDeque::new() }
    }

    /// Visits the next directory.
    pub(super) async fn next(&mut self) -> Result<Option<Visit>, Failure> {
        if self.visits.is_empty() {
            let batch = self.batch();
            let messages = self.store.read_many(batch.clone()).await?;
            for (digest, message) in batch.into_iter().zip(messages) {
                let found = match message {
                    None => Found::Missing,
                    Some(message) => self.decode(&digest, &message)?,
                };
                self.visits.push_back(Visit { digest, found });
            }
            self.oversized();
        }
        Ok(self.visits.pop_front())
    }

    /// The directories to read next: few enough to be in memory together.
    fn batch(&mut self) -> Vec<Digest> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(digest) = self.queue.front() {
            let full =
                bytes + digest.size_bytes() > RESPONSE_BYTES_MAX as u64 || batch.len() == DIRECTORIES_A_READ;
            if digest.size_bytes() > METADATA_BYTES_MAX || (full && !batch.is_empty()) {
                break;
            }
            bytes += digest.size_bytes();
            batch.extend(self.queue.pop_front());
        }
        batch
    }

    /// Visits what is next in turn and too large to be read.
    fn oversized(&mut self) {
        if let Some(digest) = self.queue.pop_front_if(|digest| digest.size_bytes() > METADATA_BYTES_MAX) {
            let found = Found::Malformed("is too large for a Directory".to_owned());
            self.visits.push_back(Visit { digest, found });
        }
    }

    fn decode(&mut self, digest: &Digest, message: &[u8]) -> Result<Found, Failure> {
        let directory = match reapi::Directory::decode(message) {
            Ok(directory) => directory,
            Err(error) => return Ok(Found::Malformed(format!("is not a Directory: {error}"))),
        };
        let children: Result<Vec<_>, _> = directory
            .directories
            .iter()
            .map(|node| Digest::from_wire(digest.function(), node.digest.as_ref()))
            .collect();
        let children = match children {
            Ok(children) => children,
            Err(error) => return Ok(Found::Malformed(format!("directories.digest: {error}"))),
        };
        for child in children {
            if self.seen.insert(child) {
                self.queue.push_back(child);
            }
        }
        if self.seen.len() > DIRECTORIES_MAX {
            let message = format!("the tree has more than {DIRECTORIES_MAX} directories");
            return Err(Failure::new(Code::ResourceExhausted, message));
        }
        Ok(Found::Directory(directory))
    }
}
