//! From the keeper to the program: what happens in the process that becomes the command.
//!
//! That process shares the keeper's memory: whatever takes memory is made before, and freed by the keeper after.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid};

use super::DEFAULT_PATH;
use super::sys::{self, ChildStack, Texts};
use super::wire::{Spec, Stage};

/// The exit code of a child that has become no program; nobody sees it.
const FAILED: u8 = 127;

/// Starts the command; returns when it has become its program.
///
/// A child that could not is left to be reaped.
pub(super) fn start(
    spec: &Spec,
    [stdout, stderr]: &[OwnedFd; 2],
    stack: &mut ChildStack,
) -> Result<Pid, (Stage, Errno)> {
    let programs = candidates(spec)?;
    let (arguments, environment) = (Texts::new(&spec.arguments), Texts::new(&spec.environment));
    let mut failure = None;
    let child = stack.spawn_sharing_memory(|| {
        let became =
            prepare(spec, stdout, stderr).and_then(|()| execute(&programs, &arguments, &environment));
        let Err(error) = became;
        failure = Some(error);
        FAILED
    });
    let pid = child.map_err(|errno| (Stage::Fork, errno))?;
    failure.map_or(Ok(pid), Err)
}

fn prepare(spec: &Spec, stdout: &OwnedFd, stderr: &OwnedFd) -> Result<(), (Stage, Errno)> {
    let at = |stage| move |errno| (stage, errno);
    // A session of its own: no controlling terminal, and one process group to begin with.
    nix::unistd::setsid().map_err(at(Stage::Prepare))?;
    umask(Mode::from_bits_truncate(0o022));
    // The helper gave every other signal its default disposition; `execve` keeps ignored ones ignored.
    sys::default_signal(Signal::SIGPIPE);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(at(Stage::Prepare))?;

    let stdin = nix::fcntl::open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(at(Stage::Streams))?;
    nix::unistd::dup2_stdin(stdin.as_fd()).map_err(at(Stage::Streams))?;
    nix::unistd::dup2_stdout(stdout.as_fd()).map_err(at(Stage::Streams))?;
    nix::unistd::dup2_stderr(stderr.as_fd()).map_err(at(Stage::Streams))?;
    sys::close_on_exec_from(3).map_err(at(Stage::Streams))?;

    if let Some(owner) = spec.owner {
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        nix::unistd::setgroups(&[gid]).map_err(at(Stage::Identity))?;
        nix::unistd::setresgid(gid, gid, gid).map_err(at(Stage::Identity))?;
        nix::unistd::setresuid(uid, uid, uid).map_err(at(Stage::Identity))?;
    }
    // An action gains nothing from a set-user-ID program, and cannot kill its keeper through one.
    nix::sys::prctl::set_no_new_privs().map_err(at(Stage::Identity))?;
    nix::unistd::chdir(spec.working_directory.as_path()).map_err(at(Stage::WorkingDirectory))
}

/// Where the program may be, as REAPI's `Command.arguments` says.
fn candidates(spec: &Spec) -> Result<Vec<CString>, (Stage, Errno)> {
    let Some(program) = spec.arguments.first() else { return Err((Stage::Execute, Errno::EINVAL)) };
    if program.to_bytes().contains(&b'/') {
        // Relative ones count from the working directory, which is the current one.
        return Ok(vec![program.clone()]);
    }
    if program.is_empty() {
        return Err((Stage::Execute, Errno::ENOENT));
    }
    // Bazel's repository rules name a script of their input root without a slash: the working directory comes last.
    let folders = search_path(&spec.environment).split(|byte| *byte == b':').chain([&b"."[..]]);
    Ok(folders.map(|folder| candidate(folder, program)).collect())
}

/// Becomes the first of the programs that there is.
fn execute(
    programs: &[CString],
    arguments: &Texts<'_>,
    environment: &Texts<'_>,
) -> Result<std::convert::Infallible, (Stage, Errno)> {
    let try_execute = |program: &CStr| match sys::execute(program, arguments, environment) {
        Errno::EACCES if is_directory(program) => Errno::EISDIR,
        errno => errno,
    };
    if let [program] = programs {
        return Err((Stage::Execute, try_execute(program)));
    }
    let mut errno = Errno::ENOENT;
    for program in programs {
        match try_execute(program) {
            Errno::ENOENT | Errno::ENOTDIR => {}
            // Something of that name is there, but not for us; a later folder may have a better one.
            unusable @ (Errno::EACCES | Errno::EISDIR | Errno::ELOOP | Errno::ENAMETOOLONG) => {
                errno = unusable;
            }
            other => return Err((Stage::Execute, other)),
        }
    }
    Err((Stage::Execute, errno))
}

fn is_directory(program: &CStr) -> bool {
    std::path::Path::new(std::ffi::OsStr::from_bytes(program.to_bytes())).is_dir()
}

/// The value of the Command's own `PATH`, or the default.
fn search_path(environment: &[CString]) -> &[u8] {
    environment
        .iter()
        .find_map(|variable| variable.to_bytes().strip_prefix(b"PATH="))
        .unwrap_or(DEFAULT_PATH.as_bytes())
}

/// `folder/program`; an empty folder in a search path is the current one.
fn candidate(folder: &[u8], program: &CStr) -> CString {
    let mut path = if folder.is_empty() { b".".to_vec() } else { folder.to_vec() };
    path.push(b'/');
    path.extend_from_slice(program.to_bytes());
    // Both halves come from C strings.
    CString::new(path).unwrap_or_default()
}
