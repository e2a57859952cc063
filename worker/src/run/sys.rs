//! System calls that have no safe wrapper, for processes that have one thread.

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::ForkResult;

/// Forks. Both sides may go on with ordinary code, because there is one thread.
pub(super) fn fork_single_threaded() -> nix::Result<ForkResult> {
    #[expect(unsafe_code, reason = "fork is unsafe for processes with several threads")]
    // SAFETY: helper and keepers are single-threaded from their first instruction, so no lock can be held by a
    // thread that does not exist in the child.
    unsafe {
        nix::unistd::fork()
    }
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
