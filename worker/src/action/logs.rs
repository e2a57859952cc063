//! The bound of what a command writes to its standard output and error.
//!
//! While it runs it is looked at now and then, so that it does not fill the disk; what is stored in the end is cut
//! exactly. A command may truncate and grow its own logs as it likes: what counts is what is there.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use longshore_cas_store::dir::{Dir as _, Op, OsDir, PathError, PathErrorExt as _};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::ActionRunner;
use super::prepared::{STDERR, STDOUT};
use super::ran::reopen;

/// How often the logs of a running command are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Completes once one of the logs in `folder` is larger than `log_bytes_max`.
pub(super) async fn outgrown(worker: &ActionRunner, folder: &OsDir, log_bytes_max: u64) {
    loop {
        worker.clock.sleep(LOOK_EVERY).await;
        // What cannot be looked at now is cut in the end.
        let Ok(folder) = reopen(folder) else { continue };
        let is_larger =
            move |name| folder.stat(Path::new(name)).is_ok_and(|stat| stat.size_bytes > log_bytes_max);
        if worker.io.run(move || is_larger(STDOUT) || is_larger(STDERR)).await {
            return;
        }
    }
}

/// Cuts the log off after `log_bytes_max`; whether it was larger. Blocks; call on the pool.
pub(super) fn cut(folder: &OsDir, name: &str, log_bytes_max: u64) -> Result<bool, PathError> {
    let name = Path::new(name);
    if folder.stat(name)?.size_bytes <= log_bytes_max {
        return Ok(false);
    }
    let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let log = nix::fcntl::openat(folder.fd(), name, flags, Mode::empty()).at(Op::Open, name)?;
    let errno = |error: std::io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    File::from(log).set_len(log_bytes_max).map_err(errno).at(Op::Write, name)?;
    Ok(true)
}
