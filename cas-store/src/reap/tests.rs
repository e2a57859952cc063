use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::dir::OsDir;

struct Fixture {
    folder: tempfile::TempDir,
    dir: OsDir,
    reaper: Reaper,
}

fn pool() -> IoPool {
    IoPool::new(Arc::new(rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap()))
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("trash")).unwrap();
    let dir = OsDir::open(folder.path()).unwrap();
    let reaper = Reaper::new(dir.open_dir(Path::new("trash")).unwrap(), pool()).unwrap();
    Fixture { folder, dir, reaper }
}

impl Fixture {
    fn discard_and_settle(&self, name: &str) {
        let runs = Arc::new(AtomicUsize::new(0));
        let counter = runs.clone();
        self.reaper
            .discard(&self.dir, Path::new(name), move || {
                counter.fetch_add(1, Ordering::SeqCst);
            })
            .unwrap();
        assert!(!self.folder.path().join(name).exists(), "still in sight");
        futures::executor::block_on(self.reaper.settled());
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert_eq!(self.trashed(), 0);
    }

    fn trashed(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("trash")).unwrap().count()
    }
}

#[test]
fn a_wide_tree_goes_and_what_it_refers_to_stays() {
    let fixture = fixture();
    let root = fixture.folder.path();
    std::fs::write(root.join("kept"), "kept").unwrap();
    for folder in 0..40 {
        let folder = root.join(format!("tree/{}/{folder}", folder % 4));
        std::fs::create_dir_all(&folder).unwrap();
        for file in 0..20 {
            std::fs::hard_link(root.join("kept"), folder.join(file.to_string())).unwrap();
        }
        std::os::unix::fs::symlink(root, folder.join("link")).unwrap();
    }
    fixture.discard_and_settle("tree");
    assert_eq!(std::fs::read_to_string(root.join("kept")).unwrap(), "kept");
}

// Where there is hardly anything, the trash is not troubled; and what is more than that goes by the trash.
#[test]
fn what_an_action_leaves_goes_whatever_it_is() {
    let fixture = fixture();
    let dir: Arc<dyn Dir> = Arc::from(fixture.dir.open_dir(Path::new(".")).unwrap());
    let path = |name: &str| fixture.folder.path().join(name);
    let many: Vec<_> = (0..100).map(|number| format!("tree/{number}")).collect();
    let trees: [(&[&str], &[&str], u64); 5] = [
        (&["tree"], &[], 0),
        (&["tree/root"], &["tree/stdout", "tree/stderr"], 0),
        (&["tree/root"], &["tree/root/file", "tree/stdout"], 1),
        (&["tree/root/inner/deep"], &[], 1),
        (&["tree"], &many.iter().map(String::as_str).collect::<Vec<_>>(), 1),
    ];
    for (folders, files, buried) in trees {
        for folder in folders {
            std::fs::create_dir_all(path(folder)).unwrap();
        }
        for file in files {
            std::fs::write(path(file), "x").unwrap();
        }
        let before = fixture.reaper.shared.names.load(Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let gone = move || sender.send(()).unwrap();
        fixture.reaper.discard_work_later(dir.clone(), PathBuf::from("tree"), gone);
        futures::executor::block_on(receiver).unwrap();
        futures::executor::block_on(fixture.reaper.settled());
        assert!(!path("tree").exists());
        assert_eq!(fixture.trashed(), 0);
        let names = fixture.reaper.shared.names.load(Ordering::Relaxed) - before;
        assert_eq!(names.min(1), buried, "{folders:?} {files:?}");
    }
}

#[test]
fn a_single_file_goes_too() {
    let fixture = fixture();
    std::fs::write(fixture.folder.path().join("file"), "x").unwrap();
    fixture.discard_and_settle("file");
}

// An action may leave directories that it has locked itself out of.
#[test]
fn modes_do_not_keep_anything() {
    let fixture = fixture();
    let path = |name: &str| fixture.folder.path().join(name);
    for name in ["tree/closed/inner/deep", "tree/read-only/inner", "tree/search-only"] {
        std::fs::create_dir_all(path(name)).unwrap();
        std::fs::write(path(name).join("file"), "x").unwrap();
    }
    for (name, mode) in [
        ("tree/closed/inner", 0o000),
        ("tree/closed", 0o000),
        ("tree/read-only", 0o500),
        ("tree/search-only", 0o100),
        ("tree", 0o000),
    ] {
        std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    fixture.discard_and_settle("tree");
}

// Neither the stack, nor the descriptors, nor the longest path of a system call bound the depth.
#[test]
fn a_tree_far_deeper_than_any_path_goes() {
    let fixture = fixture();
    let name = Path::new("a-name-that-makes-the-path-long-in-few-levels");
    fixture.dir.make_dir(Path::new("tree"), 0o755).unwrap();
    let mut innermost = fixture.dir.open_dir(Path::new("tree")).unwrap();
    for _ in 0..5_000 {
        innermost.make_dir(name, 0o755).unwrap();
        drop(innermost.create_file(Path::new("file"), 0o644).unwrap());
        innermost = innermost.open_dir(name).unwrap();
    }
    drop(innermost);
    fixture.discard_and_settle("tree");
}

#[test]
fn what_a_crash_left_in_the_trash_is_removed_and_its_name_not_reused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("trash/7/inner")).unwrap();
    let dir = OsDir::open(folder.path()).unwrap();
    let reaper = Reaper::new(dir.open_dir(Path::new("trash")).unwrap(), pool()).unwrap();
    assert_eq!(reaper.shared.names.load(Ordering::Relaxed), 8);
    futures::executor::block_on(reaper.settled());
    assert!(!folder.path().join("trash/7").exists());
}

// References must not be kept for ever because something was gone already.
#[test]
fn after_runs_also_when_there_is_nothing_to_rename() {
    let fixture = fixture();
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = runs.clone();
    let outcome = fixture.reaper.discard(&fixture.dir, Path::new("absent"), move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    assert_eq!(outcome.unwrap_err().errno, Errno::ENOENT);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[test]
fn many_discards_settle_together() {
    let fixture = fixture();
    for number in 0..100 {
        let name = number.to_string();
        std::fs::create_dir_all(fixture.folder.path().join(&name).join("inner")).unwrap();
        fixture.reaper.discard(&fixture.dir, Path::new(&name), || {}).unwrap();
    }
    futures::executor::block_on(fixture.reaper.settled());
    assert_eq!(fixture.trashed(), 0);
}
