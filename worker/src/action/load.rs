//! The messages that an action consists of, from the store or from where the store fetches.

use futures::StreamExt as _;
use longshore_cas_store::blob::BlobPin;
use longshore_cas_store::digest::Digest;
use longshore_cas_store::source::{BlobSource, FetchError};
use longshore_proto::Message;

use super::ActionRunner;
use crate::status::Failure;

/// The largest Action or Command that is read into memory, in bytes.
const MESSAGE_BYTES_MAX: u64 = 64 << 20;

impl ActionRunner {
    /// Reads the message `digest`, which errors call `what`; it comes from `source`, if it is not here.
    pub(super) async fn load<M: Message + Default>(
        &self,
        what: &str,
        digest: Digest,
        source: &dyn BlobSource,
    ) -> Result<M, Failure> {
        let size_bytes = digest.size_bytes();
        if size_bytes > MESSAGE_BYTES_MAX {
            let reason = format!("{size_bytes} bytes, at most {MESSAGE_BYTES_MAX} are read");
            return Err(Failure::invalid(format!("{what} {digest} is too large: {reason}")));
        }
        let pin = match self.store.pin(&digest) {
            Some(pin) => Ok(pin),
            None => self.fetch(digest, source).await,
        };
        let pin = pin.map_err(|error| Failure::of_fetch(what, &digest, &error))?;
        let bytes = self.store.read(&pin, 0..size_bytes).await;
        let bytes = bytes.map_err(|error| Failure::of_store(what, &error))?;
        M::decode(bytes)
            .map_err(|error| Failure::invalid(format!("{what} {digest} cannot be parsed: {error}")))
    }

    async fn fetch(&self, digest: Digest, source: &dyn BlobSource) -> Result<BlobPin, FetchError> {
        let mut fates = source.fetch(vec![digest], self.store.clone());
        match fates.next().await {
            Some(fate) => fate.outcome,
            None => Err(FetchError::Unavailable {
                origin: "blob source".to_owned(),
                reason: "it ended without an answer".to_owned(),
            }),
        }
    }
}
