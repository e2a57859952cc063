//! The worker mode, wired: actions from schedulers elsewhere, blobs from and to their clients' CAS.
//!
//! Everything of this machine is shared by all schedulers: the store, the input trees, and the slots that actions run
//! in. What differs is where an action's blobs come from and where its outputs go: each scheduler names a CAS, and
//! those that name the same one share its client.

mod storage;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::root::StoreRoot;
use tokio::task::JoinSet;

use crate::action::ActionRunner;
use crate::cli::WorkerArgs;
use crate::config::{Config, Jobs, Kind, Name, SchedulerConfig};
use crate::connect::{Link, Pings};
use crate::environment::Threads;
use crate::frontend::bots::Bots;
use crate::frontend::buildbarn::Buildbarn;
use crate::frontend::nativelink::NativeLink;
use crate::frontend::{SchedulerOptions, Slots, WorkSource, bots, buildbarn, nativelink, pump};
use crate::machine::{Claimed, Machine, host_name};
use crate::memory::give_back;
use crate::signals::Signals;
use crate::status_line::{StatusLine, say, size};
use storage::Remotes;

/// How long schedulers may take to hear that this worker leaves.
const FAREWELL_MAX: Duration = Duration::from_secs(10);
/// How long actions that were stopped may take to end, and their results to be delivered.
const STOP_MAX: Duration = Duration::from_secs(10);
/// The file in the root that keeps the worker's own part of its name.
const ID_FILE: &str = "worker-id";

/// What has to be done while the process has one thread.
pub struct Prepared {
    config: PathBuf,
    schedulers: Vec<SchedulerConfig>,
    name: String,
    claimed: Claimed,
}

impl Prepared {
    /// The threads that are to be started.
    pub fn threads(&self) -> Threads {
        self.claimed.threads
    }
}

/// Reads the configuration, claims the root, decides who actions run as, and starts the helper process.
pub fn prepare(args: WorkerArgs) -> anyhow::Result<Prepared> {
    let path = args.config.context("there is no configuration: say which with --config")?;
    let Config { worker, schedulers } = Config::read(&path)?;
    let mut claimed = Claimed::claim(args.machine.or(worker))?;
    claimed.threads = claimed.threads.and_schedulers(schedulers.len());
    let name = match &claimed.options.name {
        Some(Name(name)) => name.clone(),
        None => own_name(&claimed.root)?,
    };
    Ok(Prepared { config: path, schedulers, name, claimed })
}

/// The machine's name, and an id that tells the workers of one machine apart and outlives a restart.
fn own_name(root: &StoreRoot) -> anyhow::Result<String> {
    let found = root.read(ID_FILE)?.map(|id| id.parse());
    if let Some(Err(_)) = &found {
        tracing::warn!("{} holds no name: this worker has a new one", root.path().join(ID_FILE).display());
    }
    let new = || Name(uuid::Uuid::new_v4().simple().to_string());
    let Name(id) = found.and_then(Result::ok).unwrap_or_else(new);
    // One that was found, too: it is closed to others from now on, whoever made it.
    root.write(ID_FILE, &id)?;
    Ok(format!("{}-{id}", host_name()))
}

/// Runs until a signal stops it, or fails once the helper process has ended, having stopped as well as it can.
pub async fn run(prepared: Prepared) -> anyhow::Result<()> {
    let Prepared { config, schedulers, name, claimed } = prepared;
    // Before anything that takes long: who stops it then has it stop well.
    let mut signals = Signals::new()?;
    let Some(machine) = signals.unless_stopped(Machine::open(claimed)).await else { return Ok(()) };
    let machine = machine?;
    let remotes = Remotes::open(&schedulers, &machine.store, &machine.environment)?;
    let slots = match remotes.len() {
        1 => Slots::new(machine.jobs),
        // An outage of one of them is not to be felt by the others' actions.
        _ => Slots::with_inputs_first(machine.jobs),
    };
    let mut sources: Vec<Arc<dyn WorkSource>> = Vec::new();
    let mut pumps = JoinSet::new();
    for scheduler in &schedulers {
        let options = options_of(scheduler, &name, &machine)?;
        let capacity = options.capacity;
        let storage = Arc::new(remotes.of(scheduler, machine.trees.clone()));
        // Here, a scheduler chooses the machine.
        let runner = machine.runner(&name, storage, true);
        let source = open_source(scheduler.kind, options);
        sources.push(source.clone());
        pumps.spawn(serve(source, runner, capacity, slots.clone()));
    }
    // Whoever read it may have gone.
    let _ = greet(&config, &schedulers, &name, &machine, &mut io::stdout());
    let status_line = StatusLine::start(status(slots.clone(), machine.store.clone()));
    let is_idle = {
        let slots = slots.clone();
        move || slots.running() == 0
    };
    let environment = &machine.environment;
    let giving_back = tokio::spawn(give_back(is_idle, environment.io.clone(), environment.clock.clone()));

    let stopped = machine.until_stop(&mut signals).await;
    finish(&sources, pumps, &slots, &mut signals, machine.options.drain_time()).await;
    status_line.stop();
    giving_back.abort();
    drop((sources, remotes));
    machine.close().await?;
    stopped
}

/// Serves a scheduler until it has nothing left here, and leaves it at once: until others' actions end it may take long,
/// and what it would start here in the meantime would be answered by nobody.
async fn serve(source: Arc<dyn WorkSource>, runner: Arc<ActionRunner>, capacity: usize, slots: Arc<Slots>) {
    pump(source.clone(), runner, capacity, slots).await;
    leave(&*source).await;
}

async fn leave(source: &dyn WorkSource) {
    // Who does not hear of it in time finds out by itself.
    let _ = tokio::time::timeout(FAREWELL_MAX, source.close()).await;
}

/// Lets running actions end and be reported, and the schedulers be left, unless somebody is in a hurry.
async fn finish(
    sources: &[Arc<dyn WorkSource>],
    mut pumps: JoinSet<()>,
    slots: &Slots,
    signals: &mut Signals,
    drain_time: Duration,
) {
    match slots.running() {
        0 => say("stopping"),
        running => say(&format!("stopping when {running} running actions have ended; again to stop at once")),
    }
    for source in sources {
        source.drain();
    }
    let ended = async { while pumps.join_next().await.is_some() {} };
    tokio::pin!(ended);
    let is_hurried = tokio::select! {
        () = &mut ended => false,
        () = signals.next() => true,
        () = tokio::time::sleep(drain_time) => true,
    };
    if is_hurried {
        say("stopping at once");
        slots.stop();
        if tokio::time::timeout(STOP_MAX, ended).await.is_err() {
            match slots.unreported() {
                0 => {}
                lost => {
                    tracing::warn!("{lost} results were not delivered: their schedulers did not take them");
                }
            }
            // What has not ended by now is given up.
            futures::future::join_all(sources.iter().map(|source| leave(&**source))).await;
        }
    }
}

fn options_of(
    scheduler: &SchedulerConfig,
    name: &str,
    machine: &Machine,
) -> anyhow::Result<SchedulerOptions> {
    let clock = machine.environment.clock.clone();
    let endpoint = &scheduler.endpoint.get_ref().uri;
    let tls = scheduler.tls.options();
    Ok(SchedulerOptions {
        link: Link::open(
            endpoint,
            &tls,
            scheduler.token_file.as_deref(),
            pings(scheduler.kind),
            clock.clone(),
        )?,
        instance_name: scheduler.instance_name.0.clone(),
        worker_name: name.to_owned(),
        platform: scheduler.properties(),
        capacity: scheduler.capacity.map_or(machine.jobs, Jobs::get),
        clock,
    })
}

/// Whether it is the worker that writes the action cache.
fn writes_results(kind: Kind) -> bool {
    match kind {
        Kind::Bots => false,
        Kind::Buildbarn | Kind::NativeLink => true,
    }
}

/// What schedulers of a kind make of pings.
fn pings(kind: Kind) -> Pings {
    match kind {
        Kind::Bots => bots::PINGS,
        Kind::Buildbarn => buildbarn::PINGS,
        Kind::NativeLink => nativelink::PINGS,
    }
}

/// Joins a scheduler.
fn open_source(kind: Kind, options: SchedulerOptions) -> Arc<dyn WorkSource> {
    match kind {
        Kind::Bots => Bots::start(options),
        Kind::Buildbarn => Buildbarn::start(&options),
        Kind::NativeLink => NativeLink::start(options),
    }
}

/// What the line at the bottom of a terminal says.
fn status(slots: Arc<Slots>, store: Arc<BlobStore>) -> impl Fn() -> String + Send + 'static {
    move || format!("{} running, {} stored", slots.running(), size(store.stats().size_bytes))
}

fn greet(
    config: &Path,
    schedulers: &[SchedulerConfig],
    name: &str,
    machine: &Machine,
    to: &mut impl Write,
) -> io::Result<()> {
    writeln!(to, "longshore {} works as {name}", env!("CARGO_PKG_VERSION"))?;
    writeln!(to, "  configured  in {}", config.display())?;
    for scheduler in schedulers {
        let (endpoint, instance) = (&scheduler.endpoint.get_ref().uri, &scheduler.instance_name.0);
        writeln!(to, "  for         {} at {endpoint}, instance {instance:?}", scheduler.kind)?;
        let cas = scheduler.cas();
        let instance = cas.instance_name.unwrap_or_default().0;
        writeln!(to, "  with blobs  at {}, instance {instance:?}", cas.endpoint.get_ref().uri)?;
    }
    machine.describe(to)?;
    to.flush()
}
