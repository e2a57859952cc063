//! What is fetched from the server. A blob that it has not, or cannot give, costs no more than that blob; a server that is
//! gone, or wants nothing of us, ends the download.

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use longshore_cas_store::blob::{BlobPin, StoreError};
use longshore_cas_store::digest::Digest;
use longshore_cas_store::source::{FetchError, Fetched};

use super::server::Server;

/// Blobs that a server which answers cannot give: after more of them it is the server that is of no use.
const UNREADABLE_MAX: usize = 20;

/// Blobs that come one after the other, in any order.
pub(crate) struct Download<'s> {
    server: &'s Server,
    fetches: BoxStream<'static, Fetched>,
    /// What calls for many blobs did not bring: it may be another one that they failed for.
    again: Vec<Digest>,
    is_alone: bool,
    /// Whether the server answered something else after the last failure.
    has_answered: bool,
    unreadable: usize,
}

impl<'s> Download<'s> {
    pub(super) fn new(server: &'s Server, wanted: Vec<Digest>) -> Self {
        let fetches = server.fetch(wanted);
        Self { server, fetches, again: Vec::new(), is_alone: false, has_answered: false, unreadable: 0 }
    }

    /// The next blob, or what is wrong with it.
    ///
    /// # Errors
    /// [`FetchError::Unavailable`] for a server that cannot be used, [`FetchError::Store`] for our disk.
    pub(crate) async fn next(&mut self) -> Result<Option<(Digest, Result<BlobPin, String>)>, FetchError> {
        loop {
            let Some(Fetched { digest, outcome }) = self.fetches.next().await else {
                if self.again.is_empty() {
                    return Ok(None);
                }
                self.ask_alone();
                continue;
            };
            let error = match outcome {
                Ok(pin) => {
                    self.has_answered = false;
                    return Ok(Some((digest, Ok(pin))));
                }
                Err(error) => error,
            };
            if let Some(reason) = wrong_there(&error) {
                return Ok(Some((digest, Err(reason))));
            }
            if !matches!(error, FetchError::Unavailable { .. }) || !self.answers(&digest).await {
                return Err(error);
            }
            if !self.is_alone {
                self.again.push(digest);
                continue;
            }
            self.unreadable += 1;
            if self.unreadable > UNREADABLE_MAX {
                return Err(error);
            }
            return Ok(Some((digest, Err(format!("cannot be read: {error}")))));
        }
    }

    /// Asks once more for what did not come, a blob at a time.
    fn ask_alone(&mut self) {
        self.is_alone = true;
        self.has_answered = false;
        let alone: Vec<_> = self.again.drain(..).map(|digest| self.server.fetch(vec![digest])).collect();
        self.fetches = stream::iter(alone).flatten().boxed();
    }

    /// Whether the server is there all the same; a call that failed for many blobs is a reason to ask once.
    async fn answers(&mut self, digest: &Digest) -> bool {
        if self.is_alone || !self.has_answered {
            self.has_answered = self.server.answers(digest).await;
        }
        self.has_answered
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
