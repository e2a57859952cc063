//! Memory that a burst of work took goes back to the machine when the work is over.
//!
//! glibc keeps what is freed, in an arena a thread. That is right under load and wrong afterwards: other programs,
//! the actions above all, could use it. What is in use can become free at any time, without anything that is resident
//! becoming more or less: therefore the allocator is asked how much of it is in use.

use std::sync::Arc;
use std::time::Duration;

use longshore_cas_store::io::{Clock, IoPool};

/// How often the figures are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Growth of what nobody uses, since memory was last given back, that makes it worth giving back again.
const GROWTH_BYTES_MIN: i64 = 2 << 20;

/// Gives memory back whenever no action runs and there is something to give; ends with the process.
pub(crate) async fn give_back(is_idle: impl Fn() -> bool, io: IoPool, clock: Arc<dyn Clock>) {
    let mut settled_bytes = unused_bytes();
    loop {
        clock.sleep(LOOK_EVERY).await;
        if is_idle() {
            // It may take milliseconds, which the threads of the wire do not have.
            settled_bytes = io.run(move || settle(settled_bytes)).await;
        }
    }
}

/// Gives memory back if that is worth it; how much that nobody uses is left when it was done last.
fn settle(settled_bytes: i64) -> i64 {
    if unused_bytes() <= settled_bytes + GROWTH_BYTES_MIN {
        return settled_bytes;
    }
    trim();
    unused_bytes()
}

/// What of this process is in memory without being in use, or the code of the program. It is off by what is in use and
/// was never touched, and may be negative: only its growth says something.
fn unused_bytes() -> i64 {
    resident_bytes().cast_signed() - used_bytes().cast_signed()
}

/// What has been allocated and not freed.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "mallinfo2(3) has no safe wrapper")]
fn used_bytes() -> u64 {
    // SAFETY: it takes the allocator's own locks, and returns numbers.
    let info = unsafe { nix::libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as u64
}

/// Other allocators give memory back by themselves: it is as if everything were in use.
#[cfg(not(target_env = "gnu"))]
fn used_bytes() -> u64 {
    resident_bytes()
}

/// What this process has in memory (`VmRSS` of proc(5)); nothing where that cannot be read.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "malloc_trim(3) has no safe wrapper")]
fn trim() {
    // SAFETY: it takes the allocator's own locks, and touches nothing that is in use.
    unsafe { nix::libc::malloc_trim(0) };
}

/// Other allocators give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    // What a process has in memory is its other tests' too: this one needs a process of its own.
    #[test]
    fn what_was_freed_is_given_back() {
        in_a_process_of_its_own("alone");
    }

    // A burst of reads while no action runs, such as a build of cache hits: what it holds when memory is given back is
    // free a moment later, and nothing grows by that.
    #[test]
    fn what_is_freed_after_memory_was_given_back_is_given_back_too() {
        in_a_process_of_its_own("in_use_at_first");
    }

    fn in_a_process_of_its_own(name: &str) {
        let test = std::env::current_exe().unwrap();
        let name = format!("{}::{name}", module_path!().split_once("::").unwrap().1);
        let ran = std::process::Command::new(test).args(["--ignored", "--exact", &name]).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    #[ignore = "run by what_was_freed_is_given_back"]
    fn alone() {
        const PIECES: usize = 100_000;
        const PIECE_BYTES: usize = 512;
        let before = resident_bytes();
        let mut pieces: Vec<_> = (0..PIECES).map(|_| vec![1_u8; PIECE_BYTES]).collect();
        // The last piece pins the top of the heap, so that freeing alone gives nothing back.
        let last = pieces.pop();
        let full = resident_bytes();
        assert!(full >= before + (PIECES * PIECE_BYTES / 2) as u64, "{before} {full}");
        drop(pieces);
        trim();
        assert!(resident_bytes() < before + (full - before) / 2, "{before} {full} {}", resident_bytes());
        drop(last);
    }

    #[test]
    #[ignore = "run by what_is_freed_after_memory_was_given_back_is_given_back_too"]
    fn in_use_at_first() {
        const PIECES: usize = 100_000;
        const PIECE_BYTES: usize = 512;
        let before = resident_bytes();
        let mut pieces: Vec<_> = (0..PIECES).map(|_| vec![1_u8; PIECE_BYTES]).collect();
        let last = pieces.pop();
        let settled = settle(i64::MIN / 2);
        let full = resident_bytes();
        assert!(full >= before + (PIECES * PIECE_BYTES / 2) as u64, "{before} {full}");
        assert_eq!(settle(settled), settled, "nothing is worth it while all is in use");
        drop(pieces);
        settle(settled);
        assert!(resident_bytes() < before + (full - before) / 2, "{before} {full} {}", resident_bytes());
        drop(last);
    }
}
