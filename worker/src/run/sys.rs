//! System calls that have no safe wrapper, for processes that have one thread.

use std::ffi::{CStr, CString, c_char};
use std::marker::PhantomData;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus};
use nix::unistd::{ForkResult, Pid};

use super::Usage;

/// What a child that shares our memory runs on until it has become its program.
const CHILD_STACK_BYTES: usize = 256 << 10;

/// Forks. Both sides may go on with ordinary code, because there is one thread.
pub(super) fn fork_single_threaded() -> nix::Result<ForkResult> {
    #[expect(unsafe_code, reason = "fork is unsafe for processes with several threads")]
    // SAFETY: helper and keepers are single-threaded from their first instruction, so no lock can be held by a
    // thread that does not exist in the child.
    unsafe {
        nix::unistd::fork()
    }
}

/// The stack of children, made once: one that was used before costs no page faults.
#[derive(Debug)]
pub(super) struct ChildStack(Vec<u8>);

impl ChildStack {
    pub(super) fn new() -> Self {
        Self(vec![0; CHILD_STACK_BYTES])
    }

    /// Starts a child that shares this process's memory, and waits until it executes a program or ends (`vfork(2)`).
    ///
    /// The child runs `body`, whose value is its exit code. What `body` allocates and keeps until it executes is
    /// allocated here as well, and lost.
    pub(super) fn spawn_sharing_memory(&mut self, mut body: impl FnMut() -> u8) -> nix::Result<Pid> {
        let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
        let run = Box::new(move || isize::from(body()));
        #[expect(unsafe_code, reason = "the child shares our memory")]
        // SAFETY: the process has one thread, which CLONE_VFORK stops until the child has left the shared memory; so
        // nothing runs beside it, and what `body` borrows stays where it is. The stack is its own, and large enough
        // for a few levels of system calls.
        unsafe {
            nix::sched::clone(run, &mut self.0, flags, Some(libc::SIGCHLD))
        }
    }
}

/// Texts as `execve` takes them: borrowed pointers, and a null at the end.
#[derive(Debug)]
pub(super) struct Texts<'t> {
    pointers: Vec<*const c_char>,
    texts: PhantomData<&'t CStr>,
}

impl<'t> Texts<'t> {
    pub(super) fn new(texts: &'t [CString]) -> Self {
        let pointers = texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        Self { pointers, texts: PhantomData }
    }
}

/// Becomes `program`; returns only if that fails. Allocates nothing.
pub(super) fn execute(program: &CStr, arguments: &Texts<'_>, environment: &Texts<'_>) -> Errno {
    #[expect(
        unsafe_code,
        reason = "the safe wrapper allocates what a child that shares memory could not free"
    )]
    // SAFETY: both lists are of pointers to C strings that outlive them, and end with a null.
    unsafe {
        libc::execve(program.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr());
    }
    Errno::last()
}

/// Waits for a child (any, where `pid` is -1), and takes what it and the descendants that it waited for used.
pub(super) fn wait_with_usage(pid: Pid, flags: WaitPidFlag) -> nix::Result<(WaitStatus, Usage)> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    #[expect(unsafe_code, reason = "no safe wrapper of wait4")]
    // SAFETY: both places are as large as the kernel expects, and an rusage of zeros is a valid one.
    let (result, usage) = unsafe {
        (libc::wait4(pid.as_raw(), &raw mut status, flags.bits(), usage.as_mut_ptr()), usage.assume_init())
    };
    match Errno::result(result)? {
        0 => Ok((WaitStatus::StillAlive, Usage::default())),
        pid => Ok((
            WaitStatus::from_raw(Pid::from_raw(pid), status)?,
            Usage {
                user_time: duration(usage.ru_utime),
                system_time: duration(usage.ru_stime),
                // The kernel counts in KiB.
                resident_bytes_max: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
            },
        )),
    }
}

fn duration(time: libc::timeval) -> Duration {
    let micros = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0)) + Duration::from_micros(micros)
}

/// Marks every descriptor from `first` on to be closed by the next `execve`.
pub(super) fn close_on_exec_from(first: u32) -> nix::Result<()> {
    #[expect(unsafe_code, reason = "no safe wrapper of close_range")]
    // SAFETY: the call takes numbers only, and closes nothing by itself.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop)
}

/// Takes ownership of a descriptor that the kernel has just made for this process.
pub(super) fn own(fd: RawFd) -> OwnedFd {
    #[expect(unsafe_code, reason = "received descriptors are plain numbers")]
    // SAFETY: callers pass descriptors that recvmsg has just installed, or that the parent process left open for
    // exactly this owner; nobody else closes them.
    unsafe {
        OwnedFd::from_raw_fd(fd)
    }
}

/// Gives every signal its default disposition, which the children inherit.
pub(super) fn default_signals() {
    /// The kernel's number of signals (`_NSIG`), on both architectures.
    const SIGNALS: libc::c_long = 64;
    /// The kernel's `struct sigaction` with everything zero: `SIG_DFL`, no flags, an empty mask.
    const DEFAULT: [u64; 4] = [0; 4];
    const MASK_BYTES: usize = 8;
    for number in 1..=SIGNALS {
        #[expect(unsafe_code, reason = "the C library refuses the two signals that it keeps for itself")]
        // SAFETY: the kernel reads DEFAULT, which is as large as its structure, and writes nothing. SIGKILL and
        // SIGSTOP are refused, which is no harm.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                DEFAULT.as_ptr(),
                std::ptr::null::<u64>(),
                MASK_BYTES,
            );
        }
    }
}

/// Gives a signal its default disposition.
pub(super) fn default_signal(signal: Signal) {
    #[expect(unsafe_code, reason = "signal handlers are unsafe in general")]
    // SAFETY: SIG_DFL runs no code of ours.
    let _ = unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) };
}

/// Ignores a signal.
pub(super) fn ignore(signal: Signal) {
    #[expect(unsafe_code, reason = "signal handlers are unsafe in general")]
    // SAFETY: SIG_IGN runs no code of ours.
    let _ = unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigIgn) };
}

/// Ends the process at once, without running destructors that belong to the parent.
pub(super) fn exit_now(code: i32) -> ! {
    #[expect(unsafe_code, reason = "no safe wrapper of _exit")]
    // SAFETY: _exit does not return and touches no memory.
    unsafe {
        libc::_exit(code)
    }
}
