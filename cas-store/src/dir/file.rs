//! Operations on open files: what a name must not decide.
//!
//! *Leases*: a read lease (`fcntl(2)`, `F_SETLEASE`) is granted only while nobody has the file open for writing,
//! by descriptor or by shared mapping, and who opens it later breaks it. The break is signalled by a
//! signal that is ignored by default instead of `SIGIO`, which would kill the process.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};

use super::os::time_spec;
use super::{Op, Owner, PathError, PathErrorExt, Stat};

/// What is asked of the kernel in one `copy_file_range`.
const COPY_BYTES_MAX: usize = 1 << 30;

/// `fcntl.h`; the same on every architecture that we build for, and missing from libc for glibc.
const F_SETSIG: libc::c_int = 10;

/// What the kernel sends when a lease is broken. Ignored by default; we look at the lease instead.
const LEASE_BREAK_SIGNAL: libc::c_int = libc::SIGURG;

/// Reads the metadata of an open file.
pub(crate) fn stat(file: &File, path: &Path) -> Result<Stat, PathError> {
    nix::sys::stat::fstat(file).map(|stat| Stat::from(&stat)).at(Op::Stat, path)
}

/// Sets the permission bits of an open file.
pub(crate) fn set_mode(file: &File, mode: u32, path: &Path) -> Result<(), PathError> {
    nix::sys::stat::fchmod(file, Mode::from_bits_truncate(mode)).at(Op::SetMode, path)
}

/// Sets the modification and access time of an open file.
pub(crate) fn set_mtime(file: &File, mtime: SystemTime, path: &Path) -> Result<(), PathError> {
    let time = time_spec(mtime);
    nix::sys::stat::futimens(file, &time, &time).at(Op::SetTime, path)
}

/// Sets the owner of an open file.
pub(crate) fn set_owner(file: &File, owner: Owner, path: &Path) -> Result<(), PathError> {
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    nix::unistd::fchown(file, Some(uid), Some(gid)).at(Op::SetOwner, path)
}

/// Opens a file anew for reading, with a position of its own; also one that has no name.
pub(crate) fn reopen(file: &File) -> Result<File, PathError> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::open(&path).at(Op::Open, path)
}

/// The owner of what this process creates.
pub(crate) fn own_owner() -> Owner {
    Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
}

/// Shares the blocks of `from` with the empty file `to`; whether the file system can.
pub(crate) fn reflink(from: &File, to: &File) -> bool {
    sys::reflink(from, to).is_ok()
}

/// Copies the first `size_bytes` of `from` into the empty file `to`, by the cheapest means there is.
///
/// The number of bytes copied is less only where `from` is shorter.
pub(crate) fn copy(from: &File, to: &File, size_bytes: u64, path: &Path) -> Result<u64, PathError> {
    if reflink(from, to) {
        return Ok(stat(to, path)?.size_bytes);
    }
    let mut offset = 0;
    while offset < size_bytes {
        let wanted =
            usize::try_from(size_bytes - offset).map_or(COPY_BYTES_MAX, |left| left.min(COPY_BYTES_MAX));
        let mut offsets = (offset.cast_signed(), offset.cast_signed());
        match nix::fcntl::copy_file_range(from, Some(&mut offsets.0), to, Some(&mut offsets.1), wanted) {
            Ok(0) => break,
            Ok(copied) => offset += copied as u64,
            Err(Errno::EINTR) => {}
            Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) if offset == 0 => {
                return copy_through_memory(from, to, size_bytes, path);
            }
            Err(errno) => return Err(errno).at(Op::Copy, path),
        }
    }
    Ok(offset)
}

fn copy_through_memory(from: &File, to: &File, size_bytes: u64, path: &Path) -> Result<u64, PathError> {
    let (mut from, mut to) = (from, to);
    std::io::copy(&mut std::io::Read::take(&mut from, size_bytes), &mut to).at(Op::Copy, path)
}

/// Takes a read lease on a file that is open for reading; refused (`EAGAIN`) while anybody can write it.
///
/// It ends when every descriptor of this opening is closed.
pub(crate) fn lease(file: &File) -> Result<(), Errno> {
    sys::set_signal(file, LEASE_BREAK_SIGNAL)?;
    sys::set_lease(file, libc::F_RDLCK)
}

/// Whether the read lease stands: nobody opened the file for writing or truncated it since it was taken.
pub(crate) fn is_leased(file: &File) -> bool {
    sys::lease_of(file) == Ok(libc::F_RDLCK)
}

/// The system calls that have no safe wrapper.
#[expect(unsafe_code, reason = "these fcntl and ioctl commands have no safe wrapper")]
mod sys {
    use super::{AsRawFd, Errno, File, libc};

    pub(super) fn reflink(from: &File, to: &File) -> Result<(), Errno> {
        // SAFETY: FICLONE takes a descriptor by value; both stay open for the call.
        Errno::result(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) }).map(drop)
    }

    pub(super) fn set_signal(file: &File, signal: libc::c_int) -> Result<(), Errno> {
        // SAFETY: F_SETSIG takes an integer by value; the descriptor stays open for the call.
        Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), super::F_SETSIG, signal) }).map(drop)
    }

    pub(super) fn set_lease(file: &File, kind: libc::c_int) -> Result<(), Errno> {
        // SAFETY: F_SETLEASE takes an integer by value; the descriptor stays open for the call.
        Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) }).map(drop)
    }

    pub(super) fn lease_of(file: &File) -> Result<libc::c_int, Errno> {
        // SAFETY: F_GETLEASE takes no argument; the descriptor stays open for the call.
        Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_copy_has_the_bytes_and_stops_where_the_source_ends() {
        let folder = tempfile::tempdir().unwrap();
        let source_path = folder.path().join("source");
        let bytes: Vec<u8> = (0..100_000u32).map(|n| n.to_le_bytes()[0]).collect();
        std::fs::write(&source_path, &bytes).unwrap();
        for copier in [copy, copy_through_memory] {
            let source = File::open(&source_path).unwrap();
            let target_path = folder.path().join("target");
            let target = File::create(&target_path).unwrap();
            assert_eq!(copier(&source, &target, 1 << 40, &target_path).unwrap(), 100_000);
            assert_eq!(std::fs::read(&target_path).unwrap(), bytes);
        }
    }

    // A writer that opens the file later must be seen, and must not kill us.
    #[test]
    fn a_lease_is_refused_beside_a_writer_and_broken_by_a_later_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        assert_eq!(lease(&reader), Err(Errno::EAGAIN));
        writer.write_all(b"x").unwrap();
        drop(writer);

        let mut reader = File::open(&path).unwrap();
        lease(&reader).unwrap();
        assert!(is_leased(&reader));
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::custom_flags(options.write(true), libc::O_NONBLOCK);
        assert_eq!(options.open(&path).unwrap_err().raw_os_error(), Some(libc::EWOULDBLOCK));
        assert!(!is_leased(&reader), "somebody asked to write");
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }
}
