//! Killing everything that descends from this process, until the kernel says that nothing is left.
//!
//! It works for a child subreaper: whatever the processes below it do (fork, fork twice, `setsid`), an orphan
//! becomes a child of this process, so "no child left" means "no descendant left".

use std::collections::HashSet;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::{Usage, sys};

/// Kills and reaps every descendant except those below `spared` children; tells of each that it reaps.
///
/// A process that forks and exits at once can be gone before its number is used, but its child is then a child
/// of ours and seen by the next round; a round costs less than a fork, so this ends.
pub(super) fn descendants_except(spared: &HashSet<Pid>, mut reaped: impl FnMut(WaitStatus, Usage)) {
    // Most commands leave nothing behind, which one call tells.
    while has_children() {
        let victims: Vec<Pid> = children().into_iter().filter(|pid| !spared.contains(pid)).collect();
        if victims.is_empty() {
            return;
        }
        for pid in &victims {
            // A group goes by one call, before its members can fork again. Both fail for what is dead already.
            let _ = kill(Pid::from_raw(-pid.as_raw()), Signal::SIGKILL);
            let _ = kill(*pid, Signal::SIGKILL);
        }
        // They are killed, so waiting for one of them ends.
        for pid in victims {
            if let Ok((status, usage)) = sys::wait_with_usage(pid, WaitPidFlag::__WALL) {
                reaped(status, usage);
            }
        }
    }
}

/// Whether this process has children, zombies included.
fn has_children() -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT | WaitPidFlag::__WALL;
    waitid(Id::All, flags) != Err(Errno::ECHILD)
}

/// The children of this process, zombies included.
fn children() -> Vec<Pid> {
    let own = Pid::this();
    let path = format!("/proc/self/task/{own}/children");
    match std::fs::read_to_string(path) {
        Ok(list) => list.split_ascii_whitespace().filter_map(parse_pid).collect(),
        // A kernel without CONFIG_PROC_CHILDREN.
        Err(_) => children_by_scan(own),
    }
}

fn children_by_scan(parent: Pid) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| parse_pid(entry.ok()?.file_name().to_str()?))
        .filter(|pid| parent_of(*pid) == Some(parent))
        .collect()
}

fn parent_of(pid: Pid) -> Option<Pid> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; state and parent follow the last one.
    stat.rsplit_once(") ")?.1.split(' ').nth(1).and_then(parse_pid)
}

fn parse_pid(text: &str) -> Option<Pid> {
    text.parse().ok().map(Pid::from_raw)
}

/// Reaps one child that has ended, if there is any.
pub(super) fn reap_one() -> Option<(WaitStatus, Usage)> {
    loop {
        match sys::wait_with_usage(Pid::from_raw(-1), WaitPidFlag::WNOHANG | WaitPidFlag::__WALL) {
            Ok((WaitStatus::StillAlive, _)) | Err(Errno::ECHILD) => return None,
            Ok(reaped) => return Some(reaped),
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_see_the_same_children() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        assert_eq!(parent_of(pid), Some(Pid::this()));
        assert!(children_by_scan(Pid::this()).contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children_by_scan(Pid::this()).contains(&pid));
    }
}
