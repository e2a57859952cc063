//! What the kernel says about a process: memory, threads, descriptors, descendants.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

/// What a process holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// The most resident memory so far, in bytes.
    pub resident_bytes_max: u64,
    /// Threads.
    pub threads: u64,
    /// Open file descriptors.
    pub descriptors: u64,
}

impl Footprint {
    /// Reads it from /proc.
    pub fn of(pid: u32) -> Result<Self> {
        let status = proc_file(pid, "status")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.split_whitespace().nth(1));
            value.and_then(|value| value.parse::<u64>().ok()).with_context(|| format!("{name} of {pid}"))
        };
        let folder = PathBuf::from(format!("/proc/{pid}/fd"));
        let descriptors = fs::read_dir(&folder).with_context(|| folder.display().to_string())?.count();
        Ok(Self {
            resident_bytes: field("VmRSS")? * 1024,
            resident_bytes_max: field("VmHWM")? * 1024,
            threads: field("Threads")?,
            descriptors: descriptors as u64,
        })
    }
}

/// The process ids of all descendants of `pid`, without zombies.
pub fn descendants(pid: u32) -> Result<Vec<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let Ok(child) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        // A process may end while the list is read.
        let Ok(stat) = proc_file(child, "stat") else { continue };
        let Some((_, fields)) = stat.rsplit_once(") ") else { continue };
        let mut fields = fields.split(' ');
        let (Some(state), Some(parent)) = (fields.next(), fields.next()) else { continue };
        if state != "Z" {
            children.entry(parent.parse().context("a parent's id")?).or_default().push(child);
        }
    }
    let mut found = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        let direct = children.remove(&parent).unwrap_or_default();
        parents.extend(&direct);
        found.extend(direct);
    }
    Ok(found)
}

/// The descendants of a longshore that are not longshore's own: what actions started.
///
/// A keeper that has reported is on its way out, and may or may not be counted among [`descendants`].
pub fn foreign_descendants(pid: u32) -> Result<Vec<String>> {
    let names = descendants(pid)?.into_iter().filter_map(|child| proc_file(child, "comm").ok());
    Ok(names.map(|name| name.trim().to_owned()).filter(|name| !name.starts_with("longshore")).collect())
}

/// The process that a longshore starts actions with.
pub fn spawn_helper(pid: u32) -> Result<u32> {
    let is_it = |child: &u32| proc_file(*child, "comm").is_ok_and(|name| name.trim() == "longshore-spawn");
    descendants(pid)?.into_iter().find(is_it).context("the helper")
}

/// Whether a process ignores a signal (proc(5), `SigIgn`: a bit for each signal from 1 on).
pub fn ignores(pid: u32, signal: Signal) -> Result<bool> {
    let status = proc_file(pid, "status")?;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).context("SigIgn")?;
    let ignored = u64::from_str_radix(ignored.trim(), 16).context("SigIgn")?;
    Ok(ignored & 1 << (signal as u64 - 1) != 0)
}

/// Makes a named pipe that every user may open: how a test and an action, which may run as another user, wait
/// for each other.
pub fn fifo(path: &Path) -> Result<()> {
    nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).context("mkfifo")?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).context("chmod")
}

fn proc_file(pid: u32, name: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{name}");
    fs::read_to_string(&path).context(path)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::{Footprint, descendants};

    // A grandchild counts, and a process that has gone does not.
    #[test]
    fn descendants_are_found_and_forgotten() {
        let script = "sleep 1000 & echo ready; wait";
        let mut shell = Command::new("/bin/sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");

        let below = descendants(shell.id()).unwrap();
        let [sleep] = below[..] else { panic!("the shell has one child, not {below:?}") };
        let own = descendants(std::process::id()).unwrap();
        assert!(own.contains(&shell.id()) && own.contains(&sleep));

        kill(Pid::from_raw(sleep.cast_signed()), Signal::SIGKILL).unwrap();
        shell.wait().unwrap();
        assert!(!descendants(std::process::id()).unwrap().contains(&shell.id()));
    }

    #[test]
    fn a_footprint_is_not_empty() {
        let footprint = Footprint::of(std::process::id()).unwrap();
        assert!(footprint.resident_bytes > 0 && footprint.threads > 0 && footprint.descriptors > 0);
        assert!(footprint.resident_bytes_max >= footprint.resident_bytes);
    }
}
