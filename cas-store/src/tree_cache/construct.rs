//! The construction of one tree: load, pin, write out, publish.
//!
//! What is here is linked while the rest is fetched, and that is linked as it lands. Everything that is made
//! undoes itself when it is dropped, so that an error and a cancellation are the same.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt as _;

use super::TreeError;
use super::cache::{Landing, Shared};
use super::farm::{Farm, Rest};
use super::load::Fetching;
use super::parts::Parts;
use super::site::{Held, Site};
use crate::blob::{BlobPin, BlobPins, PinTreeError, StoreError};
use crate::digest::{Digest, FileKey};
use crate::source::BlobSource;
use crate::tree::DirectoryTree;

/// Blobs that are linked by one job after they landed.
const LANDED_A_JOB_MAX: usize = 512;

/// A construction under way.
pub(super) struct Construction {
    shared: Arc<Shared>,
    root: Digest,
    /// Where comes from what is not here.
    source: Arc<dyn BlobSource>,
    /// Keeps the flight's key while a job of the pool runs.
    landing: Arc<Landing>,
    is_stopped: StopOnDrop,
}

/// Tells the jobs of a construction that nobody wants it any more.
#[derive(Default)]
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Construction {
    pub(super) fn new(
        shared: Arc<Shared>,
        root: Digest,
        source: Arc<dyn BlobSource>,
        landing: Arc<Landing>,
    ) -> Self {
        Self { shared, root, source, landing, is_stopped: StopOnDrop::default() }
    }

    /// Builds the tree, publishes it, and hands it out.
    pub(super) async fn build(self) -> Result<(), TreeError> {
        let (shared, landing, is_stopped) =
            (self.shared.clone(), self.landing.clone(), self.is_stopped.0.clone());
        let build_now = move |tree: DirectoryTree, parts: Parts| {
            if is_stopped.load(Ordering::Relaxed) {
                // Everybody left while the job waited for a thread.
                return Ok(None);
            }
            let Some(held) = hold_now(&shared, &tree, &parts) else { return Ok(Some((tree, parts))) };
            let site = write_whole(&shared, &tree, held, &is_stopped)?;
            site.into_entry(tree).into_iter().for_each(|entry| landing.arrive(entry));
            Ok(None)
        };
        let loader = &self.shared.loader;
        let built = loader.load(self.root, &*self.source, self.landing.clone(), build_now).await?;
        let Some((tree, parts)) = built.map_err(|error| self.failed(error))? else { return Ok(()) };
        let site = self.build_in_steps(&tree, &parts).await?;
        site.into_entry(tree).into_iter().for_each(|entry| self.landing.arrive(entry));
        Ok(())
    }

    /// Builds a tree of which something is to be waited for.
    async fn build_in_steps(&self, tree: &DirectoryTree, parts: &Parts) -> Result<Site, TreeError> {
        let store = &self.shared.loader.store;
        let charge = store.charge(tree.totals.own_bytes()).await.map_err(|error| self.failed(error))?;
        let (pins, absent) = self.pin_present(parts).await?;
        let held = Held::new(pins, charge);
        if absent.is_empty() {
            self.build_whole(tree.clone(), held).await
        } else {
            self.build_and_fetch(tree.clone(), held, parts, absent).await
        }
    }

    /// Pins what is here of `parts`; the blobs of the rest are returned.
    async fn pin_present(&self, parts: &Parts) -> Result<(BlobPins, HashSet<Digest>), TreeError> {
        let store = &self.shared.loader.store;
        let mut absent = HashSet::new();
        let mut outcome = parts.pin(store).await;
        loop {
            match outcome {
                Ok(pins) => return Ok((pins, absent)),
                Err(PinTreeError::Store(error)) => return Err(self.failed(error)),
                // What was here a moment ago may have been evicted since.
                Err(PinTreeError::Missing(missing)) => absent.extend(missing),
            }
            outcome = parts.select(&absent, false).pin(store).await;
        }
    }

    /// Builds a tree all of whose blobs are here: one job.
    async fn build_whole(&self, tree: DirectoryTree, held: Held) -> Result<Site, TreeError> {
        let (shared, is_stopped) = (self.shared.clone(), self.is_stopped.0.clone());
        self.job(move || write_whole(&shared, &tree, held, &is_stopped)).await
    }

    /// Builds a tree while its `absent` blobs are fetched.
    async fn build_and_fetch(
        &self,
        tree: DirectoryTree,
        held: Held,
        parts: &Parts,
        absent: HashSet<Digest>,
    ) -> Result<Site, TreeError> {
        let store = self.shared.loader.store.clone();
        let mut fetching = Fetching::new(self.root, absent.len());
        let stream = self.source.fetch(absent.iter().copied().collect(), store);
        let mut landed = stream.ready_chunks(LANDED_A_JOB_MAX).peekable();
        let late = Late::new(parts.select(&absent, true));
        let present = self.build_present(tree, held, absent);
        // A fetch begins when it is first asked how far it is.
        let begun = async {
            Pin::new(&mut landed).peek().await;
            Ok(())
        };
        let ((mut site, mut rest), ()) = futures::future::try_join(present, begun).await?;
        while let Some(batch) = landed.next().await {
            let mut pins = Vec::new();
            for fetched in batch {
                pins.extend(fetching.take(fetched)?);
            }
            if !fetching.has_failed() {
                (site, rest) = self.plant(site, rest, &late, pins).await?;
            }
        }
        fetching.end();
        if fetching.has_failed() {
            return Err(fetching.into_error());
        }
        let root = self.root;
        let finish = move || {
            rest.finish(&site)?;
            site.publish(&root)?;
            Ok(site)
        };
        self.job(finish).await
    }

    /// Writes out what is here.
    async fn build_present(
        &self,
        tree: DirectoryTree,
        held: Held,
        absent: HashSet<Digest>,
    ) -> Result<(Site, Rest), TreeError> {
        let (shared, is_stopped) = (self.shared.clone(), self.is_stopped.0.clone());
        let build = move || {
            let (site, dir) = shared.grounds.break_ground(held)?;
            let farm = Farm::new(&shared.loader.store, &absent);
            let rest = farm.write(&tree, dir, &is_stopped)?;
            Ok((site, rest))
        };
        self.job(build).await
    }

    /// Writes out what has landed.
    async fn plant(
        &self,
        mut site: Site,
        mut rest: Rest,
        late: &Late,
        landed: Vec<BlobPin>,
    ) -> Result<(Site, Rest), TreeError> {
        let shared = self.shared.clone();
        let digests: Vec<_> = landed.iter().map(|pin| *pin.digest()).collect();
        let pins = late.select(&digests).pin(&shared.loader.store).await.map_err(|error| match error {
            PinTreeError::Store(error) => self.failed(error),
            PinTreeError::Missing(missing) => self.failed(StoreError::NotFound(missing[0])),
        })?;
        drop(landed);
        site.hold(pins);
        let plant = move || {
            rest.plant(&shared.loader.store, &digests, &*site.open()?)?;
            Ok((site, rest))
        };
        self.job(plant).await
    }

    /// Runs a part of the work on the pool. The flight's key stays until it has ended, whatever becomes of us.
    async fn job<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, TreeError> {
        let landing = self.landing.clone();
        // The outcome comes first: where nobody takes it, what it holds is undone before the key goes.
        let (outcome, _landing) = self.shared.loader.io.run(move || (work(), landing)).await;
        outcome.map_err(|error| self.failed(error))
    }

    fn failed(&self, reason: StoreError) -> TreeError {
        TreeError::Store { root: self.root, reason }
    }
}

/// What a tree holds, if all of it is here and nothing has to be waited for.
fn hold_now(shared: &Shared, tree: &DirectoryTree, parts: &Parts) -> Option<Held> {
    let store = &shared.loader.store;
    let charge = store.charge_now(tree.totals.own_bytes())?;
    Some(Held::new(parts.pin_now(store)?, charge))
}

/// Writes out and publishes a tree all of whose blobs are here. Blocks.
///
/// One that was stopped is not complete, and not published: after a crash it would be taken for whole.
fn write_whole(
    shared: &Shared,
    tree: &DirectoryTree,
    held: Held,
    is_stopped: &AtomicBool,
) -> Result<Site, StoreError> {
    let (mut site, dir) = shared.grounds.break_ground(held)?;
    let absent = HashSet::new();
    let rest = Farm::new(&shared.loader.store, &absent).write(tree, dir, is_stopped)?;
    if is_stopped.load(Ordering::Relaxed) {
        return Ok(site);
    }
    rest.finish(&site)?;
    site.publish(&tree.digest)?;
    Ok(site)
}

/// The parts that were not here at first, by their blobs.
struct Late {
    directories: HashSet<Digest>,
    keys: HashMap<Digest, Vec<FileKey>>,
}

impl Late {
    fn new(parts: Parts) -> Self {
        let mut keys: HashMap<Digest, Vec<FileKey>> = HashMap::new();
        for key in parts.keys {
            keys.entry(key.digest).or_default().push(key);
        }
        Self { directories: parts.directories.into_iter().collect(), keys }
    }

    fn select(&self, digests: &[Digest]) -> Parts {
        Parts {
            directories: digests.iter().copied().filter(|digest| self.directories.contains(digest)).collect(),
            keys: digests.iter().filter_map(|digest| self.keys.get(digest)).flatten().copied().collect(),
        }
    }
}
