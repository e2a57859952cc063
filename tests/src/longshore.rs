//! A `longshore` of one's own: the real binary in a process, on a free port or a socket, in a folder of its own.
//!
//! Dropping it kills the process and removes the folder. Its output is kept and shown when a start fails.

use std::io::{BufRead as _, BufReader, PipeReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::client::Client;

/// How long a start or a stop may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_mins(1);

/// How to start one; the default is a free port of 127.0.0.1 and a new folder.
#[derive(Debug, Default)]
pub struct Launch {
    /// The folder of an earlier one, whose data it finds again.
    pub home: Option<Arc<TempDir>>,
    /// Listen on a Unix socket instead.
    pub unix: bool,
    /// Flags beside `--listen` and `--root`.
    pub flags: Vec<String>,
    /// The most files that it may have open; the limit of the test where there is none.
    pub open_files: Option<u64>,
}

/// A running `longshore`.
#[derive(Debug)]
pub struct Longshore {
    child: Child,
    home: Arc<TempDir>,
    uri: String,
    output: Output,
}

impl Longshore {
    /// Starts one with the defaults.
    pub async fn start() -> Result<Self> {
        Self::launch(Launch::default()).await
    }

    /// Starts one, and returns when it says that it listens.
    pub async fn launch(launch: Launch) -> Result<Self> {
        let mut longshore = Self::begin(launch)?;
        longshore.uri = longshore.output.address().await?;
        Ok(longshore)
    }

    /// Starts one, and returns at once: it has no address.
    pub fn begin(launch: Launch) -> Result<Self> {
        let home = match launch.home {
            Some(home) => home,
            None => Arc::new(new_home()?),
        };
        let listen = if launch.unix {
            format!("unix:{}", home.path().join("socket").display())
        } else {
            "127.0.0.1:0".to_owned()
        };
        let mut command = limited(launch.open_files)?;
        command.arg("--listen").arg(&listen).arg("--root").arg(home.path().join("root"));
        command.args(&launch.flags);
        let (child, output) = spawn(command)?;
        Ok(Self { child, home, uri: String::new(), output })
    }

    /// Starts one that works for the schedulers of a configuration, and returns when it says so. It has no address.
    pub async fn work(config: &str, home: Option<Arc<TempDir>>) -> Result<Self> {
        let home = match home {
            Some(home) => home,
            None => Arc::new(new_home()?),
        };
        let file = home.path().join("worker.toml");
        std::fs::write(&file, config).with_context(|| file.display().to_string())?;
        let mut command = Command::new(binary()?);
        command.arg("worker").arg("--config").arg(&file).arg("--root").arg(home.path().join("root"));
        let (child, output) = spawn(command)?;
        let longshore = Self { child, home, uri: String::new(), output };
        longshore.prints(&["works as"]).await?;
        Ok(longshore)
    }

    /// A new client of it, on a connection of its own.
    pub async fn client(&self) -> Result<Client> {
        Client::connect(&self.uri).await
    }

    /// Where it listens, as a URI.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that it has had so far (`VmHWM` of proc(5)), in bytes.
    pub fn resident_bytes_max(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        let kibibytes: u64 = line.split_whitespace().next().context("VmHWM")?.parse()?;
        Ok(kibibytes * 1024)
    }

    /// Its folder, to start another one with the same data.
    pub fn home(&self) -> Arc<TempDir> {
        Arc::clone(&self.home)
    }

    /// The root of its data.
    pub fn root(&self) -> PathBuf {
        self.home.path().join("root")
    }

    /// What it has printed so far, to both streams.
    pub fn output(&self) -> String {
        self.output.text()
    }

    /// Waits until it has printed a line that has all of `words`.
    pub async fn prints(&self, words: &[&str]) -> Result<()> {
        self.output.prints(words).await
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).context("kill longshore")
    }

    /// Asks it to stop (SIGTERM), and waits until it and everything that it started have gone.
    pub async fn stop(self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.ended().await
    }

    /// Kills it (SIGKILL), and waits until it and everything that it started have gone.
    pub async fn kill(self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.ended().await
    }

    /// Waits until it and everything that it started have gone, for whatever reason they go.
    pub async fn ended(mut self) -> Result<ExitStatus> {
        self.output.closed().await?;
        self.child.wait().context("wait for longshore")
    }
}

impl Drop for Longshore {
    fn drop(&mut self) {
        // The child may have gone already, and nothing more can be done if it cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command that starts the binary under a limit of open files.
fn limited(open_files: Option<u64>) -> Result<Command> {
    let Some(limit) = open_files else { return Ok(Command::new(binary()?)) };
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &limit.to_string()]).arg(binary()?);
    Ok(shell)
}

/// Runs longshore with just these arguments to its end, and returns its status and what it printed.
pub async fn run_to_end<S: AsRef<std::ffi::OsStr>>(
    arguments: impl IntoIterator<Item = S>,
) -> Result<(ExitStatus, String)> {
    let mut command = Command::new(binary()?);
    command.args(arguments);
    let (mut child, mut output) = spawn(command)?;
    if let Err(error) = output.closed().await {
        child.kill().context("kill longshore")?;
        child.wait().context("wait for longshore")?;
        return Err(error);
    }
    let status = child.wait().context("wait for longshore")?;
    Ok((status, output.text()))
}

/// A folder for one longshore, which other users may walk through: actions may run as one.
pub fn new_home() -> Result<TempDir> {
    new_home_in(&std::env::temp_dir())
}

/// Such a folder below `parent`.
pub fn new_home_in(parent: &Path) -> Result<TempDir> {
    let home = tempfile::Builder::new().prefix("longshore-").tempdir_in(parent);
    let home = home.context("a temporary folder")?;
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).context("chmod")?;
    Ok(home)
}

/// The binary under test: `LONGSHORE_BIN`, or the one beside the test, or what cargo builds now.
pub fn binary() -> Result<&'static Path> {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(binary) = BINARY.get() {
        return Ok(binary);
    }
    let found = find_binary()?;
    Ok(BINARY.get_or_init(|| found))
}

fn find_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("LONGSHORE_BIN") {
        return std::path::absolute(PathBuf::from(path)).context("LONGSHORE_BIN");
    }
    let test = std::env::current_exe().context("the path of the test")?;
    let folder = test.parent().context("the folder of the test")?;
    let beside = folder.join("longshore");
    if beside.is_file() {
        return Ok(beside);
    }
    // target/PROFILE/deps/it-HASH: cargo builds the binaries of other packages only when asked to.
    let profile = folder.parent().context("the folder of the profile")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--locked", "--package", "longshore-worker", "--bin", "longshore"]);
    cargo.arg("--manifest-path").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"));
    cargo.arg("--target-dir").arg(profile.parent().context("the target folder")?);
    if profile.file_name().is_some_and(|name| name != "debug") {
        cargo.arg("--release");
    }
    // What cargo tells a test of its own package would make build scripts run anew, and everything above them.
    for (name, _) in std::env::vars_os() {
        let variable = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|prefix| variable.starts_with(prefix)) {
            cargo.env_remove(&name);
        }
    }
    let status = cargo.status().context("cargo build")?;
    if !status.success() {
        bail!("cargo build --bin longshore: {status}");
    }
    Ok(profile.join("longshore"))
}

fn spawn(mut command: Command) -> Result<(Child, Output)> {
    let (reader, writer) = std::io::pipe().context("a pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone().context("a pipe")?).stderr(writer);
    command.env("NO_COLOR", "1");
    let child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
    // `command` holds the pipe's other end: the reader sees the end of the output once it is gone.
    drop(command);
    Ok((child, Output::follow(reader)))
}

/// Output as it comes.
#[derive(Clone, Debug)]
struct Output {
    state: watch::Receiver<Printed>,
}

#[derive(Debug, Default)]
struct Printed {
    text: String,
    closed: bool,
}

impl Output {
    /// Reads until every process that holds the other end has gone.
    fn follow(reader: PipeReader) -> Self {
        let (sender, state) = watch::channel(Printed::default());
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines() {
                let Ok(line) = line else { break };
                sender.send_modify(|printed| {
                    printed.text.push_str(&line);
                    printed.text.push('\n');
                });
            }
            sender.send_modify(|printed| printed.closed = true);
        });
        Self { state }
    }

    fn text(&self) -> String {
        self.state.borrow().text.clone()
    }

    /// The address that it prints for Bazel, as a URI for a client.
    async fn address(&mut self) -> Result<String> {
        let started = Instant::now();
        let printed = self.until(|printed| printed.closed || address_in(&printed.text).is_some()).await?;
        match address_in(&printed) {
            Some(address) => Ok(address),
            None => bail!("longshore ended after {:?}:\n{printed}", started.elapsed()),
        }
    }

    async fn prints(&self, words: &[&str]) -> Result<()> {
        let is_it = |line: &str| words.iter().all(|word| line.contains(word));
        self.clone().until(|printed| printed.text.lines().any(is_it)).await.map(drop)
    }

    async fn closed(&mut self) -> Result<()> {
        self.until(|printed| printed.closed).await.map(drop)
    }

    async fn until(&mut self, holds: impl FnMut(&Printed) -> bool) -> Result<String> {
        if let Ok(printed) = tokio::time::timeout(PATIENCE, self.state.wait_for(holds)).await {
            return Ok(printed.context("the reader of the output has gone")?.text.clone());
        }
        bail!("nothing happened for {PATIENCE:?}; longshore printed:\n{}", self.text())
    }
}

/// The first address in a text: `grpc://HOST:PORT` or `unix:PATH`.
fn address_in(text: &str) -> Option<String> {
    let end = |rest: &str| rest.find(char::is_whitespace).unwrap_or(rest.len());
    if let Some((_, rest)) = text.split_once("grpc://") {
        return Some(format!("http://{}", &rest[..end(rest)]));
    }
    let (_, rest) = text.split_once("unix:")?;
    Some(format!("unix:{}", &rest[..end(rest)]))
}
