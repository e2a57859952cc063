//! The standalone mode, wired: one process that is CAS, action cache, scheduler and worker.

use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use longshore_cas_store::blob::{BlobStore, Recovered, StoreOptions};
use longshore_cas_store::reap::Reaper;
use longshore_cas_store::record::RecordStore;
use longshore_cas_store::root::{StoreRoot, Trust};
use longshore_cas_store::source::NoSource;
use longshore_cas_store::tree::TreeLimits;
use longshore_cas_store::tree_cache::{DirectoryCache, DirectoryCacheOptions, DirectoryCacheParts};
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::action::{ActionOptions, ActionRunner, LocalSink};
use crate::cli::Cli;
use crate::environment::{OpenFiles, Threads, cores, environment};
use crate::frontend::embedded::{Embedded, Endpoint, Listener, Scheduler};
use crate::frontend::pump;
use crate::materialize::{HardlinkMaterializer, Materializer as _};
use crate::memory::give_back;
use crate::run::{DEFAULT_ACTION_USER, Identity, Spawner, SpawnerOptions};
use crate::status_line::{StatusLine, say, size};

/// Input trees that stay on the disk when no action uses them.
const TREES_MAX: usize = 10_000;
/// How long running actions may go on after the first signal to stop.
const DRAIN_MAX: Duration = Duration::from_mins(10);
/// How long open calls are waited for once the last action has ended.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// What has to be done while the process has one thread: the root is ours, and the helper is running.
pub struct Prepared {
    cli: Cli,
    root: StoreRoot,
    identity: Identity,
    spawner: Spawner,
    jobs: usize,
    threads: Threads,
    files: OpenFiles,
}

impl Prepared {
    /// The threads that are to be started.
    pub fn threads(&self) -> Threads {
        self.threads
    }
}

/// Claims the root, decides who actions run as, and starts the helper process.
pub fn prepare(cli: Cli) -> anyhow::Result<Prepared> {
    if !cli.listen.is_local() && !cli.allow_remote_clients {
        bail!(
            "{} can be reached by other machines, and there is no authentication: anyone who reaches the port runs \
             commands here. If that is what you want, say --allow-remote-clients",
            cli.listen
        );
    }
    let path = match &cli.root {
        Some(path) => path.clone(),
        None => default_root()
            .context("there is neither XDG_CACHE_HOME nor HOME: say where to store with --root")?,
    };
    let root = StoreRoot::claim(&path)?;
    let work = root.path().join("work");
    let identity = match &cli.action_user {
        Some(user) => Identity::of(&work, user)?,
        None => Identity::probe(&work, DEFAULT_ACTION_USER),
    };
    let spawner = Spawner::start(&SpawnerOptions::this_program(identity.clone()))?;
    let jobs = cli.jobs.map_or_else(cores, usize::from);
    // Only now: actions keep the limit that longshore was started with.
    let files = OpenFiles::raise_limit(jobs)?;
    Ok(Prepared { cli, root, identity, spawner, jobs, threads: Threads::of_this_machine(), files })
}

/// `longshore` in the user's cache directory, as the XDG Base Directory Specification has it.
fn default_root() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(caches.join("longshore"))
}

/// Runs until a signal stops it.
pub async fn run(prepared: Prepared) -> anyhow::Result<()> {
    let Prepared { cli, root, identity, spawner, jobs, threads, files } = prepared;
    let environment = environment(threads).context("cannot start threads")?;
    let size_bytes_max = match cli.max_size {
        Some(bytes) => bytes,
        None => default_size(root.path())?,
    };
    let (store, recovered) = BlobStore::open(&root, StoreOptions { size_bytes_max }, environment.clone())?;
    let reaper = Reaper::open(&root, environment.clone())?;
    let source = Arc::new(NoSource);
    let options = DirectoryCacheOptions {
        entries_max: TREES_MAX,
        size_bytes_max: u64::MAX,
        limits: TreeLimits::default(),
    };
    let parts = DirectoryCacheParts { store: store.clone(), source: source.clone(), reaper: reaper.clone() };
    let trees = DirectoryCache::open(&root, parts, options, environment.clone()).await?;
    root.vouch()?;
    let materializer = HardlinkMaterializer::new(
        &root,
        store.clone(),
        reaper.clone(),
        identity.owner(),
        environment.io.clone(),
    )?;

    let listener = Listener::bind(cli.listen.clone()).await?;
    let endpoint = listener.endpoint().clone();
    let greeting = Greeting {
        endpoint: &endpoint,
        root: &root,
        recovered,
        size_bytes_max,
        jobs,
        materializer: materializer.name(),
        identity: &identity,
        threads,
        files,
    };
    // Whoever read it may have gone.
    let _ = greet(&greeting, &mut io::stdout());

    let records = Arc::new(RecordStore::new(store.clone()));
    let embedded = Arc::new(Embedded::new(store.clone(), records, environment.clone()));
    let scheduler = embedded.scheduler().clone();
    let worker = Arc::new(ActionRunner {
        store: store.clone(),
        source,
        cache: trees.clone(),
        materializer: Arc::new(materializer),
        runner: Arc::new(spawner),
        sink: Arc::new(LocalSink),
        io: environment.io.clone(),
        clock: environment.clock.clone(),
        options: action_options(&cli),
    });
    let status_line = StatusLine::start(scheduler.clone(), store.clone());

    let stop = CancellationToken::new();
    let server = tokio::spawn({
        let (embedded, stop) = (embedded.clone(), stop.clone());
        async move { embedded.serve(listener, files.connections_max, stop.cancelled_owned()).await }
    });
    let giving_back =
        tokio::spawn(give_back(scheduler.clone(), environment.io.clone(), environment.clock.clone()));
    let work = tokio::spawn(pump(scheduler.clone(), worker.clone(), jobs, CancellationToken::new()));

    let mut signals = Signals::new()?;
    signals.next().await;
    embedded.drain().await;
    finish(work, &mut signals, &scheduler).await?;
    status_line.stop();
    giving_back.abort();
    stop.cancel();
    let _ = tokio::time::timeout(FAREWELL_MAX, server).await;
    drop((embedded, worker));
    drop(trees);
    let _ = tokio::time::timeout(DRAIN_MAX, reaper.settled()).await;
    drop(store);
    tokio::task::spawn_blocking(move || root.release()).await??;
    if let Endpoint::Unix(path) = &endpoint {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// Lets running actions end, unless somebody is in a hurry.
async fn finish(work: JoinHandle<()>, signals: &mut Signals, scheduler: &Scheduler) -> anyhow::Result<()> {
    match scheduler.stats().running {
        0 => say("stopping"),
        running => say(&format!("stopping when {running} running actions have ended; again to stop at once")),
    }
    tokio::select! {
        result = work => result?,
        () = signals.next() => {
            say("stopping at once");
            scheduler.cancel_all();
        }
        () = tokio::time::sleep(DRAIN_MAX) => scheduler.cancel_all(),
    }
    Ok(())
}

/// The signals that ask to stop.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// The terminal was closed; nothing where longshore was started to outlive it (nohup).
    hangup: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let hangup = if is_hangup_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup,
        })
    }

    async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Whether whoever started longshore had it ignore SIGHUP (proc(5), `SigIgn`: a bit for each signal from 1 on).
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    ignored.is_some_and(|set| set & 1 << (Signal::SIGHUP as u64 - 1) != 0)
}

fn action_options(cli: &Cli) -> ActionOptions {
    ActionOptions {
        worker: worker_name(),
        // The shorter one where both are set.
        timeout_default: [cli.default_timeout, cli.max_timeout].into_iter().flatten().min(),
        timeout_max: cli.max_timeout,
        platform_variable: cli.platform_variable.clone(),
        log_bytes_max: Some(cli.max_log_size),
    }
}

fn worker_name() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    host.unwrap_or_else(|| "longshore".to_owned())
}

/// Half of what the store has and the disk has free.
fn default_size(root: &Path) -> anyhow::Result<u64> {
    let disk = nix::sys::statvfs::statvfs(root)
        .with_context(|| format!("cannot ask for space of {}", root.display()))?;
    Ok(disk.blocks_available() * disk.fragment_size() / 2)
}

struct Greeting<'a> {
    endpoint: &'a Endpoint,
    root: &'a StoreRoot,
    recovered: Recovered,
    size_bytes_max: u64,
    jobs: usize,
    materializer: &'static str,
    identity: &'a Identity,
    threads: Threads,
    files: OpenFiles,
}

fn greet(greeting: &Greeting<'_>, to: &mut impl Write) -> io::Result<()> {
    let Greeting { endpoint, root, recovered, size_bytes_max, jobs, materializer, identity, threads, files } =
        greeting;
    let found = match root.trust() {
        Trust::Fresh => "nothing, it is new".to_owned(),
        Trust::Trusted => format!("{} blobs, {}", recovered.blobs, size(recovered.size_bytes)),
        Trust::Unverified => {
            format!(
                "{} blobs, {}, verified after an unclean stop",
                recovered.blobs,
                size(recovered.size_bytes)
            )
        }
    };
    writeln!(to, "longshore {} listens at {endpoint}", env!("CARGO_PKG_VERSION"))?;
    writeln!(to, "  stores in   {} (at most {})", root.path().display(), size(*size_bytes_max))?;
    writeln!(to, "  found       {found}")?;
    writeln!(to, "  input roots {materializer}")?;
    writeln!(to, "  actions     {jobs} at once, as {identity}")?;
    writeln!(
        to,
        "  at most     {} threads, {} connections, {} open files",
        threads.total(),
        files.connections_max,
        files.limit
    )?;
    writeln!(to)?;
    writeln!(to, "  bazel build --remote_executor={endpoint} //...")?;
    if io::stdout().is_terminal() {
        writeln!(to)?;
    }
    to.flush()
}
