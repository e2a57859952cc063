//! Longshore's side: asks keepers to run commands, and the helper for keepers, and awaits the reports.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use longshore_cas_store::dir::Owner;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::helper::{HELPER_ARGUMENT, READY};
use super::identity::Identity;
use super::idle::{DEFAULT_IDLE_MAX, Idle, KeeperSocket};
use super::keeper::ORDER_FDS;
use super::wire::{REPORT_BYTES, Report, Spec, Stage};
use super::{RunError, RunOutcome, RunSpec, Runner, passing};

/// How the helper is started.
#[derive(Clone, Debug)]
pub struct SpawnerOptions {
    /// The program that becomes the helper: one whose `main` calls [`super::run_if_helper`] first.
    pub program: PathBuf,
    /// Who commands run as.
    pub identity: Identity,
    /// How long a keeper that has ended one command waits for the next.
    pub idle_max: Duration,
}

impl SpawnerOptions {
    /// This very program, started once more.
    pub fn this_program(identity: Identity) -> Self {
        Self { program: PathBuf::from("/proc/self/exe"), identity, idle_max: DEFAULT_IDLE_MAX }
    }
}

/// Runs commands through the helper process, which ends when this is dropped.
#[derive(Debug)]
pub struct Spawner {
    socket: OwnedFd,
    owner: Option<Owner>,
    helper: Child,
    idle: Arc<Idle>,
}

impl Spawner {
    /// Starts the helper and waits until it is ready.
    ///
    /// Call it before raising resource limits: commands get those that the helper is started with.
    pub fn start(options: &SpawnerOptions) -> Result<Self, RunError> {
        let at = |stage: &'static str| {
            move |errno| RunError::Start { stage: format!("helper process: {stage}"), errno }
        };
        let (socket, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(at("make a socket"))?;
        let mut command = Command::new(&options.program);
        command
            .arg0("longshore")
            .arg(HELPER_ARGUMENT)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .env_clear();
        if let Some(cover) = options.identity.cover() {
            command.arg(&cover.ancestor).arg(&cover.work);
        }
        let helper = command.spawn().map_err(|error| at("start")(errno_of(&error)))?;
        let owner = options.identity.owner();
        let spawner = Self { socket, owner, helper, idle: Arc::new(Idle::new(options.idle_max)) };
        // The command holds the helper's end; the answer below would not see its death otherwise.
        drop(command);
        let mut answer = [0; READY.len()];
        let len =
            recv(spawner.socket.as_raw_fd(), &mut answer, MsgFlags::empty()).map_err(at("hear from it"))?;
        if answer.get(..len) == Some(READY) { Ok(spawner) } else { Err(at("get ready")(Errno::EPIPE)) }
    }

    /// The process id of the helper.
    pub fn helper_pid(&self) -> u32 {
        self.helper.id()
    }

    /// Waits until the helper has ended, and tells how: no new keeper can be had any more.
    pub async fn helper_ended(&self) -> std::io::Result<String> {
        let helper = Pid::from_raw(self.helper.id().cast_signed());
        // It is left to `drop` to reap it.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        let mut children = signal(SignalKind::child())?;
        loop {
            match waitid(Id::Pid(helper), flags)? {
                WaitStatus::Exited(_, code) => return Ok(format!("it exited with code {code}")),
                WaitStatus::Signaled(_, signal, _) => return Ok(format!("{signal} killed it")),
                _ => children.recv().await,
            };
        }
    }

    /// Hands a command to a keeper; the answer comes on the socket that is returned.
    fn submit(&self, spec: &Spec, stdout: &File, stderr: &File) -> Result<UnixStream, RunError> {
        let at = |errno| start_error(spec, Stage::Prepare, errno);
        let memory = memfd_create("longshore-spec", MFdFlags::MFD_CLOEXEC).map_err(at)?;
        let mut memory = File::from(memory);
        memory.write_all(&spec.encode()).map_err(|error| at(errno_of(&error)))?;
        let order = [memory.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let keeper = match self.order_idle(&order) {
            Some(keeper) => keeper,
            None => self.order_new(&order).map_err(|errno| match errno {
                Errno::EPIPE | Errno::ECONNRESET => RunError::Lost("the helper process has ended".to_owned()),
                errno => at(errno),
            })?,
        };
        UnixStream::from_std(keeper).map_err(|error| at(errno_of(&error)))
    }

    /// Gives the order to an idle keeper, if there is one.
    fn order_idle(&self, order: &[BorrowedFd<'_>; ORDER_FDS]) -> Option<KeeperSocket> {
        // One that was killed meanwhile takes no orders.
        std::iter::from_fn(|| self.idle.take()).find(|keeper| passing::send(keeper, order).is_ok())
    }

    /// Has the helper fork a keeper for the order.
    fn order_new(&self, order: &[BorrowedFd<'_>; ORDER_FDS]) -> nix::Result<KeeperSocket> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
        let &[spec, stdout, stderr] = order;
        // The helper reads at once, so this does not wait for long even when its queue is full.
        passing::send(&self.socket, &[theirs.as_fd(), spec, stdout, stderr])?;
        let ours = KeeperSocket::from(ours);
        ours.set_nonblocking(true).map_err(|error| errno_of(&error))?;
        Ok(ours)
    }
}

impl Drop for Spawner {
    /// Lets the helper see the end of its socket, and waits until it has killed what still runs.
    fn drop(&mut self) {
        self.idle.clear();
        let _ = nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        let _ = self.helper.wait();
    }
}

impl Runner for Spawner {
    fn run(
        &self,
        spec: RunSpec,
        cancelled: CancellationToken,
    ) -> BoxFuture<'_, Result<RunOutcome, RunError>> {
        Box::pin(async move {
            let RunSpec { arguments, environment, working_directory, stdout, stderr, timeout } = spec;
            let spec = Spec { arguments, environment, working_directory, timeout, owner: self.owner };
            let submitted = self.submit(&spec, &stdout, &stderr);
            // Only the command may hold them now: their end is the end of writing.
            drop((stdout, stderr));
            let mut socket = submitted?;
            let (bytes, was_cancelled) = await_report(&mut socket, cancelled).await;
            let report = Report::decode(&bytes);
            if report.is_some() && !was_cancelled {
                self.idle.put(socket);
            }
            match report {
                Some(Report::Ended(outcome)) => Ok(outcome),
                Some(Report::Failed(stage, errno)) => Err(start_error(&spec, stage, errno)),
                None => Err(RunError::Lost("its keeper ended without a report".to_owned())),
            }
        })
    }
}

/// Reads a whole report, or to the end of the socket; `cancelled` closes our half, which the keeper takes for the
/// order to kill, and its last. Tells whether that was given.
async fn await_report(socket: &mut UnixStream, cancelled: CancellationToken) -> (Vec<u8>, bool) {
    use tokio::io::AsyncWriteExt as _;
    let (reader, mut writer) = socket.split();
    let mut reader = reader.take(REPORT_BYTES as u64);
    let mut bytes = Vec::with_capacity(REPORT_BYTES);
    let read = reader.read_to_end(&mut bytes);
    tokio::pin!(read);
    tokio::select! {
        // What was read is in `bytes`; an error leaves it short, which no report is.
        _ = &mut read => return (bytes, false),
        () = cancelled.cancelled() => {
            let _ = writer.shutdown().await;
        }
    }
    let _ = read.await;
    (bytes, true)
}

fn start_error(spec: &Spec, stage: Stage, errno: Errno) -> RunError {
    let program =
        || spec.arguments.first().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    match (stage, errno) {
        (Stage::Execute, Errno::E2BIG) => RunError::TooLong(
            spec.arguments.iter().chain(&spec.environment).map(|text| text.as_bytes_with_nul().len()).sum(),
        ),
        // The machine's fault, not the program's: EIO, too, is what a truncated program gets.
        (Stage::Execute, Errno::ENOMEM | Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE | Errno::ETXTBSY) => {
            RunError::Start { stage: stage.describe().to_owned(), errno }
        }
        (Stage::Execute, _) => RunError::Program { program: program(), reason: errno.desc().to_owned() },
        (_, _) => RunError::Start { stage: stage.describe().to_owned(), errno },
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
