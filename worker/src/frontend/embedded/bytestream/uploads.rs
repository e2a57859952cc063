//! Uploads that are not finished: which name is being written, and what is kept of those that broke off.
//!
//! Each name has one stream at a time; a newcomer takes the name over, and the stream before it is told to stop. What a
//! stream leaves behind is kept for whoever goes on with the name: a bounded number of beginnings, of bounded size
//! together, for a bounded time, the oldest given up first. They are given up, too, when the store needs the space.
//! The names that are in use are bounded as well, and what their streams need: beyond that what is kept goes first,
//! then the stream that has stood still longest has to stop, so that a newcomer never waits for those who do not go on.
//! Nothing here reads a stream, or knows what a name says.
//!
//! *Locking*: one lock, held for changes in memory; files are freed and streams awaited outside.

mod place;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use longshore_cas_store::blob::{PartialBlob, PressureRelief};
use longshore_cas_store::io::{Clock, Executor};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub(super) use self::place::Place;
use super::super::limits::{IDLE_MAX, KEPT_LOOK_EVERY, KEPT_LOOKS_MAX, KEPT_UPLOADS_MAX};

/// How much there may be of uploads that are not finished.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_field_names, reason = "each is a bound, and says of what")]
pub(super) struct UploadLimits {
    /// What is kept of those that broke off, on the disk.
    pub(super) kept_bytes_max: u64,
    /// Open and kept: each may have a file open.
    pub(super) count_max: usize,
    /// What the streams of those that are open may need in memory.
    pub(super) memory_bytes_max: u64,
}

/// Every upload that has begun and not ended.
pub(super) struct Uploads {
    state: Mutex<State>,
    limits: UploadLimits,
    /// One for each file.
    files: Arc<Semaphore>,
    /// Counts the steps of all uploads, to tell which one took the last step longest ago.
    steps: AtomicU64,
    clock: Arc<dyn Clock>,
    executor: Arc<dyn Executor>,
}

#[derive(Default)]
struct State {
    by_name: HashMap<String, Upload>,
    /// What is kept, together.
    kept_bytes: u64,
    /// What the streams need that have not been told to stop.
    memory_bytes: u64,
    /// How many of them there are.
    open: usize,
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

/// A time that is never long ago.
const NEVER: u64 = u64::MAX;

/// One stream's time with a name.
#[derive(Default)]
struct Turn {
    /// Somebody else wants the name, or the room.
    stop: CancellationToken,
    /// It has to stop because there are too many.
    gives_way: AtomicBool,
    memory_bytes: u64,
    last_step: AtomicU64,
    /// When that was, in seconds since the epoch; [`NEVER`] before it has any space.
    last_step_seconds: AtomicU64,
    /// The name is free.
    ended: CancellationToken,
    committed_bytes: AtomicU64,
    told_bytes: AtomicU64,
}

impl Uploads {
    /// Keeps to `limits`.
    pub(super) fn new(limits: UploadLimits, clock: Arc<dyn Clock>, executor: Arc<dyn Executor>) -> Arc<Self> {
        let files = Arc::new(Semaphore::new(limits.count_max));
        Arc::new(Self { state: Mutex::default(), limits, files, steps: AtomicU64::new(0), clock, executor })
    }

    /// Takes a name, and what is kept of it, from whoever has it; for a stream that needs `memory_bytes` at most.
    pub(super) async fn take(self: &Arc<Self>, name: &str, memory_bytes: u64) -> (Place, Option<Kept>) {
        loop {
            let turn = {
                let mut state = self.state.lock();
                if let Some(Upload::Open(turn)) = state.by_name.get(name) {
                    let turn = turn.clone();
                    state.stop(&turn);
                    turn
                } else {
                    let opened = self.open(&mut state, name, memory_bytes);
                    let victims = state.make_room(&self.limits, &opened.0.turn);
                    drop(state);
                    drop(victims);
                    return opened;
                }
            };
            turn.ended.cancelled().await;
        }
    }

    fn open(self: &Arc<Self>, state: &mut State, name: &str, memory_bytes: u64) -> (Place, Option<Kept>) {
        let turn = Arc::new(Turn { memory_bytes, ..Turn::default() });
        turn.last_step.store(self.steps.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        state.open += 1;
        state.memory_bytes += memory_bytes;
        let kept = state.remove_kept(name);
        let since = if kept.is_some() { self.seconds() } else { NEVER };
        turn.last_step_seconds.store(since, Ordering::Relaxed);
        if let Some(kept) = &kept {
            turn.committed_bytes.store(kept.partial.written_bytes(), Ordering::Relaxed);
            turn.told_bytes.store(kept.told_bytes, Ordering::Relaxed);
        }
        state.by_name.insert(name.to_owned(), Upload::Open(turn.clone()));
        (Place { uploads: self.clone(), name: name.to_owned(), turn }, kept)
    }

    fn step(&self, turn: &Turn) {
        turn.last_step.store(self.steps.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        turn.last_step_seconds.store(self.seconds(), Ordering::Relaxed);
    }

    fn seconds(&self) -> u64 {
        self.clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
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
            state.discount(turn);
            if let Some(partial) = partial.filter(|partial| partial.written_bytes() > 0) {
                state.keep(name, partial, turn.told_bytes.load(Ordering::Relaxed));
                victims = state.give_up_beyond(KEPT_UPLOADS_MAX, self.limits.kept_bytes_max);
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
        let (victims, stopped) = {
            let mut state = self.state.lock();
            let left_bytes = state.kept_bytes.saturating_sub(bytes);
            let victims = state.give_up_beyond(KEPT_UPLOADS_MAX, left_bytes);
            // A stream holds the space of its whole blob, whether it goes on or not.
            let stopped = victims.is_empty() && state.stop_idle(self.seconds());
            (victims, stopped)
        };
        stopped || !victims.is_empty()
    }
}

impl State {
    /// Tells a stream that has a name to stop, and counts it no longer.
    fn stop(&mut self, turn: &Turn) {
        self.discount(turn);
        turn.stop.cancel();
    }

    /// Counts a stream no longer, unless it was told to stop before.
    fn discount(&mut self, turn: &Turn) {
        if !turn.stop.is_cancelled() {
            self.open -= 1;
            self.memory_bytes -= turn.memory_bytes;
        }
    }

    /// Gives up what is kept, and stops those who have stood still longest, until `newest` has room.
    fn make_room(&mut self, limits: &UploadLimits, newest: &Arc<Turn>) -> Vec<Kept> {
        let kept_max = limits.count_max.saturating_sub(self.open);
        let victims = if self.by_name.len() > limits.count_max {
            self.give_up_beyond(kept_max, u64::MAX)
        } else {
            Vec::new()
        };
        while self.open > limits.count_max || self.memory_bytes > limits.memory_bytes_max {
            let others =
                self.open_turns().filter(|turn| !turn.stop.is_cancelled() && !Arc::ptr_eq(turn, newest));
            let stalest = others.min_by_key(|turn| turn.last_step.load(Ordering::Relaxed));
            let Some(stalest) = stalest.cloned() else { break };
            stalest.gives_way.store(true, Ordering::Relaxed);
            self.stop(&stalest);
        }
        victims
    }

    /// Stops the streams that have stood still for too long while others need the space; whether there are any.
    fn stop_idle(&mut self, now_seconds: u64) -> bool {
        let is_idle = |turn: &&Arc<Turn>| {
            let idle_seconds = now_seconds.saturating_sub(turn.last_step_seconds.load(Ordering::Relaxed));
            !turn.stop.is_cancelled() && idle_seconds >= IDLE_MAX.as_secs()
        };
        let idle: Vec<_> = self.open_turns().filter(is_idle).cloned().collect();
        for turn in &idle {
            turn.gives_way.store(true, Ordering::Relaxed);
            self.stop(turn);
        }
        !idle.is_empty()
    }

    fn open_turns(&self) -> impl Iterator<Item = &Arc<Turn>> {
        self.by_name.values().filter_map(|upload| match upload {
            Upload::Open(turn) => Some(turn),
            Upload::Kept(_) => None,
        })
    }

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
