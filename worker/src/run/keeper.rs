//! A keeper: starts a command, bounds it, and reports when every descendant of it is dead; then the next one.
//!
//! Between commands a keeper has no child, and holds nothing of the last one.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SigSet, SignalFd};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::sys::ChildStack;
use super::wire::{Report, Spec, Stage};
use super::{RunOutcome, Usage, Verdict, child, kill, passing};

/// Descriptors of one command.
pub(super) const ORDER_FDS: usize = 3;

/// What a keeper received for one command.
pub(super) struct Order {
    /// The memory file with the specification.
    spec: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl From<[OwnedFd; ORDER_FDS]> for Order {
    fn from([spec, stdout, stderr]: [OwnedFd; ORDER_FDS]) -> Self {
        Self { spec, stdout, stderr }
    }
}

/// Keeps one command after another; called in a process of its own that ends with it.
///
/// Reports go out on `socket`, and further orders come in; its end means that nobody waits any more.
pub(super) fn keep(socket: OwnedFd, first: Order) {
    let mut socket = UnixStream::from(socket);
    let mut keeper = match Keeper::new() {
        Ok(keeper) => keeper,
        Err(errno) => {
            // Longshore may have gone; then nobody wants it.
            let _ = socket.write_all(&Report::Failed(Stage::Prepare, errno).encode());
            return;
        }
    };
    let mut next = Some(first);
    while let Some(order) = next {
        let report = match keeper.run(&socket, order) {
            Ok(outcome) => Report::Ended(outcome),
            Err((stage, errno)) => Report::Failed(stage, errno),
        };
        // Longshore does not write again where it has cancelled a command: the next order is the end then.
        next = match socket.write_all(&report.encode()) {
            Ok(()) => passing::receive(&socket).ok().flatten().map(Order::from),
            Err(_) => None,
        };
    }
}

/// What lasts from one command to the next.
struct Keeper {
    children: SignalFd,
    stack: ChildStack,
}

impl Keeper {
    fn new() -> nix::Result<Self> {
        nix::sys::prctl::set_name(c"longshore-keep")?;
        nix::sys::prctl::set_child_subreaper(true)?;
        // The helper has SIGCHLD blocked, and so has this process.
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let children = SignalFd::with_flags(&child_signal(), flags)?;
        Ok(Self { children, stack: ChildStack::new() })
    }

    /// Runs one command until every descendant is dead.
    fn run(&mut self, socket: &UnixStream, order: Order) -> Result<RunOutcome, (Stage, Errno)> {
        let Order { spec, stdout, stderr } = order;
        let spec = read_spec(spec).ok_or((Stage::Prepare, Errno::EBADMSG))?;
        let streams = [stdout, stderr];
        let started = SystemTime::now();
        let clock = Instant::now();
        let pid = match child::start(&spec, &streams, &mut self.stack) {
            Ok(pid) => pid,
            Err(error) => {
                kill::descendants_except(&HashSet::new(), |_, _| ());
                return Err(error);
            }
        };
        // When the report arrives, this process is no writer of them any more.
        drop(streams);
        let mut watch = Watch { pid, status: None, usage: Usage::default() };
        let ending = watch.wait(socket, &self.children, spec.timeout.map(|timeout| (clock, timeout)));
        let duration = clock.elapsed();
        kill::descendants_except(&HashSet::new(), |status, usage| watch.note(status, usage));

        let verdict = match (ending, watch.status) {
            (Ending::Timeout, _) => Verdict::TimedOut,
            (Ending::Hangup, _) => Verdict::Cancelled,
            (Ending::Exit, Some(WaitStatus::Signaled(_, signal, _))) => Verdict::Signaled(signal as i32),
            (Ending::Exit, Some(WaitStatus::Exited(_, code))) => Verdict::Exited(code),
            (Ending::Exit, _) => return Err((Stage::Prepare, Errno::ECHILD)),
        };
        Ok(RunOutcome { verdict, started, completed: SystemTime::now(), duration, usage: watch.usage })
    }
}

/// SIGCHLD, as a set.
pub(super) fn child_signal() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals
}

fn read_spec(memory: OwnedFd) -> Option<Spec> {
    let mut file = File::from(memory);
    file.rewind().ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    Spec::decode(&bytes)
}

/// Why the wait for a command ended.
#[derive(Clone, Copy)]
enum Ending {
    Exit,
    Timeout,
    Hangup,
}

/// The command that is waited for.
struct Watch {
    pid: Pid,
    status: Option<WaitStatus>,
    /// Of it and of its orphans, with all that they waited for.
    usage: Usage,
}

impl Watch {
    fn note(&mut self, status: WaitStatus, usage: Usage) {
        if status.pid() == Some(self.pid) {
            self.status = Some(status);
        }
        self.usage.user_time += usage.user_time;
        self.usage.system_time += usage.system_time;
        self.usage.resident_bytes_max = self.usage.resident_bytes_max.max(usage.resident_bytes_max);
    }

    /// Waits until the command has ended, its time is up, or nobody waits for it any more.
    fn wait(
        &mut self,
        socket: &UnixStream,
        children: &SignalFd,
        deadline: Option<(Instant, Duration)>,
    ) -> Ending {
        loop {
            // Orphans end too; only the command itself counts.
            while let Some((status, usage)) = kill::reap_one() {
                self.note(status, usage);
            }
            if self.status.is_some() {
                return Ending::Exit;
            }
            let left = deadline.map(|(clock, timeout)| timeout.saturating_sub(clock.elapsed()));
            if left == Some(Duration::ZERO) {
                return Ending::Timeout;
            }
            let mut events = [
                PollFd::new(socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(children.as_fd(), PollFlags::POLLIN),
            ];
            // EINTR and an early return lead to another round.
            let _ = poll(&mut events, poll_timeout(left));
            // Longshore never writes: whatever comes is the end.
            if events[0].any() == Some(true) {
                return Ending::Hangup;
            }
            while let Ok(Some(_)) = children.read_signal() {}
        }
    }
}

/// Rounded up, so that the deadline has passed when the poll returns.
fn poll_timeout(left: Option<Duration>) -> PollTimeout {
    match left {
        None => PollTimeout::NONE,
        Some(left) => {
            let millis = left.as_millis().saturating_add(1).min(i32::MAX.unsigned_abs().into());
            PollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
        }
    }
}
