//! Uploads that are not finished: which name is being written, and what is kept of those that broke off.
//!
//! Each name has one stream at a time; a newcomer takes the name over, and the stream before it is told to stop. What a
//! stream leaves behind is kept for whoever goes on with the name: a bounded number of beginnings, of bounded size
//! together, for a bounded time, the oldest given up first. They are given up, too, when the store needs the space.
//! Nothing here reads a stream, or knows what a name says.
//!
//! *Locking*: one lock, held for changes in memory; files are freed and streams awaited outside.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use futures::FutureExt as _;
use futures::channel::oneshot;
use longshore_cas_store::blob::{BlobWriter, PartialBlob, PressureRelief};
use longshore_cas_store::io::{Clock, Executor};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::super::limits::{KEPT_LOOK_EVERY, KEPT_LOOKS_MAX, KEPT_UPLOADS_MAX};

/// Every upload that has begun and not ended.
pub(super) struct Uploads {
    state: Mutex<State>,
    kept_bytes_max: u64,
    clock: Arc<dyn Clock>,
    executor: Arc<dyn Executor>,
}

#[derive(Default)]
struct State {
    by_name: HashMap<String, Upload>,
    /// What is kept, together.
    kept_bytes: u64,
    /// The number of the next beginning.
    next_order: u64,
    is_watched: bool,
}

enum Upload {
    /// A stream has the name.
    Open(Arc<Turn>),
    /// None has, and this is what the last one left.
    Kept(Kept),
}

/// What is kept of an upload.
pub(super) struct Kept {
    /// The beginning of the blob.
    pub(super) partial: PartialBlob,
    /// How many bytes a client was told are committed, when there may have been fewer than there are now.
    pub(super) told_bytes: u64,
    order: u64,
    /// How often the clock has looked at it since it was set aside.
    looks: u32,
}

/// One stream's time with a name.
#[derive(Default)]
struct Turn {
    /// Somebody else wants the name.
    stop: CancellationToken,
    /// The name is free.
    ended: CancellationToken,
    committed_bytes: AtomicU64,
    told_bytes: AtomicU64,
}

impl Uploads {
    /// Keeps at most `kept_bytes_max` of what is not finished.
    pub(super) fn new(kept_bytes_max: u64, clock: Arc<dyn Clock>, executor: Arc<dyn Executor>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), kept_bytes_max, clock, executor })
    }

    /// Takes a name, and what is kept of it, from whoever has it.
    pub(super) async fn take(self: &Arc<Self>, name: &str) -> (Place, Option<Kept>) {
        loop {
            let turn = {
                let mut state = self.state.lock();
                match state.by_name.get(name) {
                    Some(Upload::Open(turn)) => turn.clone(),
                    _ => return self.open(&mut state, name),
                }
            };
            turn.stop.cancel();
            turn.ended.cancelled().await;
        }
    }

    fn open(self: &Arc<Self>, state: &mut State, name: &str) -> (Place, Option<Kept>) {
        let turn = Arc::new(Turn::default());
        let kept = state.remove_kept(name);
        if let Some(kept) = &kept {
            turn.committed_bytes.store(kept.partial.written_bytes(), Ordering::Relaxed);
            turn.told_bytes.store(kept.told_bytes, Ordering::Relaxed);
        }
        state.by_name.insert(name.to_owned(), Upload::Open(turn.clone()));
        (Place { uploads: self.clone(), name: name.to_owned(), turn }, kept)
    }

    /// How much of an unfinished upload is committed.
    pub(super) fn committed_bytes(&self, name: &str) -> Option<u64> {
        let mut state = self.state.lock();
        match state.by_name.get_mut(name)? {
            Upload::Open(turn) => {
                let committed_bytes = turn.committed_bytes.load(Ordering::Relaxed);
                turn.told_bytes.store(committed_bytes, Ordering::Relaxed);
                Some(committed_bytes)
            }
            Upload::Kept(kept) => Some(kept.partial.written_bytes()),
        }
    }

    /// Frees a name for whoever is next, and keeps what there is for it.
    fn leave(self: &Arc<Self>, name: String, turn: &Turn, partial: Option<PartialBlob>) {
        let mut victims = Vec::new();
        let mut watch = false;
        {
            let mut state = self.state.lock();
            state.by_name.remove(&name);
            if let Some(partial) = partial.filter(|partial| partial.written_bytes() > 0) {
                state.keep(name, partial, turn.told_bytes.load(Ordering::Relaxed));
                victims = state.give_up_beyond(KEPT_UPLOADS_MAX, self.kept_bytes_max);
                watch = !std::mem::replace(&mut state.is_watched, true);
            }
        }
        turn.ended.cancel();
        drop(victims);
        if watch {
            self.executor.spawn(Box::pin(Self::watch(Arc::downgrade(self), self.clock.clone())));
        }
    }

    /// Gives up what nobody came back for, until nothing is kept.
    async fn watch(uploads: Weak<Self>, clock: Arc<dyn Clock>) {
        loop {
            clock.sleep(KEPT_LOOK_EVERY).await;
            let Some(uploads) = uploads.upgrade() else { return };
            let (expired, is_empty) = uploads.state.lock().look();
            if !expired.is_empty() {
                tracing::debug!(count = expired.len(), "uploads that nobody finished are given up");
            }
            drop(expired);
            if is_empty {
                return;
            }
        }
    }
}

impl PressureRelief for Uploads {
    fn relieve(&self, bytes: u64) -> bool {
        let victims = {
            let mut state = self.state.lock();
            let left_bytes = state.kept_bytes.saturating_sub(bytes);
            state.give_up_beyond(KEPT_UPLOADS_MAX, left_bytes)
        };
        !victims.is_empty()
    }
}

impl State {
    fn keep(&mut self, name: String, partial: PartialBlob, told_bytes: u64) {
        let written_bytes = partial.written_bytes();
        self.kept_bytes += written_bytes;
        self.next_order += 1;
        // Who begins anew has less than was told before.
        let told_bytes = told_bytes.min(written_bytes);
        let kept = Kept { partial, told_bytes, order: self.next_order, looks: 0 };
        self.by_name.insert(name, Upload::Kept(kept));
    }

    fn remove_kept(&mut self, name: &str) -> Option<Kept> {
        let Upload::Kept(kept) = self.by_name.remove(name)? else {
            unreachable!("who has a name gives it up itself");
        };
        self.kept_bytes -= kept.partial.written_bytes();
        Some(kept)
    }

    /// Removes the oldest beginnings until no more are left than that.
    fn give_up_beyond(&mut self, count_max: usize, bytes_max: u64) -> Vec<Kept> {
        let mut kept: Vec<_> = self.kept().map(|(name, kept)| (kept.order, name.clone())).collect();
        let mut count = kept.len();
        if count <= count_max && self.kept_bytes <= bytes_max {
            return Vec::new();
        }
        kept.sort_unstable();
        let mut victims = Vec::new();
        for (_, name) in kept {
            if count <= count_max && self.kept_bytes <= bytes_max {
                break;
            }
            victims.extend(self.remove_kept(&name));
            count -= 1;
        }
        victims
    }

    /// Looks at everything that is kept: what has been seen too often, and whether nothing is left.
    fn look(&mut self) -> (Vec<Kept>, bool) {
        let mut expired = Vec::new();
        for (name, upload) in &mut self.by_name {
            if let Upload::Kept(kept) = upload {
                kept.looks += 1;
                if kept.looks >= KEPT_LOOKS_MAX {
                    expired.push(name.clone());
                }
            }
        }
        let expired: Vec<_> = expired.iter().filter_map(|name| self.remove_kept(name)).collect();
        let is_empty = self.kept().next().is_none();
        self.is_watched = !is_empty;
        (expired, is_empty)
    }

    fn kept(&self) -> impl Iterator<Item = (&String, &Kept)> {
        self.by_name.iter().filter_map(|(name, upload)| match upload {
            Upload::Kept(kept) => Some((name, kept)),
            Upload::Open(_) => None,
        })
    }
}

/// The right to write under a name.
pub(super) struct Place {
    uploads: Arc<Uploads>,
    name: String,
    turn: Arc<Turn>,
}

impl Place {
    /// Completes when somebody else wants the name.
    pub(super) fn taken_over(&self) -> impl Future<Output = ()> + Send + use<> {
        self.turn.stop.clone().cancelled_owned()
    }

    /// Says how much is committed.
    pub(super) fn committed(&self, bytes: u64) {
        self.turn.committed_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Leaves what is written so far to whoever comes next; how much that is.
    ///
    /// What is under way goes on if the caller stops waiting.
    pub(super) fn suspend(self, writer: BlobWriter) -> impl Future<Output = u64> + Send {
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
    pub(super) fn put_back(self, partial: Option<PartialBlob>) {
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
