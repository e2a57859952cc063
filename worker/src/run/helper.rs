//! The helper: a single-threaded process that does nothing but fork keepers.
//!
//! It is started before longshore has a second thread, and holds no descriptor open for writing: what it forks
//! cannot hold a fresh executable open, so no action ever sees `ETXTBSY`. It is a child subreaper: should an
//! action kill its own keeper, the orphans come here and are killed here.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::wait::WaitStatus;
use nix::unistd::{ForkResult, Pid};

use super::identity::Cover;
use super::keeper::{self, ORDER_FDS};
use super::{kill, passing, sys};

/// The hidden first argument that makes a process the helper.
pub(super) const HELPER_ARGUMENT: &str = "spawn-helper";
/// Descriptors in one request: the keeper's socket, and its first order.
pub(super) const REQUEST_FDS: usize = 1 + ORDER_FDS;
/// What the helper sends once it is ready to fork.
pub(super) const READY: &[u8] = b"ready";

/// Runs the helper and never returns, if this process was started as one; else returns at once.
///
/// Must be called first thing in `main`, while there is one thread.
pub fn run_if_helper() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == HELPER_ARGUMENT) {
        let cover = arguments.next().zip(arguments.next());
        let cover = cover.map(|(ancestor, work)| Cover { ancestor: ancestor.into(), work: work.into() });
        std::process::exit(i32::from(serve(cover.as_ref()).is_err()));
    }
}

fn serve(cover: Option<&Cover>) -> nix::Result<()> {
    // Out of the terminal's foreground group: Ctrl-C is for longshore, which lets actions finish.
    nix::unistd::setsid()?;
    nix::sys::prctl::set_name(c"longshore-spawn")?;
    nix::sys::prctl::set_child_subreaper(true)?;
    // A report to a longshore that has gone is an error to pass over, not a reason to die.
    sys::default_signals();
    sys::ignore(Signal::SIGPIPE);
    let children = keeper::child_signal();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&children), None)?;
    let children = SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let socket = take_socket()?;
    if let Some(cover) = cover {
        cover.apply()?;
    }
    send(socket.as_raw_fd(), READY, MsgFlags::MSG_NOSIGNAL)?;

    let mut keepers = HashSet::new();
    loop {
        let mut events = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(children.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut events, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        let [requested, ended] = events.map(|event| event.any() == Some(true));
        if ended {
            while let Ok(Some(_)) = children.read_signal() {}
            reap(&mut keepers);
        }
        if requested {
            match passing::receive(&socket)? {
                Some(request) => fork_keeper(request, &socket, &mut keepers),
                None => break,
            }
        }
    }
    finish(keepers);
    Ok(())
}

/// The socket, which is the helper's stdin, moved away from there.
fn take_socket() -> nix::Result<OwnedFd> {
    let socket =
        nix::fcntl::fcntl(std::io::stdin(), nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(3)).map(sys::own)?;
    let null = nix::fcntl::open("/dev/null", nix::fcntl::OFlag::O_RDONLY, nix::sys::stat::Mode::empty())?;
    nix::unistd::dup2_stdin(null)?;
    Ok(socket)
}

/// Forks a keeper with the socket that it has to longshore, and its first order.
fn fork_keeper(request: [OwnedFd; REQUEST_FDS], socket: &OwnedFd, keepers: &mut HashSet<Pid>) {
    match sys::fork_single_threaded() {
        Ok(ForkResult::Child) => {
            // The helper's end must not stay open in a keeper: longshore could not tell that the helper is gone.
            let _ = nix::unistd::close(socket.as_raw_fd());
            let [keeper_socket, spec, stdout, stderr] = request;
            keeper::keep(keeper_socket, [spec, stdout, stderr].into());
            sys::exit_now(0);
        }
        Ok(ForkResult::Parent { child }) => {
            keepers.insert(child);
        }
        // Longshore sees the end of the request's socket, and calls the action lost.
        Err(errno) => eprintln!("longshore: cannot fork: {errno}"),
    }
}

/// Reaps what has ended. A keeper that did not end by itself may have left its command behind.
fn reap(keepers: &mut HashSet<Pid>) {
    while let Some((status, _)) = kill::reap_one() {
        let was_keeper = status.pid().is_some_and(|pid| keepers.remove(&pid));
        if was_keeper && !matches!(status, WaitStatus::Exited(_, 0)) {
            let mut more = Vec::new();
            kill::descendants_except(keepers, |status, _| more.extend(status.pid()));
            for pid in more {
                keepers.remove(&pid);
            }
        }
    }
}

/// Longshore has gone: every keeper sees that too, kills its command, and ends.
fn finish(mut keepers: HashSet<Pid>) {
    while !keepers.is_empty() {
        match nix::sys::wait::wait() {
            Ok(status) => {
                if let Some(pid) = status.pid() {
                    keepers.remove(&pid);
                }
            }
            Err(Errno::EINTR) => {}
            Err(_) => break,
        }
    }
    kill::descendants_except(&HashSet::new(), |_, _| ());
}
