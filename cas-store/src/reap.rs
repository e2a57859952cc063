//! Removal in the background: a rename into the trash now, the unlinking later. An action's folder with hardly anything
//! in it is spared the trash.
//!
//! Invariants: what is discarded is out of sight when [`Reaper::discard`] returns; `after` runs exactly once,
//! when the last name is gone or was found to be irremovable; nothing that an action leaves behind (modes,
//! owners, depth, width) stops the removal of the rest.
//!
//! *Throttling*: removal takes at most [`JOBS_MAX`] threads of the pool, in slices of [`SLICE_NAMES_MAX`]
//! names. A thread that waits for the end of its own fork-join work may be given a slice to pass the time; it
//! must not be kept for the length of a whole tree. What is spared the trash is a few names.
//!
//! *Locking*: the state's lock is held for changes of the queue only.
//!
//! *Crash safety*: the trash and the actions' folders hold nothing that anybody needs; what lies there when
//! the reaper is opened is removed.

mod removal;

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::channel::oneshot;
use nix::errno::Errno;
use parking_lot::Mutex;
use removal::Removal;

use crate::dir::{Dir, PathError};
use crate::io::{Environment, IoPool};
use crate::root::StoreRoot;

/// Threads that remove at once.
const JOBS_MAX: usize = 2;

/// Names that are removed before the thread is given back: about a millisecond's worth.
const SLICE_NAMES_MAX: usize = 128;

/// The mode that lets us into a directory of ours.
const OPEN_MODE: u32 = 0o700;

/// Removes folders in the background, whatever an action left in them.
pub struct Reaper {
    shared: Arc<Shared>,
}

struct Shared {
    io: IoPool,
    trash: Box<dyn Dir>,
    /// The next name in the trash.
    names: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Part>,
    jobs: usize,
    discards: u64,
    /// The numbers of what was discarded and is not gone yet.
    pending: BTreeSet<u64>,
    /// Who waits until everything up to a number is gone.
    waiters: Vec<(u64, oneshot::Sender<()>)>,
}

/// Something at the top of the trash: all or a part of what was discarded.
struct Part {
    name: PathBuf,
    whole: Arc<Whole>,
}

/// What was discarded by one call. When its last part is gone, so is this.
struct Whole {
    number: u64,
    after: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    shared: Arc<Shared>,
}

impl fmt::Debug for Reaper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pending = self.shared.state.lock().pending.len();
        f.debug_struct("Reaper").field("pending", &pending).finish_non_exhaustive()
    }
}

impl Reaper {
    /// Opens the trash of `root` and begins to remove what a crash left in it.
    pub fn open(root: &StoreRoot, environment: Environment) -> Result<Arc<Self>, PathError> {
        let reaper = Self::new(root.dir().open_dir(Path::new("trash"))?, environment.io)?;
        let work = root.dir().open_dir(Path::new("work"))?;
        for leftover in work.entries()? {
            reaper.discard(&*work, Path::new(&leftover.name), || {})?;
        }
        Ok(Arc::new(reaper))
    }

    /// Removes by way of `trash`, beginning with what is in it.
    fn new(trash: Box<dyn Dir>, io: IoPool) -> Result<Self, PathError> {
        let leftovers = trash.entries()?;
        let taken = leftovers.iter().filter_map(|entry| entry.name.to_str()?.parse::<u64>().ok());
        let names = AtomicU64::new(taken.max().map_or(0, |name| name.saturating_add(1)));
        let shared = Arc::new(Shared { io, trash, names, state: Mutex::default() });
        for leftover in leftovers {
            let whole = Whole::register(&shared, Box::new(|| {}));
            shared.enqueue(Part { name: PathBuf::from(leftover.name), whole });
        }
        Ok(Self { shared })
    }

    /// Renames `name` away at once, removes it in the background, and then runs `after`.
    ///
    /// `after` is where references are given back: bytes count as freed when the last name is gone. If `name`
    /// cannot be renamed, `after` runs before this returns.
    pub fn discard(
        &self,
        dir: &dyn Dir,
        name: &Path,
        after: impl FnOnce() + Send + 'static,
    ) -> Result<(), PathError> {
        match self.shared.bury(dir, name) {
            Ok(buried) => {
                let whole = Whole::register(&self.shared, Box::new(after));
                self.shared.enqueue(Part { name: buried, whole });
                Ok(())
            }
            Err(error) => {
                after();
                Err(error)
            }
        }
    }

    /// Like [`Reaper::discard`], but does no I/O on this thread: the renaming is left to the pool too.
    ///
    /// That `name` cannot be renamed is logged; `after` runs all the same.
    pub fn discard_later(&self, dir: Arc<dyn Dir>, name: PathBuf, after: impl FnOnce() + Send + 'static) {
        let whole = Whole::register(&self.shared, Box::new(after));
        let shared = self.shared.clone();
        self.shared.io.spawn(move || shared.bury_and_enqueue(&*dir, &name, whole));
    }

    /// Like [`Reaper::discard_later`], for what is cleared at the next start in any case: where there is hardly anything
    /// in it, it is removed where it is.
    pub fn discard_work_later(
        &self,
        dir: Arc<dyn Dir>,
        name: PathBuf,
        after: impl FnOnce() + Send + 'static,
    ) {
        let whole = Whole::register(&self.shared, Box::new(after));
        let shared = self.shared.clone();
        self.shared.io.spawn(move || {
            let is_gone = removal::remove_shallow(&*dir, &name).unwrap_or(false);
            if !is_gone {
                shared.bury_and_enqueue(&*dir, &name, whole);
            }
        });
    }

    /// Completes when everything discarded so far is gone.
    pub async fn settled(&self) {
        let receiver = {
            let mut state = self.shared.state.lock();
            let Some(last) = state.pending.last().copied() else { return };
            let (sender, receiver) = oneshot::channel();
            state.waiters.push((last, sender));
            receiver
        };
        // The sender goes only when it has sent.
        let _ = receiver.await;
    }
}

impl Shared {
    /// Moves the entry `name` of `dir` to the top of the trash, under a name of its own.
    fn bury(&self, dir: &dyn Dir, name: &Path) -> Result<PathBuf, PathError> {
        let buried = PathBuf::from(self.names.fetch_add(1, Ordering::Relaxed).to_string());
        match dir.rename_new(name, &*self.trash, &buried) {
            // A directory changes its parent, which takes the right to write in it.
            Err(error) if error.errno == Errno::EACCES => {
                dir.set_mode(name, OPEN_MODE)?;
                dir.rename_new(name, &*self.trash, &buried)?;
            }
            moved => moved?,
        }
        Ok(buried)
    }

    fn bury_and_enqueue(self: &Arc<Self>, dir: &dyn Dir, name: &Path, whole: Arc<Whole>) {
        match self.bury(dir, name) {
            Ok(name) => self.enqueue(Part { name, whole }),
            Err(error) => tracing::warn!(%error, "something cannot be moved to the trash"),
        }
    }

    fn enqueue(self: &Arc<Self>, part: Part) {
        let starts_job = {
            let mut state = self.state.lock();
            state.queue.push_back(part);
            let starts_job = state.jobs < JOBS_MAX;
            state.jobs += usize::from(starts_job);
            starts_job
        };
        if starts_job {
            let shared = self.clone();
            self.io.spawn(move || shared.work(None));
        }
    }

    /// Whether a thread would be there for a part more.
    fn has_idle_job(&self) -> bool {
        let state = self.state.lock();
        state.queue.is_empty() && state.jobs < JOBS_MAX
    }

    /// Removes one slice, and comes back for the next as another job of the pool.
    fn work(self: Arc<Self>, begun: Option<Removal>) {
        let Some(mut removal) = begun.or_else(|| self.next_removal()) else { return };
        let next = if removal.remove_slice(&self, SLICE_NAMES_MAX) {
            removal.finish();
            None
        } else {
            Some(removal)
        };
        let shared = self.clone();
        self.io.spawn(move || shared.work(next));
    }

    /// Begins with the next part; if there is none, the job ends.
    fn next_removal(&self) -> Option<Removal> {
        let mut state = self.state.lock();
        let part = state.queue.pop_front();
        state.jobs -= usize::from(part.is_none());
        part.map(Removal::new)
    }

    fn finished(&self, number: u64) {
        let ready: Vec<_> = {
            let mut state = self.state.lock();
            state.pending.remove(&number);
            let first = state.pending.first().copied().unwrap_or(u64::MAX);
            state.waiters.extract_if(.., |(last, _)| *last < first).collect()
        };
        for (_, waiter) in ready {
            let _ = waiter.send(());
        }
    }
}

impl Whole {
    /// Makes [`Reaper::settled`] wait for what is discarded with `after`.
    fn register(shared: &Arc<Shared>, after: Box<dyn FnOnce() + Send>) -> Arc<Self> {
        let number = {
            let mut state = shared.state.lock();
            state.discards += 1;
            let number = state.discards;
            state.pending.insert(number);
            number
        };
        Arc::new(Self { number, after: Mutex::new(Some(after)), shared: shared.clone() })
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if let Some(after) = self.after.get_mut().take() {
            after();
        }
        self.shared.finished(self.number);
    }
}

#[cfg(test)]
mod tests;
