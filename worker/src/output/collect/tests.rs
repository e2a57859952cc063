use std::fs;
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use longshore_cas_store::blob::{BlobStore, StoreOptions};
use longshore_cas_store::dir::OsDir;
use longshore_cas_store::io::IoPool;
use longshore_cas_store::io::{Clock, Environment, Executor};
use longshore_cas_store::name::RelPath;
use longshore_cas_store::root::StoreRoot;
use longshore_proto::Message as _;

use super::super::declare;
use super::*;

const FUNCTION: DigestFunction = DigestFunction::Sha256;

struct TokioExecutor(tokio::runtime::Handle);

impl Executor for TokioExecutor {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.0.spawn(task);
    }
}

struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// A store and, beside it, a folder in which an action could have run.
struct Fixture {
    _folder: tempfile::TempDir,
    _store_root: StoreRoot,
    root: PathBuf,
    store: Arc<BlobStore>,
    io: IoPool,
}

impl Fixture {
    /// Inside a tokio runtime.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        let io = IoPool::new(Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap()));
        let environment = Environment {
            io: io.clone(),
            executor: Arc::new(TokioExecutor(tokio::runtime::Handle::current())),
            clock: Arc::new(SystemClock),
        };
        let store_root = StoreRoot::claim(&base.join("store")).unwrap();
        let options = StoreOptions { size_bytes_max: 1 << 30 };
        let (store, _) = BlobStore::open(&store_root, options, environment).unwrap();
        let root = base.join("root");
        fs::create_dir(&root).unwrap();
        Self { _folder: folder, _store_root: store_root, root, store, io }
    }

    fn write(&self, path: &str, content: &str) {
        fs::write(self.root.join(path), content).unwrap();
    }

    fn chmod(&self, path: &str, mode: u32) {
        fs::set_permissions(self.root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    async fn collect(&self, command: &reapi::Command) -> Outputs {
        let declared = declare(command, &RelPath::default()).unwrap();
        let folder = ActionFolder { root: OsDir::open(&self.root).unwrap(), path: self.root.clone() };
        let intake = Arc::new(Intake::new(self.store.clone(), FUNCTION, None));
        let gather = {
            let intake = intake.clone();
            move || gather(&folder, &declared, &intake).unwrap()
        };
        self.io.run(gather).await.store(&intake).await.unwrap()
    }

    async fn read(&self, digest: Option<&reapi::Digest>) -> Vec<u8> {
        let digest = Digest::from_wire(FUNCTION, digest).unwrap();
        let pin = self.store.pin(&digest).unwrap_or_else(|| panic!("{digest} is not stored"));
        let content = self.store.read(&pin, 0..digest.size_bytes()).await.unwrap();
        assert_eq!(FUNCTION.digest(&content), digest);
        content.to_vec()
    }

    async fn read_text(&self, digest: Option<&reapi::Digest>) -> String {
        String::from_utf8(self.read(digest).await).unwrap()
    }

    /// Puts the outputs into a fresh folder as a client of REAPI 2.0 does.
    async fn download(&self, outputs: &Outputs) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        for file in &outputs.files {
            fs::write(at(&file.path), self.read(file.digest.as_ref()).await).unwrap();
        }
        for link in outputs.file_symlinks.iter().chain(&outputs.directory_symlinks) {
            symlink(&link.target, at(&link.path)).unwrap();
        }
        for directory in &outputs.directories {
            let tree = reapi::Tree::decode(&*self.read(directory.tree_digest.as_ref()).await).unwrap();
            let root = tree.root.clone().unwrap();
            self.unpack(&root, &tree.children, &at(&directory.path)).await;
        }
        folder
    }

    async fn unpack(&self, directory: &reapi::Directory, all: &[reapi::Directory], to: &Path) {
        fs::create_dir(to).unwrap();
        for file in &directory.files {
            fs::write(to.join(&file.name), self.read(file.digest.as_ref()).await).unwrap();
        }
        for link in &directory.symlinks {
            symlink(&link.target, to.join(&link.name)).unwrap();
        }
        for node in &directory.directories {
            let digest = Digest::from_wire(FUNCTION, node.digest.as_ref()).unwrap();
            let child = all.iter().find(|child| FUNCTION.digest(&child.encode_to_vec()) == digest);
            Box::pin(self.unpack(child.unwrap(), all, &to.join(&node.name))).await;
        }
    }
}

fn output_paths(paths: &[&str]) -> reapi::Command {
    reapi::Command { output_paths: paths.iter().map(ToString::to_string).collect(), ..Default::default() }
}

#[expect(deprecated, reason = "clients that speak REAPI 2.0 have no other fields")]
fn output_files(paths: &[&str]) -> reapi::Command {
    reapi::Command { output_files: paths.iter().map(ToString::to_string).collect(), ..Default::default() }
}

fn links(links: &[reapi::OutputSymlink]) -> Vec<(&str, &str)> {
    links.iter().map(|link| (link.path.as_str(), link.target.as_str())).collect()
}

// OUT-23, OUT-25, OUT-26, OUT-30.
#[tokio::test]
async fn files_come_with_their_content_and_execute_bit() {
    let fixture = Fixture::new();
    for (path, mode) in [("b", 0o644), ("a", 0o711), ("locked", 0o0)] {
        fixture.write(path, path);
        fixture.chmod(path, mode);
    }
    fixture.write("empty", "");
    let outputs = fixture.collect(&output_paths(&["empty", "b", "no", "locked", "a"])).await;
    let mut seen = Vec::new();
    for file in &outputs.files {
        let content = fixture.read_text(file.digest.as_ref()).await;
        seen.push((file.path.as_str(), content, file.is_executable));
    }
    let expected = [("a", "a", true), ("b", "b", false), ("empty", "", false), ("locked", "locked", false)];
    assert_eq!(seen, expected.map(|(path, content, executable)| (path, content.to_owned(), executable)));
}

// OUT-11: both of two nested outputs are there, although taking a file in may move it away.
#[tokio::test]
async fn nested_outputs_and_hard_links_are_all_there() {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.root.join("d/e")).unwrap();
    fixture.write("d/f", "nested");
    fixture.write("d/e/g", "linked");
    fs::hard_link(fixture.root.join("d/e/g"), fixture.root.join("h")).unwrap();
    let outputs = fixture.collect(&output_paths(&["d", "d/f", "d/", "d/e", "h"])).await;

    let files: Vec<_> = outputs.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(files, ["d/f", "h"]);
    assert_eq!(fixture.read_text(outputs.files[0].digest.as_ref()).await, "nested");
    assert_eq!(fixture.read_text(outputs.files[1].digest.as_ref()).await, "linked");
    let directories: Vec<_> = outputs.directories.iter().map(|directory| directory.path.as_str()).collect();
    assert_eq!(directories, ["d", "d/", "d/e"]);
    assert_eq!(outputs.directories[0].tree_digest, outputs.directories[1].tree_digest);

    let only_d = Outputs { directories: vec![outputs.directories[0].clone()], ..Outputs::default() };
    let downloaded = fixture.download(&only_d).await;
    assert_eq!(fs::read_to_string(downloaded.path().join("d/f")).unwrap(), "nested");
    assert_eq!(fs::read_to_string(downloaded.path().join("d/e/g")).unwrap(), "linked");
}

// ODR-05, ODR-06, ODR-07: with every format there is a Tree; the others add Directory blobs.
#[tokio::test]
async fn directories_come_in_the_format_that_was_asked_for() {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.root.join("d/e/empty")).unwrap();
    fixture.write("d/e/f", "x");
    for format in 0..=2 {
        let command = reapi::Command { output_directory_format: format, ..output_paths(&["d"]) };
        let outputs = fixture.collect(&command).await;
        let directory = &outputs.directories[0];
        assert!(directory.is_topologically_sorted);
        let tree = reapi::Tree::decode(&*fixture.read(directory.tree_digest.as_ref()).await).unwrap();
        assert_eq!(tree.children.len(), 2);
        assert_eq!(directory.root_directory_digest.is_some(), format != 0);
        if let Some(root) = &directory.root_directory_digest {
            let root = reapi::Directory::decode(&*fixture.read(Some(root)).await).unwrap();
            assert_eq!(Some(&root), tree.root.as_ref());
            let child = fixture.read(root.directories[0].digest.as_ref()).await;
            let child = reapi::Directory::decode(&*child).unwrap();
            assert!(fixture.read(child.directories[0].digest.as_ref()).await.is_empty());
        }
        fixture.write("d/e/f", "x");
    }
}

// OUT-12: the whole working directory, inputs and all.
#[tokio::test]
async fn the_working_directory_itself_is_an_output() {
    let fixture = Fixture::new();
    fixture.write("f", "x");
    for declared in ["", "."] {
        let outputs = fixture.collect(&output_paths(&[declared])).await;
        assert_eq!(outputs.directories[0].path, declared);
        let tree = fixture.read(outputs.directories[0].tree_digest.as_ref()).await;
        let root = reapi::Tree::decode(&*tree).unwrap().root.unwrap();
        assert_eq!(fixture.read_text(root.files[0].digest.as_ref()).await, "x");
        fixture.write("f", "x");
    }
}

// OSY-01, OSY-02: what output_paths names is a link; readers of older versions see it too.
#[tokio::test]
async fn links_of_output_paths_are_verbatim() {
    let fixture = Fixture::new();
    fixture.write("f", "x");
    fs::create_dir(fixture.root.join("d")).unwrap();
    let absolute = fixture.root.join("f").to_str().unwrap().to_owned();
    for (path, target) in [("1", "f"), ("2", "d/"), ("3", "../../no"), ("4", &absolute)] {
        symlink(target, fixture.root.join(path)).unwrap();
    }
    let outputs = fixture.collect(&output_paths(&["4", "3", "2", "1"])).await;
    let all = [("1", "f"), ("2", "d/"), ("3", "../../no"), ("4", absolute.as_str())];
    assert_eq!(links(&outputs.symlinks), all);
    assert_eq!(links(&outputs.file_symlinks), [all[0], all[3]]);
    assert_eq!(links(&outputs.directory_symlinks), [all[1]]);
    assert!(outputs.files.is_empty() && outputs.directories.is_empty());
}

// What Bazel's test of symbolic links in directories asks of a server: relative links stay links, absolute ones
// into the action's folder are what they lead to, and an output file may be a directory.
#[tokio::test]
async fn links_of_output_files_are_as_bazel_expects() {
    let fixture = Fixture::new();
    let at = |path: &str| fixture.root.join(path);
    fs::create_dir_all(at("dir/bar")).unwrap();
    fixture.write("dir/foo", "hello");
    fixture.write("dir/bar/baz", "bla");
    for (path, target) in [("dir/r", "foo"), ("dir/rd", "bar"), ("r", "dir/foo"), ("rd", "dir")] {
        symlink(target, at(path)).unwrap();
    }
    for (path, target) in [("dir/a", "dir/foo"), ("dir/ad", "dir/bar"), ("a", "dir/foo"), ("ad", "dir")] {
        symlink(at(target), at(path)).unwrap();
    }
    let outputs = fixture.collect(&output_files(&["a", "ad", "dir", "r", "rd"])).await;
    assert!(outputs.symlinks.is_empty());
    assert_eq!(links(&outputs.file_symlinks), [("r", "dir/foo")]);
    assert_eq!(links(&outputs.directory_symlinks), [("rd", "dir")]);

    let downloaded = fixture.download(&outputs).await;
    let mut seen_links = Vec::new();
    let mut hellos = 0;
    for folder in ["", "ad", "ad/ad", "ad/bar", "dir", "dir/ad", "dir/bar"] {
        for entry in fs::read_dir(downloaded.path().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let relative = path.strip_prefix(downloaded.path()).unwrap().to_str().unwrap().to_owned();
            if path.is_symlink() {
                seen_links.push(relative);
            } else if path.is_file() {
                hellos += usize::from(fs::read_to_string(path).unwrap() == "hello");
            }
        }
    }
    seen_links.sort();
    assert_eq!(seen_links, ["ad/r", "ad/rd", "dir/r", "dir/rd", "r", "rd"]);
    assert_eq!(hellos, 5);
    assert_eq!(fs::read_to_string(downloaded.path().join("rd/ad/baz")).unwrap(), "bla");
}

// OUT-22: only what was asked for, of files, links and directories.
#[tokio::test]
async fn node_properties_are_reported_when_asked_for() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.root.join("d")).unwrap();
    fixture.write("d/f", "x");
    fixture.chmod("d/f", 0o640);
    let mtime = SystemTime::UNIX_EPOCH + Duration::new(1_000, 5);
    fs::File::open(fixture.root.join("d/f")).unwrap().set_modified(mtime).unwrap();

    let plain = fixture.collect(&output_paths(&["d/f"])).await;
    assert_eq!(plain.files[0].node_properties, None);
    fixture.write("d/f", "y");
    fixture.chmod("d/f", 0o640);
    fs::File::open(fixture.root.join("d/f")).unwrap().set_modified(mtime).unwrap();
    let names = ["mtime", "unix_mode"].map(str::to_owned).to_vec();
    let command = reapi::Command { output_node_properties: names, ..output_paths(&["d", "d/f"]) };
    let outputs = fixture.collect(&command).await;
    let properties = outputs.files[0].node_properties.as_ref().unwrap();
    let mtime = properties.mtime.as_ref().unwrap();
    assert_eq!((mtime.seconds, mtime.nanos), (1_000, 5));
    assert_eq!(properties.unix_mode.as_ref().unwrap().value, 0o640);
    let tree = fixture.read(outputs.directories[0].tree_digest.as_ref()).await;
    let root = reapi::Tree::decode(&*tree).unwrap().root.unwrap();
    assert_eq!(root.files[0].node_properties.as_ref(), Some(properties));
    assert!(root.node_properties.unwrap().unix_mode.is_some());
}

// Whoever still holds the output open can write to a file of his own, and not to the stored blob.
#[tokio::test]
async fn a_writer_that_is_left_does_not_reach_the_store() {
    let fixture = Fixture::new();
    fixture.write("open", "before");
    let mut writer = fs::OpenOptions::new().write(true).open(fixture.root.join("open")).unwrap();
    fixture.write("linked", "linked before");
    fs::hard_link(fixture.root.join("linked"), fixture.root.parent().unwrap().join("second-name")).unwrap();
    let outputs = fixture.collect(&output_paths(&["linked", "open"])).await;

    writer.rewind().unwrap();
    writer.write_all(b"AFTER!").unwrap();
    fs::write(fixture.root.parent().unwrap().join("second-name"), "linked AFTER!").unwrap();
    assert_eq!(fixture.read_text(outputs.files[0].digest.as_ref()).await, "linked before");
    assert_eq!(fixture.read_text(outputs.files[1].digest.as_ref()).await, "before");
}
