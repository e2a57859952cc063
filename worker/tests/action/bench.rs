//! A worker on a folder of its own, and jobs for it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::BoxFuture;
use longshore_cas_store::blob::{BlobStore, StoreOptions};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::io::{Clock, Environment, Executor, IoPool};
use longshore_cas_store::reap::Reaper;
use longshore_cas_store::root::StoreRoot;
use longshore_cas_store::tree::TreeLimits;
use longshore_cas_store::tree_cache::{DirectoryCache, DirectoryCacheOptions, DirectoryCacheParts};
use longshore_proto::{Message, reapi, time};
use longshore_worker::action::{
    ActionOptions, ActionRunner, Assignment, Ends, Inline, Phase, Progress, Requester,
};
use longshore_worker::materialize::HardlinkMaterializer;
use longshore_worker::run::{DEFAULT_ACTION_USER, Identity, Runner, Spawner, SpawnerOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Code;

const FUNCTION: DigestFunction = DigestFunction::Sha256;

/// What the store and the cache may take, in bytes: more than any test.
const SIZE_BYTES_MAX: u64 = 1 << 30;

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

/// A worker with everything below it.
pub(crate) struct Bench {
    pub(crate) worker: Arc<ActionRunner>,
    store: Arc<BlobStore>,
    _root: StoreRoot,
    _folder: tempfile::TempDir,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        Self::with_runner(|runner| runner).await
    }

    /// With another runner around the real one.
    pub(crate) async fn with_runner(wrap: impl FnOnce(Arc<dyn Runner>) -> Arc<dyn Runner>) -> Self {
        Self::open(SIZE_BYTES_MAX, wrap).await
    }

    /// With a store of that size.
    pub(crate) async fn with_store(size_bytes_max: u64) -> Self {
        Self::open(size_bytes_max, |runner| runner).await
    }

    async fn open(size_bytes_max: u64, wrap: impl FnOnce(Arc<dyn Runner>) -> Arc<dyn Runner>) -> Self {
        let folder = open_folder();
        let io = IoPool::new(Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap()));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let executor = Arc::new(TokioExecutor(tokio::runtime::Handle::current()));
        let environment = Environment { io: io.clone(), executor, clock: clock.clone() };

        let root = StoreRoot::claim(&folder.path().join("data")).unwrap();
        let identity = Identity::probe(&root.path().join("work"), DEFAULT_ACTION_USER);
        let owner = identity.owner();
        let program = crate::kit::longshore();
        let spawner = Arc::new(
            Spawner::start(&SpawnerOptions { program, ..SpawnerOptions::this_program(identity) }).unwrap(),
        );

        let options = StoreOptions { size_bytes_max };
        let (store, _) = BlobStore::open(&root, options, environment.clone()).unwrap();
        let reaper = Reaper::open(&root, environment.clone()).unwrap();
        let parts = DirectoryCacheParts { store: store.clone(), reaper: reaper.clone() };
        let limits = TreeLimits::default();
        let options = DirectoryCacheOptions { entries_max: 100, size_bytes_max: SIZE_BYTES_MAX, limits };
        let cache = DirectoryCache::open(&root, parts, options, environment).await.unwrap();
        let materializer =
            HardlinkMaterializer::new(&root, store.clone(), reaper, owner, io.clone()).unwrap();
        let worker = ActionRunner {
            store: store.clone(),
            storage: Arc::new(Ends::of_the_store()),
            cache,
            materializer: Arc::new(materializer),
            runner: wrap(spawner),
            io,
            clock,
            options: ActionOptions { worker: "bench".to_owned(), ..ActionOptions::default() },
        };
        Self { worker: Arc::new(worker), store, _root: root, _folder: folder }
    }

    /// Stores a blob.
    pub(crate) async fn put(&self, data: &[u8]) -> Digest {
        let digest = FUNCTION.digest(data);
        self.store.put(digest, Bytes::copy_from_slice(data)).await.unwrap();
        digest
    }

    async fn put_message(&self, message: &impl Message) -> Digest {
        self.put(&message.encode_to_vec()).await
    }

    /// A stored blob as text.
    pub(crate) async fn text(&self, digest: Option<&reapi::Digest>) -> String {
        let digest = Digest::from_wire(FUNCTION, digest).unwrap();
        let pin = self.store.pin(&digest).unwrap_or_else(|| panic!("{digest} is not stored"));
        let content = self.store.read(&pin, 0..digest.size_bytes()).await.unwrap();
        assert_eq!(FUNCTION.digest(&content), digest, "stored content is not what its digest says");
        String::from_utf8(content.to_vec()).unwrap()
    }

    /// Stores what `job` consists of.
    pub(crate) async fn assign(&self, job: Job) -> (Assignment, Handle) {
        let root = self.put_tree(&job.inputs).await;
        let command = self.put_message(&job.command).await;
        let action = reapi::Action {
            command_digest: Some(command.to_wire()),
            input_root_digest: Some(root.to_wire()),
            timeout: job.timeout.map(time::duration),
            ..Default::default()
        };
        let (progress, watcher) = watch::channel(Progress::default());
        let cancelled = CancellationToken::new();
        let assignment = Assignment {
            operation: "bench".to_owned(),
            action_digest: self.put_message(&action).await,
            action: None,
            inline: Inline::default(),
            queued: SystemTime::now(),
            requester: Requester::default(),
            progress,
            cancelled: cancelled.clone(),
            is_orphan: Arc::default(),
        };
        (assignment, Handle { progress: watcher, cancelled })
    }

    /// Runs `job`.
    pub(crate) async fn run(&self, job: Job) -> reapi::ExecuteResponse {
        let (assignment, _handle) = self.assign(job).await;
        self.worker.execute(assignment).await.response
    }

    async fn put_tree(&self, inputs: &BTreeMap<String, Input>) -> Digest {
        let mut directory = reapi::Directory::default();
        let mut below: BTreeMap<&str, BTreeMap<String, Input>> = BTreeMap::new();
        for (path, input) in inputs {
            match (path.split_once('/'), input) {
                (Some((name, rest)), _) => {
                    below.entry(name).or_default().insert(rest.to_owned(), input.clone());
                }
                (None, Input::File { content, executable }) => directory.files.push(reapi::FileNode {
                    name: path.clone(),
                    digest: Some(self.put(content.as_bytes()).await.to_wire()),
                    is_executable: *executable,
                    ..Default::default()
                }),
                (None, Input::Link { target }) => directory.symlinks.push(reapi::SymlinkNode {
                    name: path.clone(),
                    target: target.clone(),
                    ..Default::default()
                }),
            }
        }
        for (name, inputs) in below {
            let digest = Some(Box::pin(self.put_tree(&inputs)).await.to_wire());
            directory.directories.push(reapi::DirectoryNode { name: name.to_owned(), digest });
        }
        self.put_message(&directory).await
    }
}

/// The client's end of an action.
pub(crate) struct Handle {
    pub(crate) progress: watch::Receiver<Progress>,
    pub(crate) cancelled: CancellationToken,
}

impl Handle {
    pub(crate) async fn wait_until_running(&mut self) {
        self.progress.wait_for(|progress| progress.phase == Phase::Running).await.unwrap();
    }
}

/// An action to be described.
#[derive(Default)]
pub(crate) struct Job {
    pub(crate) command: reapi::Command,
    pub(crate) timeout: Option<Duration>,
    inputs: BTreeMap<String, Input>,
}

#[derive(Clone)]
enum Input {
    File { content: String, executable: bool },
    Link { target: String },
}

impl Job {
    pub(crate) fn new(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Self { command: reapi::Command { arguments, ..Default::default() }, ..Self::default() }
    }

    pub(crate) fn shell(script: &str) -> Self {
        let mut job = Self::new(&["/bin/sh", "-c", script]);
        let path = reapi::command::EnvironmentVariable { name: "PATH".into(), value: "/usr/bin:/bin".into() };
        job.command.environment_variables.push(path);
        job
    }

    pub(crate) fn file(mut self, path: &str, content: &str, executable: bool) -> Self {
        self.inputs.insert(path.to_owned(), Input::File { content: content.to_owned(), executable });
        self
    }

    pub(crate) fn link(mut self, path: &str, target: &str) -> Self {
        self.inputs.insert(path.to_owned(), Input::Link { target: target.to_owned() });
        self
    }

    pub(crate) fn outputs(mut self, paths: &[&str]) -> Self {
        self.command.output_paths = paths.iter().map(ToString::to_string).collect();
        self
    }
}

/// Holds up whoever reads its path until it is opened.
pub(crate) struct Gate {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Gate {
    pub(crate) fn new() -> Self {
        let folder = open_folder();
        let path = folder.path().join("gate");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        Self { _folder: folder, path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) async fn open(&self) {
        tokio::fs::write(&self.path, "open\n").await.unwrap();
    }
}

/// A temporary folder that actions of another user can use too.
pub(crate) fn open_folder() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o777)).tempdir().unwrap()
}

pub(crate) fn result(response: &reapi::ExecuteResponse) -> &reapi::ActionResult {
    response.result.as_ref().unwrap_or_else(|| panic!("no result: {response:?}"))
}

pub(crate) fn code(response: &reapi::ExecuteResponse) -> Code {
    Code::from_i32(response.status.as_ref().map_or(0, |status| status.code))
}
