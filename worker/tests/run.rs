//! Commands run through the real helper process.

mod kit;

use std::ffi::CString;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore_worker::run::{
    DEFAULT_ACTION_USER, Identity, RunError, RunOutcome, RunSpec, Runner as _, Spawner, SpawnerOptions,
    Verdict,
};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;

struct Harness {
    spawner: Spawner,
    folder: tempfile::TempDir,
}

struct Ran {
    outcome: Result<RunOutcome, RunError>,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn verdict(&self) -> Verdict {
        self.outcome.as_ref().unwrap_or_else(|error| panic!("{error}: {}", self.stderr)).verdict
    }
}

fn start(identity: Identity) -> Spawner {
    let program = kit::longshore();
    Spawner::start(&SpawnerOptions { program, ..SpawnerOptions::this_program(identity) }).unwrap()
}

impl Harness {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { spawner: start(Identity::Own { reason: "a test".to_owned() }), folder }
    }

    fn log(&self, name: &str) -> File {
        File::options().create(true).truncate(true).write(true).open(self.folder.path().join(name)).unwrap()
    }

    fn spec(&self, id: &str, arguments: &[&str]) -> RunSpec {
        RunSpec {
            arguments: arguments.iter().map(|text| CString::new(*text).unwrap()).collect(),
            environment: vec![CString::new("PATH=/usr/bin:/bin").unwrap()],
            working_directory: self.folder.path().to_owned(),
            stdout: self.log(&format!("{id}.out")),
            stderr: self.log(&format!("{id}.err")),
            timeout: None,
        }
    }

    async fn run_spec(&self, id: &str, spec: RunSpec, cancelled: CancellationToken) -> Ran {
        let outcome = self.spawner.run(spec, cancelled).await;
        let read = |name: String| std::fs::read_to_string(self.folder.path().join(name)).unwrap();
        Ran { outcome, stdout: read(format!("{id}.out")), stderr: read(format!("{id}.err")) }
    }

    async fn run(&self, arguments: &[&str]) -> Ran {
        self.run_spec("run", self.spec("run", arguments), CancellationToken::new()).await
    }

    async fn sh(&self, script: &str) -> Ran {
        self.run(&["sh", "-c", script]).await
    }

    /// A named pipe whose reading end blocks until a command has written: how a test waits for a command.
    fn fifo(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
        path
    }

    fn pid_in(&self, name: &str) -> Pid {
        let text = std::fs::read_to_string(self.folder.path().join(name)).unwrap();
        Pid::from_raw(text.trim().parse().unwrap())
    }
}

fn is_dead(pid: Pid) -> bool {
    kill(pid, None) == Err(nix::errno::Errno::ESRCH)
}

#[tokio::test]
async fn the_environment_is_exactly_the_commands() {
    let harness = Harness::new();
    let mut spec = harness.spec("env", &["/usr/bin/env"]);
    spec.environment = ["B=2", "A=with space", "EMPTY="].map(|text| CString::new(text).unwrap()).to_vec();
    let ran = harness.run_spec("env", spec, CancellationToken::new()).await;
    assert_eq!(ran.stdout, "B=2\nA=with space\nEMPTY=\n");
}

#[tokio::test]
async fn arguments_pass_byte_for_byte() {
    let harness = Harness::new();
    let ran = harness.run(&["printf", "%s|", "", "a b", "'\"$x", "new\nline", "-n", "ü"]).await;
    assert_eq!(ran.stdout, "|a b|'\"$x|new\nline|-n|ü|");
}

#[tokio::test]
async fn a_command_starts_with_clean_hands() {
    let harness = Harness::new();
    let look = "cat; umask; ls /proc/self/fd | tr '\\n' ' '; grep -E 'Sig(Blk|Ign)' /proc/self/status";
    // The second one by the same keeper.
    for _ in 0..2 {
        let ran = harness.sh(&format!("{look}; umask 0; trap '' HUP")).await;
        let lines: Vec<_> = ran.stdout.lines().collect();
        assert_eq!(lines[0], "0022", "stdin is at its end and the umask fixed");
        // ls itself has the folder open as the fourth.
        assert!(lines[1].starts_with("0 1 2 3 SigBlk:\t0000000000000000"), "{lines:?}");
        assert_eq!(lines[2], "SigIgn:\t0000000000000000");
    }
}

#[tokio::test]
async fn exit_codes_and_signals_are_told_apart() {
    let harness = Harness::new();
    assert_eq!(harness.sh("exit 0").await.verdict(), Verdict::Exited(0));
    assert_eq!(harness.sh("exit 137").await.verdict(), Verdict::Exited(137));
    assert_eq!(harness.sh("kill -9 $$").await.verdict(), Verdict::Signaled(9));
    assert_eq!(harness.sh("kill -15 $$").await.verdict(), Verdict::Signaled(15));
}

#[tokio::test]
async fn programs_that_cannot_run_are_the_clients_error() {
    let harness = Harness::new();
    let folder = harness.folder.path();
    std::fs::write(folder.join("not-executable"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(folder.join("not-executable"), PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::write(folder.join("no-format"), "just text").unwrap();
    std::fs::set_permissions(folder.join("no-format"), PermissionsExt::from_mode(0o755)).unwrap();
    for program in
        ["no-such-program", "./missing", "/missing", "./not-executable", "./no-format", "/tmp", "./a/../b"]
    {
        let ran = harness.run(&[program]).await;
        assert!(matches!(ran.outcome, Err(RunError::Program { .. })), "{program}: {:?}", ran.outcome);
    }
}

#[tokio::test]
async fn a_relative_program_counts_from_the_working_directory() {
    let harness = Harness::new();
    let below = harness.folder.path().join("below");
    std::fs::create_dir(&below).unwrap();
    std::fs::write(below.join("tool"), "#!/bin/sh\npwd\n").unwrap();
    std::fs::set_permissions(below.join("tool"), PermissionsExt::from_mode(0o755)).unwrap();
    for (program, path) in
        [("./tool", "PATH=/bin"), ("../below/tool", "PATH=/bin"), ("tool", "PATH=/nowhere:.")]
    {
        let mut spec = harness.spec("tool", &[program]);
        spec.working_directory.clone_from(&below);
        spec.environment = vec![CString::new(path).unwrap()];
        let ran = harness.run_spec("tool", spec, CancellationToken::new()).await;
        assert_eq!(ran.verdict(), Verdict::Exited(0), "{program}");
        assert_eq!(Path::new(ran.stdout.trim()), below.canonicalize().unwrap(), "{program}");
    }
}

#[tokio::test]
async fn a_program_is_found_without_a_path_variable() {
    let harness = Harness::new();
    let mut spec = harness.spec("env", &["env"]);
    spec.environment.clear();
    let ran = harness.run_spec("env", spec, CancellationToken::new()).await;
    assert_eq!(ran.verdict(), Verdict::Exited(0));
    assert_eq!(ran.stdout, "");
}

#[tokio::test]
async fn long_arguments_work_until_the_kernel_refuses() {
    let harness = Harness::new();
    let long = "x".repeat(100_000);
    let many: Vec<&str> = std::iter::once("true").chain(std::iter::repeat_n(long.as_str(), 10)).collect();
    assert_eq!(harness.run(&many).await.verdict(), Verdict::Exited(0));
    let too_long = "x".repeat(4 << 20);
    let ran = harness.run(&["true", &too_long]).await;
    assert!(matches!(ran.outcome, Err(RunError::TooLong(_))), "{:?}", ran.outcome);
}

// A timeout must leave no orphan, whatever the command did to get away.
#[tokio::test]
async fn a_timeout_kills_every_descendant() {
    let harness = Harness::new();
    let script = "(setsid sh -c 'echo $$ > daemon; exec sleep 600' &) ; \
         setsid -f sh -c 'echo $$ > detached; exec sleep 600'; \
         sleep 600 & echo $! > child; \
         while [ ! -s daemon ] || [ ! -s detached ]; do :; done; echo before; sleep 600";
    let mut spec = harness.spec("timeout", &["sh", "-c", script]);
    spec.timeout = Some(Duration::from_secs(2));
    let ran = harness.run_spec("timeout", spec, CancellationToken::new()).await;
    assert_eq!(ran.verdict(), Verdict::TimedOut);
    assert_eq!(ran.stdout, "before\n");
    for name in ["daemon", "detached", "child"] {
        assert!(is_dead(harness.pid_in(name)), "{name} is alive");
    }
    assert!(ran.outcome.unwrap().duration >= Duration::from_secs(2));
}

#[tokio::test]
async fn no_time_at_all_has_passed_at_once() {
    let harness = Harness::new();
    let mut spec = harness.spec("zero", &["sleep", "600"]);
    spec.timeout = Some(Duration::ZERO);
    assert_eq!(harness.run_spec("zero", spec, CancellationToken::new()).await.verdict(), Verdict::TimedOut);
}

#[tokio::test]
async fn a_background_child_that_holds_stdout_changes_nothing() {
    let harness = Harness::new();
    let ran = harness.sh("sleep 600 & echo $! > child; echo done; exit 3").await;
    assert_eq!(ran.verdict(), Verdict::Exited(3));
    assert_eq!(ran.stdout, "done\n");
    assert!(is_dead(harness.pid_in("child")));
}

// A process that forks and exits, for ever, is gone each time one looks at it.
#[tokio::test]
async fn a_process_that_keeps_forking_is_caught() {
    let harness = Harness::new();
    let ran = harness.sh("f() { (f &) ; }; f & (while :; do (:) & done) & echo started").await;
    assert_eq!(ran.verdict(), Verdict::Exited(0));
    assert_eq!(ran.stdout, "started\n");
}

#[tokio::test]
async fn cancelling_and_leaving_both_kill() {
    let harness = Harness::new();
    let fifo = harness.fifo("started");
    let script = "echo $$ > pid; echo > started; exec sleep 600";
    let cancelled = CancellationToken::new();
    let run = harness.run_spec("cancel", harness.spec("cancel", &["sh", "-c", script]), cancelled.clone());
    let (ran, ()) = tokio::join!(run, async {
        tokio::fs::read(&fifo).await.unwrap();
        cancelled.cancel();
    });
    assert_eq!(ran.verdict(), Verdict::Cancelled);
    assert!(is_dead(harness.pid_in("pid")));

    let mut run = harness.spawner.run(harness.spec("leave", &["sh", "-c", script]), CancellationToken::new());
    tokio::select! {
        _ = &mut run => panic!("the command ended by itself"),
        read = tokio::fs::read(&fifo) => { read.unwrap(); }
    }
    let pid = harness.pid_in("pid");
    drop(run);
    // The helper waits for its keepers, and they for their commands.
    drop(harness);
    assert!(is_dead(pid));
}

// The store is safe from a killed longshore: nothing it started goes on writing.
#[tokio::test]
async fn what_outlives_its_keeper_is_killed_by_the_helper() {
    let harness = Harness::new();
    let script = "setsid -f sh -c 'echo $$ > daemon; exec sleep 600'; \
         while [ ! -s daemon ]; do :; done; kill -9 $PPID; sleep 600";
    let ran = harness.sh(script).await;
    assert!(matches!(ran.outcome, Err(RunError::Lost(_))), "{:?}", ran.outcome);
    let pid = harness.pid_in("daemon");
    drop(harness);
    assert!(is_dead(pid));
}

#[tokio::test]
async fn a_keeper_is_used_again_while_it_lives_and_was_not_told_to_kill() {
    let harness = Harness::new();
    let first = harness.sh("echo $PPID; (setsid sleep 600 &)").await.stdout;
    assert_eq!(harness.sh("echo $PPID; exit 3").await.stdout, first);
    assert!(harness.run(&["/no/such/program"]).await.outcome.is_err());
    assert_eq!(harness.sh("echo $PPID; kill -9 $$").await.stdout, first);
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    let ran = harness.run_spec("cancel", harness.spec("cancel", &["sleep", "600"]), cancelled).await;
    assert_eq!(ran.verdict(), Verdict::Cancelled);
    let second = harness.sh("echo $PPID").await.stdout;
    assert_ne!(second, first);

    let keeper = Pid::from_raw(second.trim().parse().unwrap());
    kill(keeper, nix::sys::signal::Signal::SIGKILL).unwrap();
    while !is_dead(keeper) {
        tokio::task::yield_now().await;
    }
    let ran = harness.sh("echo $PPID").await;
    assert_eq!(ran.verdict(), Verdict::Exited(0));
    assert_ne!(ran.stdout, second);
}

#[tokio::test]
async fn a_keeper_that_nobody_needs_ends() {
    let identity = Identity::Own { reason: "a test".to_owned() };
    let options = SpawnerOptions {
        program: kit::longshore(),
        idle_max: Duration::from_millis(1),
        ..SpawnerOptions::this_program(identity)
    };
    let spawner = Spawner::start(&options).unwrap();
    let harness = Harness { spawner, folder: tempfile::tempdir().unwrap() };
    // The second time there is nobody who sees to its end already.
    for _ in 0..2 {
        let ran = harness.sh("echo $PPID").await;
        let keeper = Pid::from_raw(ran.stdout.trim().parse().unwrap());
        while !is_dead(keeper) {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn what_a_keeper_took_for_a_command_it_gives_back() {
    let harness = Harness::new();
    let long = "x".repeat(100_000);
    let script = "sed -n 's/^VmRSS: *\\(.*\\) kB/\\1/p' /proc/$PPID/status; ls /proc/$PPID/fd | wc -l";
    let mut seen = Vec::new();
    for _ in 0..60 {
        let ran = harness.run(&["sh", "-c", script, "sh", &long]).await;
        assert_eq!(ran.verdict(), Verdict::Exited(0), "{}", ran.stderr);
        let numbers: Vec<u64> = ran.stdout.lines().map(|line| line.trim().parse().unwrap()).collect();
        seen.push(<[u64; 2]>::try_from(numbers).unwrap());
    }
    let ([resident_kib, descriptors], last) = (seen[10], seen[59]);
    assert!(last[0] < resident_kib + 1024, "{seen:?}");
    assert_eq!(last[1], descriptors);
}

#[tokio::test]
async fn usage_is_that_of_the_command() {
    let harness = Harness::new();
    let ran = harness.sh("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done").await;
    let outcome = ran.outcome.unwrap();
    assert!(outcome.usage.user_time > Duration::from_millis(1), "{outcome:?}");
    assert!(outcome.usage.resident_bytes_max > 100 << 10, "{outcome:?}");
    assert!(outcome.completed >= outcome.started);

    // The next one's is not that of the last one, by the same keeper.
    let large = harness.sh("head -c 50000000 /dev/zero | tail -c 50000000 | wc -c").await.outcome.unwrap();
    let small = harness.run(&["true"]).await.outcome.unwrap();
    assert!(large.usage.resident_bytes_max > 50_000_000, "{large:?}");
    assert!(small.usage.resident_bytes_max < 50_000_000, "{small:?}");
    assert!(small.usage.user_time < outcome.usage.user_time, "{small:?}");
}

// As root, the action's user reaches its work wherever the operator keeps the data.
#[tokio::test]
async fn another_user_reaches_work_behind_a_closed_folder() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let work = folder.path().canonicalize().unwrap().join("data/work");
    std::fs::create_dir_all(&work).unwrap();
    let identity = Identity::probe(&work, DEFAULT_ACTION_USER);
    if nix::unistd::Uid::effective().is_root()
        && std::os::unix::fs::chown(&work, Some(65534), Some(65534)).is_ok()
    {
        assert!(matches!(identity, Identity::Other { .. }), "{identity}");
    } else {
        // Nor may root where a user namespace knows no other user.
        assert_eq!(identity.owner(), None, "{identity}");
        return;
    }
    let root = work.join("root");
    std::fs::create_dir(&root).unwrap();
    std::os::unix::fs::chown(&root, Some(65534), Some(65534)).unwrap();
    std::fs::write(folder.path().join("secret"), "x").unwrap();

    let harness = Harness { spawner: start(identity), folder: tempfile::tempdir().unwrap() };
    let script =
        format!("id -u; pwd; echo out > out; cat {}/secret || echo refused", folder.path().display());
    let mut spec = harness.spec("id", &["sh", "-c", &script]);
    spec.working_directory.clone_from(&root);
    let ran = harness.run_spec("id", spec, CancellationToken::new()).await;
    assert_eq!(ran.verdict(), Verdict::Exited(0), "{}", ran.stderr);
    assert_eq!(ran.stdout, format!("65534\n{}\nrefused\n", root.display()));
    let mut written = String::new();
    File::open(root.join("out")).unwrap().read_to_string(&mut written).unwrap();
    assert_eq!(written, "out\n", "what the command wrote is where longshore looks");
    drop(harness);
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&*folder.path().to_string_lossy()), "no mount is left behind");
}

// It is no fault of the action: it can be started elsewhere.
#[tokio::test]
async fn a_command_that_no_helper_is_left_for_is_lost() {
    let harness = Harness::new();
    let helper = Pid::from_raw(harness.spawner.helper_pid().cast_signed());
    kill(helper, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(harness.spawner.helper_ended().await.unwrap(), "SIGKILL killed it");
    let outcome = harness.sh("true").await.outcome;
    assert!(matches!(outcome, Err(RunError::Lost(_))), "{outcome:?}");
}
