//! The keeper of one command: starts it, bounds it, and ends when every descendant is dead.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SigSet, SignalFd};
use nix::sys::time::TimeVal;
use nix::sys::wait::WaitStatus;
use nix::unistd::{ForkResult, Pid};

use super::wire::{Report, Spec, Stage};
use super::{RunOutcome, Usage, Verdict, child, kill, sys};

/// What the helper received for one command.
pub(super) struct Request {
    /// The socket to longshore: the report goes out on it; its end means that nobody waits any more.
    pub(super) socket: OwnedFd,
    /// The memory file with the specification.
    pub(super) spec: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// Keeps one command; called in a process of its own that ends with it.
pub(super) fn keep(request: Request) {
    let Request { socket, spec, stdout, stderr } = request;
    let report = match run(&socket, &spec, [stdout, stderr]) {
        Ok(outcome) => Report::Ended(outcome),
        Err((stage, errno)) => Report::Failed(stage, errno),
    };
    // Longshore may have gone; then nobody wants it. It does not wait for the end of this process.
    let _ = UnixStream::from(socket).write_all(&report.encode());
}

fn run(socket: &OwnedFd, spec: &OwnedFd, streams: [OwnedFd; 2]) -> Result<RunOutcome, (Stage, Errno)> {
    let at = |stage| move |errno| (stage, errno);
    nix::sys::prctl::set_name(c"longshore-keep").map_err(at(Stage::Prepare))?;
    nix::sys::prctl::set_child_subreaper(true).map_err(at(Stage::Prepare))?;
    let spec = read_spec(spec).ok_or((Stage::Prepare, Errno::EBADMSG))?;
    // The helper has SIGCHLD blocked, and so has this process.
    let children = SignalFd::with_flags(&child_signal(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(at(Stage::Prepare))?;

    let started = SystemTime::now();
    let clock = Instant::now();
    let pid = start(&spec, streams)?;
    let mut watch = Watch { pid, status: None };
    let ending = watch.wait(socket, &children, spec.timeout.map(|timeout| (clock, timeout)));
    let duration = clock.elapsed();
    kill::descendants_except(&std::collections::HashSet::new(), |status| watch.note(status));

    let verdict = match (ending, watch.status) {
        (Ending::Timeout, _) => Verdict::TimedOut,
        (Ending::Hangup, _) => Verdict::Cancelled,
        (Ending::Exit, Some(WaitStatus::Signaled(_, signal, _))) => Verdict::Signaled(signal as i32),
        (Ending::Exit, Some(WaitStatus::Exited(_, code))) => Verdict::Exited(code),
        (Ending::Exit, _) => return Err((Stage::Prepare, Errno::ECHILD)),
    };
    Ok(RunOutcome { verdict, started, completed: SystemTime::now(), duration, usage: usage() })
}

/// SIGCHLD, as a set.
pub(super) fn child_signal() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals
}

fn read_spec(memory: &OwnedFd) -> Option<Spec> {
    let mut file = File::from(memory.try_clone().ok()?);
    file.rewind().ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    Spec::decode(&bytes)
}

/// Forks the command, and waits until it has become its program.
///
/// The streams are closed here: when the report arrives, this process is no writer of them any more.
fn start(spec: &Spec, [stdout, stderr]: [OwnedFd; 2]) -> Result<Pid, (Stage, Errno)> {
    let (errors, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| (Stage::Prepare, errno))?;
    let pid = match sys::fork_single_threaded().map_err(|errno| (Stage::Fork, errno))? {
        ForkResult::Child => {
            child::become_command(spec, &stdout, &stderr, &writer);
            sys::exit_now(127);
        }
        ForkResult::Parent { child } => child,
    };
    drop((writer, stdout, stderr));
    let mut message = Vec::new();
    // The pipe ends when the program starts, or with the child.
    let _ = File::from(errors).read_to_end(&mut message);
    match message.split_first_chunk() {
        None => Ok(pid),
        Some((&[stage, a, b, c, d], _)) => {
            kill::descendants_except(&std::collections::HashSet::new(), |_| ());
            Err((Stage::from_number(stage), Errno::from_raw(i32::from_le_bytes([a, b, c, d]))))
        }
    }
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
}

impl Watch {
    fn note(&mut self, status: WaitStatus) {
        if status.pid() == Some(self.pid) {
            self.status = Some(status);
        }
    }

    /// Waits until the command has ended, its time is up, or nobody waits for it any more.
    fn wait(
        &mut self,
        socket: &OwnedFd,
        children: &SignalFd,
        deadline: Option<(Instant, Duration)>,
    ) -> Ending {
        loop {
            // Orphans end too; only the command itself counts.
            while let Some(status) = kill::reap_one() {
                self.note(status);
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

fn usage() -> Usage {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return Usage::default() };
    Usage {
        user_time: duration(usage.user_time()),
        system_time: duration(usage.system_time()),
        // The kernel counts in KiB.
        resident_bytes_max: u64::try_from(usage.max_rss()).unwrap_or(0) * 1024,
    }
}

fn duration(time: TimeVal) -> Duration {
    let micros = u64::try_from(time.tv_usec()).unwrap_or(0);
    Duration::from_secs(u64::try_from(time.tv_sec()).unwrap_or(0)) + Duration::from_micros(micros)
}
