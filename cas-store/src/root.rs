//! Who owns a folder of data, and whether what lies there can be trusted.
//!
//! Invariants: the lock is taken before anything in the folder is looked at or changed; a folder that holds
//! something else is refused, not moved into; what a crash of the machine may have torn is never called
//! trusted, not even if the verification that follows is itself killed; whatever the umask, nobody else can change
//! what lies here, nor open the files that say what it is.
//!
//! *Locking*: an exclusive `flock` on `lock`, held by the descriptor and so by the process; it ends with it,
//! however it ends.
//!
//! *Crash safety*: a kill of the process loses nothing that was published, because the kernel has it. A crash of
//! the machine can: `clean` says that everything was written back, and is removed durably before anything
//! is written; `boot` says since which boot everything was written or verified.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::Mode;

use crate::dir::{Dir, Op, OsDir, PathError, PathErrorExt};

/// The layout that this version reads and writes.
const FORMAT: &str = "longshore 1";

/// Names that identify the folder and its state.
const FORMAT_FILE: &str = "format";
const LOCK_FILE: &str = "lock";
const BOOT_FILE: &str = "boot";
const CLEAN_FILE: &str = "clean";

/// Where the kernel says which boot this is.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// Passable by everybody: the way to what an action reads leads through it, and through new folders above it.
const ROOT_MODE: u32 = 0o755;
/// What others than the owner must not have: they could replace whatever lies here.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Files that say what lies here. Whoever can open the lock can hold it, so nobody else can.
const FILE_MODE: u32 = 0o600;

/// The rooms and their modes. Actions may pass through those that hold their files, and list none.
const FOLDERS: [(&str, u32); 7] = [
    ("blobs", 0o700),
    ("executables", 0o700),
    ("records", 0o700),
    ("scratch", 0o700),
    ("trash", 0o700),
    ("trees", 0o711),
    ("work", 0o711),
];

/// A folder of data that this process alone uses, until it is dropped.
///
/// It must outlive everything that was opened in it.
#[derive(Debug)]
pub struct StoreRoot {
    path: PathBuf,
    dir: OsDir,
    trust: Trust,
    _lock: Flock<File>,
}

/// What the last owner left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Nothing: the folder is new.
    Fresh,
    /// It stopped cleanly, or was killed since this boot: all that was published is whole.
    Trusted,
    /// The machine went down under it: verify before first use.
    Unverified,
}

/// Why a folder cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RootError {
    /// Another process uses it.
    #[error("{} is in use by another longshore{}", .path.display(), .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Held {
        /// The folder.
        path: PathBuf,
        /// Who uses it, where it said so.
        pid: Option<u32>,
    },
    /// It was written by a version with another layout.
    #[error("{} has format {found:?}, this longshore reads {expected:?}", .path.display())]
    Format {
        /// The folder.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What we write.
        expected: String,
    },
    /// It holds data of somebody else's, under names that would be cleaned.
    #[error("{} has a folder {folder:?} that is not longshore's: choose a new or an empty folder", .path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// The name in it.
        folder: &'static str,
    },
    /// A file operation failed.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl StoreRoot {
    /// Creates the folder if need be, and takes it for this process.
    pub fn claim(path: &Path) -> Result<Self, RootError> {
        let mut folders = DirBuilder::new();
        if let Some(parent) = path.parent() {
            folders.recursive(true).mode(ROOT_MODE).create(parent).at(Op::MakeDir, parent)?;
        }
        let created = match folders.recursive(false).create(path) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => return Err(Err::<(), _>(error).at(Op::MakeDir, path).unwrap_err().into()),
        };
        let path = path.canonicalize().at(Op::Open, path)?;
        let dir = OsDir::open(&path)?;
        close_folder(&path, created)?;
        let lock = lock(&path)?;
        let is_new = check_format(&path, &dir)?;
        let trust = if is_new { Trust::Fresh } else { read_trust(&path)? };
        for (name, mode) in FOLDERS {
            match dir.make_dir(Path::new(name), mode) {
                Err(error) if error.errno != Errno::EEXIST => {
                    return Err(PathError { path: path.join(name), ..error }.into());
                }
                _ => {}
            }
        }
        remove_clean_marker(&path)?;
        let root = Self { path, dir, trust, _lock: lock };
        if trust != Trust::Unverified {
            root.vouch()?;
        }
        Ok(root)
    }

    /// Where it is: an absolute path without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder itself.
    pub fn dir(&self) -> &OsDir {
        &self.dir
    }

    /// What the last owner left behind.
    pub fn trust(&self) -> Trust {
        self.trust
    }

    /// Says that everything in the folder was verified since this boot: a kill from here on loses nothing.
    ///
    /// To be called once every room of an [unverified](Trust::Unverified) root is open. Until then, whoever claims
    /// the folder next finds it unverified again.
    pub fn vouch(&self) -> Result<(), RootError> {
        self.write(BOOT_FILE, &boot_id()?)
    }

    /// The text of the small file `name` in the folder, trimmed; nothing if there is no such file.
    pub fn read(&self, name: &str) -> Result<Option<String>, RootError> {
        Ok(read_text(&self.path.join(name))?)
    }

    /// Puts the small file `name` in the folder, whole or not at all, for nobody else to read.
    pub fn write(&self, name: &str, text: &str) -> Result<(), RootError> {
        Ok(write_text(&self.path.join(name), text)?)
    }

    /// Marks a clean stop: everything is written back first. Blocks.
    ///
    /// Without [`StoreRoot::vouch`], an unverified root stays unverified.
    pub fn release(self) -> Result<(), RootError> {
        if read_text(&self.path.join(BOOT_FILE))?.as_deref() != Some(&*boot_id()?) {
            return Ok(());
        }
        let file = open_folder(&self.path)?;
        nix::unistd::syncfs(&file).at(Op::Sync, &self.path)?;
        self.write(CLEAN_FILE, "")?;
        nix::unistd::fsync(&file).at(Op::Sync, &self.path)?;
        Ok(())
    }
}

/// Lets nobody else replace what lies in the folder.
fn close_folder(path: &Path, created: bool) -> Result<(), PathError> {
    let found = path.metadata().at(Op::Stat, path)?.permissions().mode();
    let mode = if created { ROOT_MODE } else { found & !WRITABLE_BY_OTHERS };
    if mode == found {
        return Ok(());
    }
    match std::fs::set_permissions(path, Permissions::from_mode(mode)) {
        // A volume whose owner lets us in. We are not root, then, and actions run as ourselves.
        Err(error) if !created && error.kind() == ErrorKind::PermissionDenied => Ok(()),
        result => result.at(Op::SetMode, path),
    }
}

/// Takes the lock, and leaves our process id for those who come after.
fn lock(root: &Path) -> Result<Flock<File>, RootError> {
    let path = root.join(LOCK_FILE);
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
    let file = options.open(&path).at(Op::Open, &path)?;
    close_to_others(&file, &path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0).at(Op::Write, &path)?;
            writeln!(lock, "{}", std::process::id()).at(Op::Write, &path)?;
            Ok(lock)
        }
        Err((_, Errno::EWOULDBLOCK)) => {
            let pid = read_text(&path)?.and_then(|text| text.parse().ok());
            Err(RootError::Held { path: root.to_owned(), pid })
        }
        Err((_, errno)) => Err(PathError { op: Op::Lock, path, errno }.into()),
    }
}

/// Whether the folder is new; it bears our format from then on, before anything else is created in it.
fn check_format(root: &Path, dir: &OsDir) -> Result<bool, RootError> {
    let path = root.join(FORMAT_FILE);
    let refused =
        |found: String| RootError::Format { path: root.to_owned(), found, expected: FORMAT.to_owned() };
    match read_text(&path)? {
        Some(found) if found == FORMAT => {
            close_to_others(&File::open(&path).at(Op::Open, &path)?, &path)?;
            Ok(false)
        }
        Some(found) => Err(refused(found)),
        None => {
            // Folders of these names that we did not create are somebody's data: they would be cleaned.
            if let Some((folder, _)) = FOLDERS.iter().find(|(name, _)| dir.stat(Path::new(name)).is_ok()) {
                return Err(RootError::Foreign { path: root.to_owned(), folder });
            }
            write_text(&path, FORMAT)?;
            Ok(true)
        }
    }
}

fn read_trust(root: &Path) -> Result<Trust, RootError> {
    let is_clean = read_text(&root.join(CLEAN_FILE))?.is_some();
    let is_same_boot = read_text(&root.join(BOOT_FILE))?.as_deref() == Some(&*boot_id()?);
    Ok(if is_clean || is_same_boot { Trust::Trusted } else { Trust::Unverified })
}

/// Removes the marker before anything is written, durably: a crash must not find it beside torn files.
fn remove_clean_marker(root: &Path) -> Result<(), PathError> {
    let path = root.join(CLEAN_FILE);
    match std::fs::remove_file(&path) {
        Ok(()) => nix::unistd::fsync(open_folder(root)?).at(Op::Sync, root),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).at(Op::Remove, path),
    }
}

fn open_folder(path: &Path) -> Result<std::os::fd::OwnedFd, PathError> {
    nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .at(Op::Open, path)
}

fn boot_id() -> Result<String, PathError> {
    let id = std::fs::read_to_string(BOOT_ID_FILE).at(Op::Read, BOOT_ID_FILE)?;
    Ok(id.trim().to_owned())
}

/// The text of a small file, trimmed; nothing if there is no such file.
fn read_text(path: &Path) -> Result<Option<String>, PathError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at(Op::Read, path),
    }
}

/// Puts a small file where it may have been, whole or not at all.
fn write_text(path: &Path, text: &str) -> Result<(), PathError> {
    let temporary = path.with_extension("new");
    let mut options = File::options();
    let options = options.write(true).create(true).truncate(true).mode(FILE_MODE);
    let mut file = options.open(&temporary).at(Op::Open, &temporary)?;
    close_to_others(&file, &temporary)?;
    file.write_all(text.as_bytes()).at(Op::Write, &temporary)?;
    // A crash of the machine leaves what was there before, or this.
    file.sync_all().at(Op::Sync, &temporary)?;
    std::fs::rename(&temporary, path).at(Op::Rename, path)
}

/// Puts right what was created without a mode.
fn close_to_others(file: &File, path: &Path) -> Result<(), PathError> {
    file.set_permissions(Permissions::from_mode(FILE_MODE)).at(Op::SetMode, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As after a crash of the machine: the boot that wrote is not this one.
    fn pretend_other_boot(path: &Path) {
        std::fs::write(path.join(BOOT_FILE), "another boot").unwrap();
    }

    #[test]
    fn a_root_has_one_owner_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/root");
        let root = StoreRoot::claim(&path).unwrap();
        let error = StoreRoot::claim(&path).unwrap_err();
        assert!(
            matches!(error, RootError::Held { pid: Some(pid), .. } if pid == std::process::id()),
            "{error}"
        );
        drop(root);
        StoreRoot::claim(&path).unwrap();
    }

    #[test]
    fn an_action_can_pass_to_its_files_and_to_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let root = StoreRoot::claim(&folder.path().join("root")).unwrap();
        let mode = |name: &str| root.path().join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(""), mode("work"), mode("trees")), (0o755, 0o711, 0o711));
        assert_eq!((mode("blobs"), mode("executables"), mode("records")), (0o700, 0o700, 0o700));
    }

    // Whoever opens the lock can hold it, and whoever writes the rest decides what is trusted.
    #[test]
    fn what_others_could_open_or_replace_is_put_right() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root");
        StoreRoot::claim(&path).unwrap().release().unwrap();
        std::fs::write(path.join("boot.new"), "left by a crash").unwrap();
        let set = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        for name in [LOCK_FILE, FORMAT_FILE, BOOT_FILE, "boot.new"] {
            set(&path.join(name), 0o666);
        }
        set(&path, 0o777);
        let root = StoreRoot::claim(&path).unwrap();
        let mode = |name: &str| path.join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(LOCK_FILE), mode(FORMAT_FILE), mode(BOOT_FILE)), (0o600, 0o600, 0o600));
        assert_eq!(mode(""), 0o755);
        root.release().unwrap();
        assert_eq!(mode(CLEAN_FILE), 0o600);
    }

    // An operator who has to do something about it needs to know where.
    #[test]
    fn an_error_says_the_whole_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root");
        drop(StoreRoot::claim(&path).unwrap());
        std::fs::create_dir(path.join(CLEAN_FILE)).unwrap();
        let error = StoreRoot::claim(&path).unwrap_err().to_string();
        assert!(error.contains(path.join(CLEAN_FILE).to_str().unwrap()), "{error}");
    }

    #[test]
    fn trust_follows_from_how_the_last_owner_ended() {
        let folder = tempfile::tempdir().unwrap();
        let claim = || StoreRoot::claim(folder.path()).unwrap();
        assert_eq!(claim().trust(), Trust::Fresh);
        assert_eq!(claim().trust(), Trust::Trusted, "killed since this boot");
        pretend_other_boot(folder.path());
        assert_eq!(claim().trust(), Trust::Unverified, "the machine went down");
        let root = claim();
        assert_eq!(root.trust(), Trust::Unverified, "killed before everything was verified");
        root.vouch().unwrap();
        claim_after(root).release().unwrap();
        pretend_other_boot(folder.path());
        assert_eq!(claim().trust(), Trust::Trusted, "stopped cleanly before the boot");
    }

    fn claim_after(root: StoreRoot) -> StoreRoot {
        let path = root.path().to_owned();
        drop(root);
        let root = StoreRoot::claim(&path).unwrap();
        assert_eq!(root.trust(), Trust::Trusted);
        root
    }

    // A stop that follows a failed start must not turn torn files into trusted ones.
    #[test]
    fn an_unverified_root_is_not_released_as_clean() {
        let folder = tempfile::tempdir().unwrap();
        drop(StoreRoot::claim(folder.path()).unwrap());
        pretend_other_boot(folder.path());
        StoreRoot::claim(folder.path()).unwrap().release().unwrap();
        assert_eq!(StoreRoot::claim(folder.path()).unwrap().trust(), Trust::Unverified);
    }

    #[test]
    fn folders_of_others_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("work")).unwrap();
        let error = StoreRoot::claim(folder.path()).unwrap_err();
        assert!(matches!(&error, RootError::Foreign { folder: "work", .. }), "{error}");
        std::fs::write(folder.path().join(FORMAT_FILE), "longshore 99\n").unwrap();
        let error = StoreRoot::claim(folder.path()).unwrap_err();
        assert!(matches!(&error, RootError::Format { found, .. } if found == "longshore 99"), "{error}");
    }

    #[test]
    fn the_path_has_no_symbolic_links() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, folder.path().join("alias")).unwrap();
        assert_eq!(StoreRoot::claim(&folder.path().join("alias")).unwrap().path(), real);
    }
}
