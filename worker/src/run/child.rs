//! From the fork to the program: what happens in the process that becomes the command.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid};

use super::DEFAULT_PATH;
use super::sys;
use super::wire::{Spec, Stage};

/// Becomes the command. Returns only if that fails: the error has been written to `errors` by then.
///
/// `errors` is closed by a successful `execve`, which is how the keeper knows of it.
pub(super) fn become_command(spec: &Spec, stdout: &OwnedFd, stderr: &OwnedFd, errors: &OwnedFd) {
    let Err((stage, errno)) = prepare(spec, stdout, stderr).and_then(|()| execute(spec));
    let mut message = vec![stage as u8];
    message.extend_from_slice(&(errno as i32).to_le_bytes());
    if let Ok(errors) = errors.try_clone() {
        // There is nobody else to tell.
        let _ = File::from(errors).write_all(&message);
    }
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

/// Finds the program as REAPI's `Command.arguments` says, and becomes it.
fn execute(spec: &Spec) -> Result<std::convert::Infallible, (Stage, Errno)> {
    let Some(program) = spec.arguments.first() else { return Err((Stage::Execute, Errno::EINVAL)) };
    if program.to_bytes().contains(&b'/') {
        // Relative ones count from the working directory, which is the current one.
        return Err((Stage::Execute, try_execute(program, spec)));
    }
    if program.is_empty() {
        return Err((Stage::Execute, Errno::ENOENT));
    }
    let mut errno = Errno::ENOENT;
    // Bazel's repository rules name a script of their input root without a slash: the working directory comes last.
    let folders = search_path(&spec.environment).split(|byte| *byte == b':').chain([&b"."[..]]);
    for folder in folders {
        match try_execute(&candidate(folder, program), spec) {
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

fn try_execute(program: &CStr, spec: &Spec) -> Errno {
    match nix::unistd::execve(program, &spec.arguments, &spec.environment) {
        Ok(never) => match never {},
        Err(Errno::EACCES) if is_directory(program) => Errno::EISDIR,
        Err(errno) => errno,
    }
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
