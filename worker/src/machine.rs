//! What every mode takes of its machine: a root, the process that starts actions, threads, and on them the store, the
//! input trees and what runs actions.
//!
//! It is taken in two steps: [`Claimed`] while the process has one thread, [`Machine`] on the runtime.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use longshore_cas_store::blob::{BlobStore, Recovered, StoreError, StoreOptions};
use longshore_cas_store::io::Environment;
use longshore_cas_store::reap::Reaper;
use longshore_cas_store::root::{StoreRoot, Trust};
use longshore_cas_store::tree::TreeLimits;
use longshore_cas_store::tree_cache::{DirectoryCache, DirectoryCacheOptions, DirectoryCacheParts};

use crate::action::{ActionOptions, ActionRunner, Storage};
use crate::config::{MachineOptions, Size};
use crate::environment::{OpenFiles, Threads, cores, environment};
use crate::materialize::{HardlinkMaterializer, Materializer};
use crate::run::{DEFAULT_ACTION_USER, Identity, Spawner, SpawnerOptions};
use crate::signals::Signals;
use crate::status_line::{say, size};

/// Input trees that stay on the disk when no action uses them.
const TREES_MAX: usize = 10_000;
/// How long what is being removed is waited for.
const SETTLE_MAX: Duration = Duration::from_mins(10);

/// What has to be done while the process has one thread: the root is ours, and the helper is running.
pub(crate) struct Claimed {
    pub(crate) options: MachineOptions,
    pub(crate) threads: Threads,
    /// The folder of all data.
    pub(crate) root: StoreRoot,
    identity: Identity,
    spawner: Spawner,
    jobs: usize,
    files: OpenFiles,
}

impl Claimed {
    /// Claims the root, decides who actions run as, and starts the helper process.
    pub(crate) fn claim(options: MachineOptions) -> anyhow::Result<Self> {
        let path = match &options.root {
            Some(path) => path.clone(),
            None => default_root()
                .context("there is neither XDG_CACHE_HOME nor HOME: say where to store with --root")?,
        };
        let root = StoreRoot::claim(&path)?;
        let work = root.path().join("work");
        let identity = match &options.action_user {
            Some(user) => Identity::of(&work, user)?,
            None => Identity::probe(&work, DEFAULT_ACTION_USER),
        };
        let spawner = Spawner::start(&SpawnerOptions::this_program(identity.clone()))?;
        let jobs = options.jobs.map_or_else(cores, crate::config::Jobs::get);
        // Only now: actions keep the limit that longshore was started with.
        let files = OpenFiles::raise_limit(jobs)?;
        Ok(Self { options, threads: Threads::of_this_machine(), root, identity, spawner, jobs, files })
    }
}

/// `longshore` in the user's cache directory, as the XDG Base Directory Specification has it.
fn default_root() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(caches.join("longshore"))
}

/// A machine that can run actions.
pub(crate) struct Machine {
    pub(crate) options: MachineOptions,
    pub(crate) environment: Environment,
    pub(crate) store: Arc<BlobStore>,
    pub(crate) jobs: usize,
    pub(crate) files: OpenFiles,
    root: StoreRoot,
    recovered: Recovered,
    size_bytes_max: u64,
    identity: Identity,
    threads: Threads,
    reaper: Arc<Reaper>,
    pub(crate) trees: Arc<DirectoryCache>,
    materializer: Arc<HardlinkMaterializer>,
    spawner: Arc<Spawner>,
}

impl Machine {
    /// Opens what is in the root.
    pub(crate) async fn open(claimed: Claimed) -> anyhow::Result<Self> {
        let Claimed { options, threads, root, identity, spawner, jobs, files } = claimed;
        let environment = environment(threads).context("cannot start threads")?;
        if root.trust() == Trust::Unverified {
            say("verifying what is stored: the machine went down before it was written back");
        }
        let (root, opened) = open_store(root, options.max_size, environment.clone()).await?;
        let (store, recovered) = opened?;
        let reaper = Reaper::open(&root, environment.clone())?;
        let cache_options = DirectoryCacheOptions {
            entries_max: TREES_MAX,
            size_bytes_max: u64::MAX,
            limits: TreeLimits::default(),
        };
        let parts = DirectoryCacheParts { store: store.clone(), reaper: reaper.clone() };
        let trees = DirectoryCache::open(&root, parts, cache_options, environment.clone()).await?;
        root.vouch()?;
        let size_bytes_max = match options.max_size {
            Some(size) => size.bytes,
            None => default_size(root.path(), store.stats().size_bytes)?,
        };
        store.limit_to(size_bytes_max);
        let io = environment.io.clone();
        let materializer =
            HardlinkMaterializer::new(&root, store.clone(), reaper.clone(), identity.owner(), io)?;
        Ok(Self {
            options,
            environment,
            store,
            jobs,
            files,
            root,
            recovered,
            size_bytes_max,
            identity,
            threads,
            reaper,
            trees,
            materializer: Arc::new(materializer),
            spawner: Arc::new(spawner),
        })
    }

    /// What runs actions whose clients use `storage`; whatever `OSFamily` and `ISA` they ask for, if it is `any_platform`.
    pub(crate) fn runner(
        &self,
        name: &str,
        storage: Arc<dyn Storage>,
        any_platform: bool,
    ) -> Arc<ActionRunner> {
        Arc::new(ActionRunner {
            store: self.store.clone(),
            storage,
            cache: self.trees.clone(),
            materializer: self.materializer.clone(),
            runner: self.spawner.clone(),
            io: self.environment.io.clone(),
            clock: self.environment.clock.clone(),
            options: action_options(&self.options, name, any_platform),
        })
    }

    /// Says what is here and how much is taken, a line each.
    pub(crate) fn describe(&self, to: &mut impl Write) -> io::Result<()> {
        let Self { recovered, threads, files, .. } = self;
        let found = format!("{} blobs, {}", recovered.blobs, size(recovered.size_bytes));
        let found = match self.root.trust() {
            Trust::Fresh => "nothing, it is new".to_owned(),
            Trust::Trusted => found,
            Trust::Unverified => format!("{found}, verified after an unclean stop"),
        };
        writeln!(to, "  stores in   {} (at most {})", self.root.path().display(), size(self.size_bytes_max))?;
        writeln!(to, "  found       {found}")?;
        writeln!(to, "  input roots {}", self.materializer.name())?;
        writeln!(to, "  actions     {} at once, as {}", self.jobs, self.identity)?;
        writeln!(to, "  at most     {} threads, {} open files", threads.total(), files.limit)
    }

    /// Waits until longshore has to stop: somebody asks for it, or, as an error, no action can be started any more.
    pub(crate) async fn until_stop(&self, signals: &mut Signals) -> anyhow::Result<()> {
        let ended = tokio::select! {
            () = signals.next() => return Ok(()),
            ended = self.spawner.helper_ended() => ended.context("cannot wait for the helper process")?,
        };
        tracing::error!(
            "the helper process has ended: {ended}; no action can be started, so longshore stops"
        );
        bail!("stopped because the helper process had ended: {ended}");
    }

    /// Leaves everything as the next one wants to find it. Whoever holds a part of it has let it go.
    pub(crate) async fn close(self) -> anyhow::Result<()> {
        let Self { root, reaper, store, trees, materializer, spawner, .. } = self;
        drop((trees, materializer, spawner));
        let _ = tokio::time::timeout(SETTLE_MAX, reaper.settled()).await;
        drop(store);
        tokio::task::spawn_blocking(move || root.release()).await??;
        Ok(())
    }
}

fn action_options(options: &MachineOptions, name: &str, any_platform: bool) -> ActionOptions {
    ActionOptions {
        worker: name.to_owned(),
        // The shorter one where both are set.
        timeout_default: [options.default_timeout, options.max_timeout]
            .into_iter()
            .flatten()
            .min()
            .map(|t| t.0),
        timeout_max: options.max_timeout.map(|time| time.0),
        platform_variable: options.platform_variable.clone().map(|variable| variable.0),
        any_platform,
        log_bytes_max: Some(options.log_bytes_max()),
    }
}

/// What this machine is called.
pub(crate) fn host_name() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    host.unwrap_or_else(|| "longshore".to_owned())
}

/// Opens the store on a thread that may block: verifying takes long, and signals are to be heard meanwhile.
async fn open_store(
    root: StoreRoot,
    max_size: Option<Size>,
    environment: Environment,
) -> anyhow::Result<(StoreRoot, Result<(Arc<BlobStore>, Recovered), StoreError>)> {
    // Where nothing is said, the limit depends on what is found.
    let options = StoreOptions { size_bytes_max: max_size.map_or(u64::MAX, |size| size.bytes) };
    let open = move || {
        let opened = BlobStore::open(&root, options, environment);
        (root, opened)
    };
    Ok(tokio::task::spawn_blocking(open).await?)
}

/// Half of what the store has and the disk has free: the same after a restart, however full the store is.
fn default_size(root: &Path, stored_bytes: u64) -> anyhow::Result<u64> {
    let disk = nix::sys::statvfs::statvfs(root)
        .with_context(|| format!("cannot ask for space of {}", root.display()))?;
    let half = half(stored_bytes, disk.blocks_available() * disk.fragment_size());
    half.with_context(|| {
        format!(
            "the disk of {} is full: half of what the store has and the disk has free are less than 1MiB. Make room, \
             or say --max-size",
            root.display()
        )
    })
}

/// Half of both; nothing where that is too little for a store.
fn half(stored_bytes: u64, free_bytes: u64) -> Option<u64> {
    Some(stored_bytes.saturating_add(free_bytes) / 2).filter(|bytes| *bytes >= Size::MIN.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    // What is cached is found again at the next start.
    #[test]
    fn the_default_limit_is_the_same_however_full_the_store_is() {
        let disk_bytes = 100 << 30;
        let fresh = half(0, disk_bytes).unwrap();
        for stored_bytes in [1 << 30, fresh / 2, fresh] {
            assert_eq!(half(stored_bytes, disk_bytes - stored_bytes), Some(fresh));
        }
    }

    #[test]
    fn a_disk_without_room_for_a_store_is_refused() {
        assert_eq!((half(0, 2 << 20), half(0, (2 << 20) - 1)), (Some(1 << 20), None));
    }
}
