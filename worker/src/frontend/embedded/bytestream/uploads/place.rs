//! One stream's place among the uploads: what it may do with its name, and when it has to stop.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::FutureExt as _;
use futures::channel::oneshot;
use longshore_cas_store::blob::{BlobWriter, PartialBlob};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Code;

use super::{Turn, Uploads};
use crate::status::Failure;

/// The right to write under a name.
pub(in super::super) struct Place {
    pub(super) uploads: Arc<Uploads>,
    pub(super) name: String,
    pub(super) turn: Arc<Turn>,
}

impl Place {
    /// The right to have a file, once those that gave way have closed theirs.
    pub(in super::super) async fn file(&self) -> OwnedSemaphorePermit {
        let files = self.uploads.files.clone();
        files.acquire_owned().await.expect("nobody closes it")
    }

    /// Completes when the stream has to stop, with the reason.
    pub(in super::super) fn stopped(&self) -> impl Future<Output = Failure> + Send + use<> {
        let turn = self.turn.clone();
        async move {
            turn.stop.cancelled().await;
            let reason = if turn.gives_way.load(Ordering::Relaxed) {
                "others need the room, and this upload has stood still longest"
            } else {
                "another stream goes on with this upload"
            };
            Failure::new(Code::Aborted, reason)
        }
    }

    /// Says that the stream goes on, and how much is committed.
    pub(in super::super) fn committed(&self, bytes: u64) {
        self.turn.committed_bytes.store(bytes, Ordering::Relaxed);
        self.uploads.step(&self.turn);
    }

    /// Leaves what is written so far to whoever comes next; how much that is.
    ///
    /// What is under way goes on if the caller stops waiting.
    pub(in super::super) fn suspend(self, writer: BlobWriter) -> impl Future<Output = u64> + Send {
        let (sender, receiver) = oneshot::channel();
        let executor = self.uploads.executor.clone();
        executor.spawn(Box::pin(async move {
            let partial = writer.suspend().await;
            let partial = partial.inspect_err(|error| tracing::debug!(%error, "an upload is given up")).ok();
            let written_bytes = partial.as_ref().map_or(0, PartialBlob::written_bytes);
            self.put_back(partial);
            // The stream may be gone.
            let _ = sender.send(written_bytes);
        }));
        receiver.map(Result::unwrap_or_default)
    }

    /// Leaves `partial` to whoever comes next.
    pub(in super::super) fn put_back(self, partial: Option<PartialBlob>) {
        let name = self.name.clone();
        self.uploads.leave(name, &self.turn, partial);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.turn.ended.is_cancelled() {
            self.uploads.leave(std::mem::take(&mut self.name), &self.turn, None);
        }
    }
}
