use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use longshore_cas_store::name::RelPath;
use nix::sys::stat::Mode;

use super::*;

/// An action's folder in a temporary one, and a secret beside it that no output may show.
struct Fixture {
    _folder: tempfile::TempDir,
    root: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        let root = base.join("root");
        fs::create_dir(&root).unwrap();
        fs::create_dir(base.join("outside")).unwrap();
        fs::write(base.join("outside/secret"), "secret").unwrap();
        Self { _folder: folder, root }
    }

    fn find(&self, kind: DeclaredKind, paths: &[&str]) -> Result<Inventory, CollectError> {
        let output = |path: &&str| DeclaredOutput {
            declared: (*path).to_owned(),
            path: RelPath::parse(path).unwrap(),
            kind,
        };
        let declared =
            DeclaredOutputs { paths: paths.iter().map(output).collect(), ..DeclaredOutputs::default() };
        let root = OsDir::open(&self.root).unwrap();
        find(&ActionFolder { root, path: self.root.clone() }, &declared)
    }
}

fn error(inventory: Result<Inventory, CollectError>) -> (String, bool) {
    match inventory.unwrap_err() {
        CollectError::Undeclarable { reason, precondition, .. } => (reason, precondition),
        other => panic!("{other}"),
    }
}

fn found(inventory: &Inventory) -> Vec<&str> {
    inventory.outputs.iter().map(|output| output.declared.as_str()).collect()
}

// OUT-17: what does not exist is left out.
#[test]
fn missing_outputs_are_left_out() {
    let fixture = Fixture::new();
    fs::write(fixture.root.join("file"), "x").unwrap();
    let inventory = fixture.find(DeclaredKind::Path, &["no", "no/such", "file/below", "file"]).unwrap();
    assert_eq!(found(&inventory), ["file"]);
    assert!(inventory.notes.is_empty(), "{:?}", inventory.notes);
}

// OSY-09: a parent that the action replaced by a link out of its folder shows nothing.
#[test]
fn nothing_is_collected_through_a_link_that_leads_out() {
    let fixture = Fixture::new();
    symlink("../outside", fixture.root.join("relative")).unwrap();
    symlink(fixture.root.join("../outside"), fixture.root.join("climbing")).unwrap();
    symlink("/etc", fixture.root.join("absolute")).unwrap();
    symlink("/proc/self/root/etc", fixture.root.join("magic")).unwrap();
    let paths = ["relative/secret", "climbing/secret", "absolute/passwd", "magic/passwd"];
    for kind in [DeclaredKind::Path, DeclaredKind::File] {
        let inventory = fixture.find(kind, &paths).unwrap();
        assert!(inventory.outputs.is_empty() && inventory.files.is_empty(), "{inventory:?}");
        assert_eq!(inventory.notes.len(), paths.len());
    }
}

// Older fields follow absolute links, but only into the folder.
#[test]
fn links_out_of_the_folder_are_reported_and_not_followed() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.root.join("d")).unwrap();
    for (name, target) in [
        ("climbing", fixture.root.join("../outside/secret")),
        ("absolute", "/etc/passwd".into()),
        ("relative", "../../outside/secret".into()),
        ("magic", "/proc/self/cwd".into()),
    ] {
        symlink(&target, fixture.root.join("d").join(name)).unwrap();
        symlink(&target, fixture.root.join(name)).unwrap();
    }
    let paths = ["d", "climbing", "absolute", "relative", "magic"];
    for kind in [DeclaredKind::Path, DeclaredKind::File] {
        let inventory = fixture.find(kind, &paths).unwrap();
        assert!(inventory.files.is_empty(), "{inventory:?}");
        assert_eq!(inventory.directories.len(), 1);
        assert!(inventory.directories[0].entries.iter().all(|(_, node)| matches!(node, Node::Link(_))));
        assert!(inventory.outputs.iter().all(|output| output.leads_to.is_none()));
        assert_eq!(found(&inventory), paths);
    }
}

#[test]
fn links_inside_the_folder_say_what_they_lead_to() {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.root.join("d/e")).unwrap();
    fs::write(fixture.root.join("d/f"), "x").unwrap();
    let links = [
        ("to-file", "d/f", Some(FileKind::File)),
        ("to-directory", "d", Some(FileKind::Directory)),
        ("chain", "to-file", Some(FileKind::File)),
        ("climbing", "d/e/../f", Some(FileKind::File)),
        ("to-root", ".", Some(FileKind::Directory)),
        ("dangling", "no", None),
        ("loop", "loop", None),
    ];
    for (name, target, _) in links {
        symlink(target, fixture.root.join(name)).unwrap();
    }
    for kind in [DeclaredKind::Path, DeclaredKind::File] {
        for (name, target, leads_to) in links {
            let inventory = fixture.find(kind, &[name]).unwrap();
            let output = &inventory.outputs[0];
            assert!(matches!(&output.node, Node::Link(link) if link.target == target), "{output:?}");
            assert_eq!(output.leads_to, leads_to, "{name}");
        }
    }
}

// OUT-11: nested outputs and hard links are one file, which can be moved only once.
#[test]
fn every_inode_is_found_once() {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.root.join("d/e")).unwrap();
    fs::write(fixture.root.join("d/e/f"), "x").unwrap();
    fs::hard_link(fixture.root.join("d/e/f"), fixture.root.join("g")).unwrap();
    let inventory = fixture.find(DeclaredKind::Path, &["d/e/f", "d", "d/e", "g", ""]).unwrap();
    assert_eq!(inventory.outputs.len(), 5);
    assert_eq!(inventory.files.len(), 1);
    assert_eq!(inventory.directories.len(), 3);
}

// OUT-24.
#[test]
fn what_is_no_file_is_refused_or_left_out() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.root.join("d")).unwrap();
    nix::unistd::mkfifo(&fixture.root.join("d/fifo"), Mode::S_IRWXU).unwrap();
    let (reason, precondition) = error(fixture.find(DeclaredKind::Path, &["d/fifo"]));
    assert!(reason.contains("FIFO") && !precondition, "{reason}");
    let inventory = fixture.find(DeclaredKind::Path, &["d"]).unwrap();
    assert!(inventory.directories[0].entries.is_empty());
    assert!(inventory.notes[0].contains("d/fifo"), "{:?}", inventory.notes);
}

// OUT-20 as clients of REAPI 2.0 rely on it, OUT-21, OSY-05.
#[test]
fn an_output_directory_must_be_one_and_an_output_file_may_be() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.root.join("d")).unwrap();
    fs::write(fixture.root.join("f"), "x").unwrap();
    symlink("f", fixture.root.join("link")).unwrap();
    symlink(fixture.root.join("f"), fixture.root.join("absolute")).unwrap();
    for path in ["f", "link", "absolute"] {
        let (reason, precondition) = error(fixture.find(DeclaredKind::Directory, &[path]));
        assert!(reason.contains("file") && precondition, "{reason}");
    }
    let inventory = fixture.find(DeclaredKind::File, &["d"]).unwrap();
    assert!(matches!(inventory.outputs[0].node, Node::Directory(_)));
}

// OUT-33: a name is never changed to make it fit.
#[test]
fn names_that_are_not_utf8_are_refused_by_name() {
    for is_target in [false, true] {
        let fixture = Fixture::new();
        fs::create_dir(fixture.root.join("d")).unwrap();
        let odd = OsStr::from_bytes(b"a\xffb");
        if is_target {
            symlink(odd, fixture.root.join("d/link")).unwrap();
        } else {
            fs::write(fixture.root.join("d").join(odd), "x").unwrap();
        }
        let (reason, precondition) = error(fixture.find(DeclaredKind::Path, &["d"]));
        assert!(reason.contains(r"a\xffb") && precondition, "{reason}");
    }
}

// OUT-25: the worker owns the tree, whatever modes the action leaves.
#[test]
fn locked_directories_are_opened() {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.root.join("d/e")).unwrap();
    fs::write(fixture.root.join("d/e/f"), "x").unwrap();
    for path in ["d/e/f", "d/e", "d", ""] {
        fs::set_permissions(fixture.root.join(path), fs::Permissions::from_mode(0o0)).unwrap();
    }
    let inventory = fixture.find(DeclaredKind::Path, &["d/e/f"]).unwrap();
    assert_eq!(inventory.files.len(), 1);
    let inventory = fixture.find(DeclaredKind::Path, &["d"]).unwrap();
    assert_eq!((inventory.files.len(), inventory.directories.len()), (1, 2));
}

// Deeper than one path can name: the client's error, and no overflow of a stack.
#[test]
fn a_tree_deeper_than_paths_is_refused() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.root.join("d")).unwrap();
    let mut dir = OsDir::open(&fixture.root.join("d")).unwrap();
    let name = Path::new("0123456789012345678901234567890123456789");
    for _ in 0..110 {
        dir.make_dir(name, 0o755).unwrap();
        dir = dir.open_sub(name).unwrap();
    }
    let (reason, precondition) = error(fixture.find(DeclaredKind::Path, &["d"]));
    assert!(reason.contains("longer") && !precondition, "{reason}");
}
