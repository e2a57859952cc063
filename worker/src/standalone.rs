//! The standalone mode, wired: one process that is CAS, action cache, scheduler and worker.

use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use longshore_cas_store::record::RecordStore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::action::Ends;
use crate::cli::StandaloneArgs;
use crate::environment::Threads;
use crate::frontend::embedded::{Embedded, Endpoint, Listener, Scheduler, Transfers};
use crate::frontend::{Slots, pump};
use crate::machine::{Claimed, Machine, host_name};
use crate::memory::give_back;
use crate::signals::Signals;
use crate::status_line::{StatusLine, say, size};

/// How long open calls are waited for once the last action has ended.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// What has to be done while the process has one thread.
pub struct Prepared {
    listen: Endpoint,
    any_platform: bool,
    claimed: Claimed,
}

impl Prepared {
    /// The threads that are to be started.
    pub fn threads(&self) -> Threads {
        self.claimed.threads
    }
}

/// Claims the root, decides who actions run as, and starts the helper process.
pub fn prepare(args: StandaloneArgs) -> anyhow::Result<Prepared> {
    let StandaloneArgs { listen, machine, any_platform, allow_remote_clients } = args;
    if !listen.is_local() && !allow_remote_clients {
        bail!(
            "{listen} can be reached by other machines, and there is no authentication: anyone who reaches the port \
             runs commands here. If that is what you want, say --allow-remote-clients"
        );
    }
    Ok(Prepared { listen, any_platform, claimed: Claimed::claim(machine)? })
}

/// Runs until a signal stops it, or fails once the helper process has ended, having stopped as well as it can.
pub async fn run(prepared: Prepared) -> anyhow::Result<()> {
    let Prepared { listen, any_platform, claimed } = prepared;
    // Before anything that takes long, and before anybody is told that it runs: who stops it then has it stop well.
    let mut signals = Signals::new()?;
    let Some(machine) = signals.unless_stopped(Machine::open(claimed)).await else { return Ok(()) };
    let machine = machine?;
    let listener = Listener::bind(listen).await?;
    let endpoint = listener.endpoint().clone();
    // Whoever read it may have gone.
    let _ = greet(&endpoint, &machine, &mut io::stdout());

    let environment = &machine.environment;
    let records = Arc::new(RecordStore::new(machine.store.clone()));
    let embedded = Arc::new(Embedded::new(machine.store.clone(), records, environment.clone()));
    let scheduler = embedded.scheduler().clone();
    let name = machine.options.name.as_ref().map_or_else(host_name, |name| name.0.clone());
    let worker = machine.runner(&name, Arc::new(Ends::of_the_store()), any_platform);
    let status_line = StatusLine::start(status(scheduler.clone(), &machine));

    let stop = CancellationToken::new();
    let server = tokio::spawn({
        let (embedded, stop, files) = (embedded.clone(), stop.clone(), machine.files);
        let transfers = Transfers { connections_max: files.connections_max, uploads_max: files.uploads_max };
        async move { embedded.serve(listener, transfers, stop.cancelled_owned()).await }
    });
    let is_idle = {
        let scheduler = scheduler.clone();
        move || scheduler.stats().running == 0
    };
    let giving_back = tokio::spawn(give_back(is_idle, environment.io.clone(), environment.clock.clone()));
    let slots = Slots::new(machine.jobs);
    let work = tokio::spawn(pump(scheduler.clone(), worker, machine.jobs, slots.clone()));

    let stopped = machine.until_stop(&mut signals).await;
    embedded.drain().await;
    finish(work, &mut signals, &slots, machine.options.drain_time()).await?;
    status_line.stop();
    giving_back.abort();
    stop.cancel();
    let _ = tokio::time::timeout(FAREWELL_MAX, server).await;
    drop(embedded);
    machine.close().await?;
    if let Endpoint::Unix(path) = &endpoint {
        let _ = std::fs::remove_file(path);
    }
    stopped
}

/// Lets running actions end, unless somebody is in a hurry.
async fn finish(
    work: JoinHandle<()>,
    signals: &mut Signals,
    slots: &Slots,
    drain_time: Duration,
) -> anyhow::Result<()> {
    match slots.running() {
        0 => say("stopping"),
        running => say(&format!("stopping when {running} running actions have ended; again to stop at once")),
    }
    tokio::select! {
        result = work => result?,
        () = signals.next() => {
            say("stopping at once");
            slots.stop();
        }
        () = tokio::time::sleep(drain_time) => slots.stop(),
    }
    Ok(())
}

/// What the line at the bottom of a terminal says.
fn status(scheduler: Arc<Scheduler>, machine: &Machine) -> impl Fn() -> String + Send + 'static {
    let store = machine.store.clone();
    move || {
        let actions = scheduler.stats();
        let stored = size(store.stats().size_bytes);
        format!(
            "{} running, {} queued, {} done, {} cache hits, {stored} stored",
            actions.running, actions.queued, actions.done, actions.cache_hits
        )
    }
}

fn greet(endpoint: &Endpoint, machine: &Machine, to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "longshore {} listens at {endpoint}", env!("CARGO_PKG_VERSION"))?;
    machine.describe(to)?;
    writeln!(to, "  clients     {} connections at once", machine.files.connections_max)?;
    writeln!(to)?;
    writeln!(to, "  bazel build --remote_executor={endpoint} //...")?;
    if io::stdout().is_terminal() {
        writeln!(to)?;
    }
    to.flush()
}
