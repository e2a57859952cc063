//! Who actions run as, decided once at start-up.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use longshore_cas_store::dir::Owner;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use nix::unistd::{Uid, User};

/// The user that actions run as where longshore runs as root and is told no other.
pub const DEFAULT_ACTION_USER: &str = "nobody";

/// Who actions run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Longshore's own user: the store is protected by its modes only.
    Own {
        /// Why not another.
        reason: String,
    },
    /// Another user, who can do nothing to the store.
    Other {
        /// That user.
        owner: Owner,
        /// Its name.
        name: String,
        /// What hides the way to the work folder from that user, and is covered in the actions' view.
        cover: Option<Cover>,
    },
}

/// A folder that the action's user cannot search, replaced in the actions' view by the bare way to their work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover {
    /// The outermost folder that cannot be searched.
    pub(super) ancestor: PathBuf,
    /// The work folder, below it.
    pub(super) work: PathBuf,
}

/// Why actions cannot run as the user that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("actions cannot run as {user:?}: {reason}")]
pub struct IdentityError {
    user: String,
    reason: String,
}

impl Identity {
    /// The user that was asked for, and no other.
    pub fn of(work: &Path, user: &str) -> Result<Self, IdentityError> {
        let own = User::from_uid(Uid::effective()).ok().flatten();
        if own.is_some_and(|own| own.name == user) {
            return Ok(Self::Own { reason: "as it was told".to_owned() });
        }
        match Self::probe(work, user) {
            Self::Own { reason } => Err(IdentityError { user: user.to_owned(), reason }),
            other @ Self::Other { .. } => Ok(other),
        }
    }

    /// Finds out who actions in `work`, an absolute path without symbolic links, can run as.
    pub fn probe(work: &Path, user: &str) -> Self {
        if !Uid::effective().is_root() {
            return Self::Own { reason: "longshore is not root".to_owned() };
        }
        let owner = match User::from_name(user) {
            Ok(Some(found)) => Owner { uid: found.uid.as_raw(), gid: found.gid.as_raw() },
            Ok(None) => return Self::Own { reason: format!("there is no user {user:?}") },
            Err(errno) => return Self::Own { reason: format!("cannot look up user {user}: {errno}") },
        };
        if !can_change_user() {
            return Self::Own { reason: "longshore lacks CAP_SETUID, CAP_SETGID or CAP_CHOWN".to_owned() };
        }
        if !is_mapped("/proc/self/uid_map", owner.uid) || !is_mapped("/proc/self/gid_map", owner.gid) {
            return Self::Own { reason: format!("this user namespace does not know {user}") };
        }
        let name = user.to_owned();
        match unsearchable_ancestor(work, owner) {
            None => Self::Other { owner, name, cover: None },
            Some(ancestor) if can_mount() => {
                let cover = Some(Cover { ancestor, work: work.to_owned() });
                Self::Other { owner, name, cover }
            }
            Some(ancestor) => Self::Own {
                reason: format!("{user} cannot search {} and longshore cannot mount", ancestor.display()),
            },
        }
    }

    /// The owner of input roots and the user of commands; nothing for longshore's own.
    pub fn owner(&self) -> Option<Owner> {
        match self {
            Self::Own { .. } => None,
            Self::Other { owner, .. } => Some(*owner),
        }
    }

    pub(super) fn cover(&self) -> Option<&Cover> {
        match self {
            Self::Own { .. } => None,
            Self::Other { cover, .. } => cover.as_ref(),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own { reason } => write!(f, "longshore's own user ({reason})"),
            Self::Other { name, owner, cover: None } => write!(f, "{name} ({})", owner.uid),
            Self::Other { name, owner, cover: Some(cover) } => {
                write!(f, "{name} ({}), with {} out of view", owner.uid, cover.ancestor.display())
            }
        }
    }
}

impl Cover {
    /// Changes what this process and its children see. Must be called while there is one thread.
    ///
    /// Nothing is hidden that the action's user could have reached: the ancestor was closed to it.
    pub(super) fn apply(&self) -> nix::Result<()> {
        const NONE: Option<&str> = None;
        nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)?;
        let work = nix::fcntl::open(
            &self.work,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), &self.ancestor, Some("tmpfs"), flags, Some("mode=0711,size=1m,nr_inodes=4k"))?;
        let below = self.work.strip_prefix(&self.ancestor).map_err(|_| nix::errno::Errno::EINVAL)?;
        let mut path = self.ancestor.clone();
        for component in below {
            path.push(component);
            nix::unistd::mkdir(&path, Mode::from_bits_truncate(0o711))?;
            // The umask may have taken something away.
            nix::sys::stat::fchmodat(
                nix::fcntl::AT_FDCWD,
                &path,
                Mode::from_bits_truncate(0o711),
                nix::sys::stat::FchmodatFlags::FollowSymlink,
            )?;
        }
        let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&work));
        mount(Some(source.as_str()), &path, NONE, MsFlags::MS_BIND, NONE)
    }
}

/// The outermost ancestor of `work` (or `work` itself) that `owner` cannot search.
fn unsearchable_ancestor(work: &Path, owner: Owner) -> Option<PathBuf> {
    let mut ancestors: Vec<&Path> = work.ancestors().collect();
    ancestors.reverse();
    ancestors.into_iter().find(|path| !is_searchable(path, owner)).map(Path::to_owned)
}

fn is_searchable(path: &Path, owner: Owner) -> bool {
    let Ok(metadata) = path.metadata() else { return false };
    let bit = if metadata.uid() == owner.uid {
        0o100
    } else if metadata.gid() == owner.gid {
        0o010
    } else {
        0o001
    };
    metadata.mode() & bit != 0
}

const CAP_CHOWN: u32 = 0;
const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_SYS_ADMIN: u32 = 21;

fn can_change_user() -> bool {
    [CAP_CHOWN, CAP_SETGID, CAP_SETUID].into_iter().all(has_capability)
}

fn can_mount() -> bool {
    has_capability(CAP_SYS_ADMIN)
}

/// Whether this user namespace knows that user or group (`user_namespaces(7)`, `/proc/self/uid_map`).
fn is_mapped(map: &str, id: u32) -> bool {
    // Where there is no such file, there are no user namespaces.
    std::fs::read_to_string(map).map_or(true, |map| maps(&map, id))
}

fn maps(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut fields = line.split_whitespace().map(str::parse::<u32>);
        match (fields.next(), fields.next(), fields.next()) {
            (Some(Ok(first)), Some(Ok(_outside)), Some(Ok(count))) => id >= first && id - first < count,
            _ => false,
        }
    })
}

/// Whether the capability of that number is effective (capabilities(7), `CapEff` of /proc/self/status).
fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set >> number & 1 == 1)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_outermost_closed_folder_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let closed = folder.path().canonicalize().unwrap().join("closed");
        let work = closed.join("also-closed/work");
        std::fs::create_dir_all(&work).unwrap();
        for path in [folder.path(), &work] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        for path in [&closed, &closed.join("also-closed")] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o700)).unwrap();
        }
        let other = |own: u32| if own == 65534 { 65533 } else { 65534 };
        let stranger = Owner {
            uid: other(Uid::effective().as_raw()),
            gid: other(nix::unistd::Gid::effective().as_raw()),
        };
        assert_eq!(unsearchable_ancestor(&work, stranger), Some(closed.clone()));
        let own = Owner { uid: Uid::effective().as_raw(), gid: 65534 };
        assert_eq!(unsearchable_ancestor(&work, own), None);
    }

    #[test]
    fn a_namespace_knows_the_users_that_it_maps() {
        let whole = "         0          0 4294967295\n";
        let two = "0 1000 1\n65534 165534 2\n";
        for (map, id, known) in [
            (whole, 0, true),
            (whole, 65534, true),
            (two, 0, true),
            (two, 1, false),
            (two, 65535, true),
            (two, 65536, false),
            ("", 0, false),
        ] {
            assert_eq!(maps(map, id), known, "{map:?} {id}");
        }
    }

    #[test]
    fn an_ordinary_user_runs_actions_as_itself() {
        if !Uid::effective().is_root() {
            assert_eq!(Identity::probe(Path::new("/"), DEFAULT_ACTION_USER).owner(), None);
        }
    }

    #[test]
    fn an_unknown_user_is_no_other() {
        assert_eq!(Identity::probe(Path::new("/"), "no-such-user").owner(), None);
        assert!(Identity::of(Path::new("/"), "no-such-user").is_err());
    }

    #[test]
    fn the_own_user_can_be_asked_for() {
        let own = User::from_uid(Uid::effective()).unwrap().expect("a name");
        assert_eq!(Identity::of(Path::new("/"), &own.name).unwrap().owner(), None);
    }
}
