//! [`Dir`] by system calls.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::dir::Type;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags};

use super::{Dir, DirEntry, FileKind, Op, Owner, PathError, PathErrorExt, Stat};

/// How often a lookup is tried that renames elsewhere get in the way of: each try takes microseconds.
const OPEN_ATTEMPTS_MAX: u32 = 10_000;

/// A directory of the operating system.
#[derive(Debug)]
pub struct OsDir {
    fd: OwnedFd,
    /// The process's umask when the outermost directory was opened; creation repairs what it takes away.
    umask: Mode,
}

impl OsDir {
    /// Opens the directory at `path`, following symbolic links: it is the operator's path, not a client's.
    pub fn open(path: &Path) -> Result<Self, PathError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::openat(AT_FDCWD, path, flags, Mode::empty()).at(Op::Open, path)?;
        Ok(Self { fd, umask: process_umask() })
    }

    /// Opens the directory `path` below this one.
    pub fn open_sub(&self, path: &Path) -> Result<Self, PathError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::openat(&self.fd, path, flags, Mode::empty()).at(Op::Open, path)?;
        Ok(Self { fd, umask: self.umask })
    }

    /// Opens the directory `path` below this one, following symbolic links as long as they stay below it.
    ///
    /// `EXDEV` for a path that leaves it, be it only for a moment, and for an absolute link.
    pub fn open_beneath(&self, path: &Path) -> Result<Self, PathError> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let mut attempts = 0;
        let fd = loop {
            match nix::fcntl::openat2(&self.fd, path, how) {
                // A rename anywhere on the machine while `..` was resolved: the kernel cannot vouch for it.
                Err(Errno::EAGAIN) if attempts < OPEN_ATTEMPTS_MAX => attempts += 1,
                result => break result.at(Op::Open, path)?,
            }
        };
        Ok(Self { fd, umask: self.umask })
    }

    /// Gives the owner every permission on the directory itself, one that cannot be searched too.
    pub fn unlock(&self) -> Result<(), PathError> {
        // Everything by the descriptor: no name inside the directory can be looked up yet.
        let by_descriptor = PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()));
        let stat = nix::sys::stat::fstat(&self.fd).at(Op::Stat, ".")?;
        let mode = Mode::from_bits_truncate(stat.st_mode) | Mode::S_IRWXU;
        let flags = FchmodatFlags::FollowSymlink;
        nix::sys::stat::fchmodat(AT_FDCWD, &by_descriptor, mode, flags).at(Op::SetMode, ".")
    }

    fn repairs(&self, mode: Mode) -> bool {
        self.umask.intersects(mode)
    }
}

impl Dir for OsDir {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn open_dir(&self, path: &Path) -> Result<Box<dyn Dir>, PathError> {
        Ok(Box::new(self.open_sub(path)?))
    }

    fn make_dir(&self, path: &Path, mode: u32) -> Result<(), PathError> {
        let mode = Mode::from_bits_truncate(mode);
        nix::sys::stat::mkdirat(&self.fd, path, mode).at(Op::MakeDir, path)?;
        if self.repairs(mode) { self.set_mode(path, mode.bits()) } else { Ok(()) }
    }

    fn open_file(&self, path: &Path) -> Result<File, PathError> {
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        nix::fcntl::openat(&self.fd, path, flags, Mode::empty()).map(File::from).at(Op::Open, path)
    }

    fn create_file(&self, path: &Path, mode: u32) -> Result<File, PathError> {
        let mode = Mode::from_bits_truncate(mode);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let file = nix::fcntl::openat(&self.fd, path, flags, mode).map(File::from).at(Op::Create, path)?;
        if self.repairs(mode) {
            nix::sys::stat::fchmod(&file, mode).at(Op::SetMode, path)?;
        }
        Ok(file)
    }

    fn create_unnamed(&self, mode: u32) -> Result<File, PathError> {
        let mode = Mode::from_bits_truncate(mode);
        let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
        let file = nix::fcntl::openat(&self.fd, ".", flags, mode).map(File::from).at(Op::Create, ".")?;
        if self.repairs(mode) {
            nix::sys::stat::fchmod(&file, mode).at(Op::SetMode, ".")?;
        }
        Ok(file)
    }

    fn link(&self, path: &Path, to: &dyn Dir, to_path: &Path) -> Result<(), PathError> {
        nix::unistd::linkat(&self.fd, path, to.fd(), to_path, AtFlags::empty()).at(Op::Link, to_path)
    }

    fn link_file(&self, file: &File, path: &Path) -> Result<(), PathError> {
        // By descriptor alone is faster; before Linux 6.10 that is a privilege.
        let linked = nix::unistd::linkat(file, "", &self.fd, path, AtFlags::AT_EMPTY_PATH);
        if matches!(linked, Ok(()) | Err(Errno::EEXIST)) {
            return linked.at(Op::Link, path);
        }
        let source = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        nix::unistd::linkat(AT_FDCWD, &source, &self.fd, path, AtFlags::AT_SYMLINK_FOLLOW).at(Op::Link, path)
    }

    fn symlink(&self, target: &str, path: &Path) -> Result<(), PathError> {
        nix::unistd::symlinkat(target, &self.fd, path).at(Op::Symlink, path)
    }

    fn rename(&self, path: &Path, to: &dyn Dir, to_path: &Path) -> Result<(), PathError> {
        nix::fcntl::renameat(&self.fd, path, to.fd(), to_path).at(Op::Rename, to_path)
    }

    fn rename_new(&self, path: &Path, to: &dyn Dir, to_path: &Path) -> Result<(), PathError> {
        let flags = RenameFlags::RENAME_NOREPLACE;
        nix::fcntl::renameat2(&self.fd, path, to.fd(), to_path, flags).at(Op::Rename, to_path)
    }

    fn remove_file(&self, path: &Path) -> Result<(), PathError> {
        nix::unistd::unlinkat(&self.fd, path, UnlinkatFlags::NoRemoveDir).at(Op::Remove, path)
    }

    fn remove_dir(&self, path: &Path) -> Result<(), PathError> {
        nix::unistd::unlinkat(&self.fd, path, UnlinkatFlags::RemoveDir).at(Op::Remove, path)
    }

    fn stat(&self, path: &Path) -> Result<Stat, PathError> {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        nix::sys::stat::fstatat(&self.fd, path, flags).map(|stat| Stat::from(&stat)).at(Op::Stat, path)
    }

    fn read_link(&self, path: &Path) -> Result<OsString, PathError> {
        nix::fcntl::readlinkat(&self.fd, path).at(Op::ReadLink, path)
    }

    fn entries(&self) -> Result<Vec<DirEntry>, PathError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = nix::dir::Dir::openat(&self.fd, ".", flags, Mode::empty()).at(Op::List, ".")?;
        let mut entries = Vec::new();
        for entry in dir.iter() {
            let entry = entry.at(Op::List, ".")?;
            let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                Some(Type::File) => FileKind::File,
                Some(Type::Directory) => FileKind::Directory,
                Some(Type::Symlink) => FileKind::Symlink,
                Some(_) => FileKind::Special,
                // Some file systems do not say it here.
                None => self.stat(Path::new(name))?.kind,
            };
            entries.push(DirEntry { name: name.to_owned(), kind });
        }
        Ok(entries)
    }

    fn set_mode(&self, path: &Path, mode: u32) -> Result<(), PathError> {
        let mode = Mode::from_bits_truncate(mode);
        nix::sys::stat::fchmodat(&self.fd, path, mode, FchmodatFlags::NoFollowSymlink).at(Op::SetMode, path)
    }

    fn set_owner(&self, path: &Path, owner: Owner) -> Result<(), PathError> {
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        nix::unistd::fchownat(&self.fd, path, Some(uid), Some(gid), flags).at(Op::SetOwner, path)
    }

    fn set_mtime(&self, path: &Path, mtime: SystemTime) -> Result<(), PathError> {
        let time = time_spec(mtime);
        let flags = UtimensatFlags::NoFollowSymlink;
        nix::sys::stat::utimensat(&self.fd, path, &time, &time, flags).at(Op::SetTime, path)
    }
}

impl From<&FileStat> for Stat {
    fn from(stat: &FileStat) -> Self {
        let kind = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => FileKind::File,
            SFlag::S_IFDIR => FileKind::Directory,
            SFlag::S_IFLNK => FileKind::Symlink,
            _ => FileKind::Special,
        };
        Self {
            kind,
            mode: stat.st_mode & 0o7777,
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
            disk_bytes: u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
            #[allow(clippy::useless_conversion, reason = "32 bits wide on aarch64")]
            links: stat.st_nlink.into(),
            inode: stat.st_ino,
            device: stat.st_dev,
            owner: Owner { uid: stat.st_uid, gid: stat.st_gid },
            mtime: system_time(stat.st_mtime, stat.st_mtime_nsec),
        }
    }
}

/// The kernel's form of a time; times before 1970 are negative seconds and positive nanoseconds.
pub(crate) fn time_spec(time: SystemTime) -> TimeSpec {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => TimeSpec::from_duration(after),
        Err(error) => {
            let before = error.duration();
            let round_up = i64::from(before.subsec_nanos() != 0);
            let seconds = -i64::try_from(before.as_secs()).unwrap_or(i64::MAX) - round_up;
            let nanos = (1_000_000_000 - i64::from(before.subsec_nanos())) % 1_000_000_000;
            TimeSpec::new(seconds, nanos)
        }
    }
}

fn system_time(seconds: i64, nanos: i64) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 { SystemTime::UNIX_EPOCH - whole } else { SystemTime::UNIX_EPOCH + whole };
    base + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

/// The umask, from /proc: the system call that reads it also sets it, for all threads.
fn process_umask() -> Mode {
    let umask = std::fs::read_to_string("/proc/self/status").ok().and_then(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
        u32::from_str_radix(line.trim(), 8).ok()
    });
    // Where it cannot be read, every creation is followed by a repair.
    umask.map_or(Mode::all(), Mode::from_bits_truncate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_exact_whatever_the_umask() {
        let folder = tempfile::tempdir().unwrap();
        let dir = OsDir { umask: Mode::all(), ..OsDir::open(folder.path()).unwrap() };
        dir.make_dir(Path::new("d"), 0o1777).unwrap();
        drop(dir.create_file(Path::new("f"), 0o666).unwrap());
        assert_eq!(dir.stat(Path::new("d")).unwrap().mode, 0o1777);
        assert_eq!(dir.stat(Path::new("f")).unwrap().mode, 0o666);
    }

    #[test]
    fn times_before_1970_survive() {
        let folder = tempfile::tempdir().unwrap();
        let dir = OsDir::open(folder.path()).unwrap();
        drop(dir.create_file(Path::new("f"), 0o644).unwrap());
        for mtime in [
            SystemTime::UNIX_EPOCH - Duration::new(5, 250),
            SystemTime::UNIX_EPOCH,
            SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789),
        ] {
            dir.set_mtime(Path::new("f"), mtime).unwrap();
            assert_eq!(dir.stat(Path::new("f")).unwrap().mtime, mtime);
        }
    }

    #[test]
    fn the_last_component_is_never_followed() {
        let folder = tempfile::tempdir().unwrap();
        let dir = OsDir::open(folder.path()).unwrap();
        dir.make_dir(Path::new("d"), 0o755).unwrap();
        dir.symlink("d", Path::new("to-d")).unwrap();
        dir.symlink("/etc/passwd", Path::new("to-file")).unwrap();
        assert_eq!(dir.open_dir(Path::new("to-d")).err().unwrap().errno, Errno::ENOTDIR);
        assert_eq!(dir.open_file(Path::new("to-file")).unwrap_err().errno, Errno::ELOOP);
        assert_eq!(dir.stat(Path::new("to-file")).unwrap().kind, FileKind::Symlink);
    }

    // What an action made of its folder must not lead the worker out of it.
    #[test]
    fn links_are_followed_only_as_long_as_they_stay_below() {
        let folder = tempfile::tempdir().unwrap();
        let dir = OsDir::open(folder.path()).unwrap();
        dir.make_dir(Path::new("d"), 0o755).unwrap();
        dir.make_dir(Path::new("d/e"), 0o755).unwrap();
        dir.symlink("d/../d", Path::new("inside")).unwrap();
        dir.symlink("..", Path::new("above")).unwrap();
        dir.symlink("/etc", Path::new("outside")).unwrap();
        assert!(dir.open_beneath(Path::new("inside/e")).is_ok());
        assert!(dir.open_beneath(Path::new("")).is_ok());
        for path in ["above", "outside", "inside/../../x"] {
            assert_eq!(dir.open_beneath(Path::new(path)).unwrap_err().errno, Errno::EXDEV, "{path}");
        }
    }

    #[test]
    fn a_locked_directory_is_unlocked_by_its_descriptor() {
        let folder = tempfile::tempdir().unwrap();
        let dir = OsDir::open(folder.path()).unwrap();
        dir.make_dir(Path::new("d"), 0o005).unwrap();
        let locked = dir.open_sub(Path::new("d")).unwrap();
        locked.unlock().unwrap();
        assert_eq!(dir.stat(Path::new("d")).unwrap().mode, 0o705);
        assert!(locked.entries().unwrap().is_empty());
    }

    #[test]
    fn a_nameless_file_gets_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let dir = OsDir::open(folder.path()).unwrap();
        let file = tempfile::tempfile_in(folder.path()).unwrap();
        dir.link_file(&file, Path::new("named")).unwrap();
        assert_eq!(dir.link_file(&file, Path::new("named")).unwrap_err().errno, Errno::EEXIST);
    }
}
