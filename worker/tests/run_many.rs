//! Many commands at once through one helper; alone in its process, because it counts descriptors.

mod kit;

use std::ffi::CString;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use longshore_worker::run::{Identity, RunSpec, Runner as _, Spawner, SpawnerOptions, Verdict};
use tokio_util::sync::CancellationToken;

const COMMANDS: usize = 64;
const ROUNDS: usize = 3;
/// Longer than the test.
const IDLE_MAX: Duration = Duration::from_hours(1);

fn spec(folder: &Path, index: usize) -> RunSpec {
    let text = |text: &str| CString::new(text).unwrap();
    RunSpec {
        arguments: vec![text("/bin/echo"), text(&index.to_string())],
        environment: Vec::new(),
        working_directory: folder.to_owned(),
        stdout: File::create(folder.join(index.to_string())).unwrap(),
        stderr: File::create(folder.join("stderr")).unwrap(),
        timeout: None,
    }
}

fn descriptors(process: &str) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

#[tokio::test]
async fn many_run_side_by_side_and_leave_no_descriptor() {
    let folder = tempfile::tempdir().unwrap();
    let program = kit::longshore();
    let identity = Identity::Own { reason: "a test".to_owned() };
    let options = SpawnerOptions { program, idle_max: IDLE_MAX, ..SpawnerOptions::this_program(identity) };
    let spawner = Spawner::start(&options).unwrap();
    let helper = spawner.helper_pid().to_string();

    let before = (descriptors("self"), descriptors(&helper));
    for _ in 0..ROUNDS {
        let runs =
            (0..COMMANDS).map(|index| spawner.run(spec(folder.path(), index), CancellationToken::new()));
        for (index, outcome) in futures::future::join_all(runs).await.into_iter().enumerate() {
            assert_eq!(outcome.unwrap().verdict, Verdict::Exited(0));
            assert_eq!(
                std::fs::read_to_string(folder.path().join(index.to_string())).unwrap(),
                format!("{index}\n")
            );
        }
        // Each keeper waits for the next command, and each is one descriptor of ours: none is started twice.
        assert_eq!(descriptors("self"), before.0 + COMMANDS);
        assert_eq!(descriptors(&helper), before.1);
    }
}
