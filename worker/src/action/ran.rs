//! The third phase: the command has ended, and every process of it is dead.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use longshore_cas_store::blob::BlobPin;
use longshore_cas_store::dir::{OsDir, PathError};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use tonic::Code;

use super::collected::Collected;
use super::journal::Journal;
use super::logs;
use super::prepared::{STDERR, STDOUT};
use super::runner::Context;
use crate::materialize::InputRoot;
use crate::output::{ActionFolder, CollectError, DeclaredOutputs, Gathered, Intake, Outputs, gather};
use crate::run::Verdict;
use crate::status::Failure;

/// What a shell adds to a signal's number to make an exit code of it.
const SIGNAL_EXIT_CODE_BASE: i32 = 128;

pub(super) struct Ran<'a> {
    pub(super) context: Context<'a>,
    pub(super) outputs: DeclaredOutputs,
    pub(super) root: InputRoot,
    /// Why the action failed although it has a result.
    pub(super) failure: Option<Failure>,
}

/// A command's end in REAPI's terms.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) exit_code: i32,
    pub(super) failure: Option<Failure>,
    pub(super) note: Option<String>,
}

impl Ended {
    /// Fails where there is no result to report.
    pub(super) fn of(verdict: Verdict, timeout: Option<Duration>) -> Result<Self, Failure> {
        let ended = |exit_code| Self { exit_code, failure: None, note: None };
        match verdict {
            Verdict::Exited(code) => Ok(ended(code)),
            Verdict::Signaled(signal) => {
                let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
                let note = format!("the command was killed by signal {signal} ({name})");
                Ok(Self { note: Some(note), ..ended(SIGNAL_EXIT_CODE_BASE + signal) })
            }
            Verdict::TimedOut => {
                let message = format!("the command exceeded deadline: {:?}", timeout.unwrap_or_default());
                let failure = Failure::new(Code::DeadlineExceeded, message);
                let exit_code = SIGNAL_EXIT_CODE_BASE + Signal::SIGKILL as i32;
                Ok(Self { failure: Some(failure), ..ended(exit_code) })
            }
            Verdict::Cancelled => Err(Failure::cancelled()),
        }
    }

    /// The end of a command that was killed because it wrote too much.
    pub(super) fn outgrown(log_bytes_max: u64) -> Self {
        let exit_code = SIGNAL_EXIT_CODE_BASE + Signal::SIGKILL as i32;
        Self { exit_code, failure: Some(too_much(log_bytes_max)), note: None }
    }
}

/// Why an action failed that wrote too much to one of its streams.
fn too_much(log_bytes_max: u64) -> Failure {
    let message = format!(
        "stdout or stderr is larger than the {log_bytes_max} bytes that are stored here; the rest is cut off"
    );
    Failure::new(Code::ResourceExhausted, message)
}

impl<'a> Ran<'a> {
    /// Takes the logs and the outputs into the store. Outputs that cannot be reported cost neither the exit
    /// code nor the logs.
    pub(super) async fn collect(self, journal: &mut Journal) -> Result<Collected<'a>, Failure> {
        let Self { context, outputs: declared, root, mut failure } = self;
        journal.uploading();
        let worker = context.worker;
        let intake = Intake::new(worker.store.clone(), context.function, root.tree().cloned());
        let intake = Arc::new(intake);
        let (is_cut, logs, gathered) = take_in(&context, &root, declared, intake.clone()).await?;
        if let Some(log_bytes_max) = worker.options.log_bytes_max.filter(|_| is_cut) {
            failure = failure.or_else(|| Some(too_much(log_bytes_max)));
        }
        let [stdout, stderr] = logs;
        let outputs = match gathered {
            Ok(gathered) => gathered.store(&intake).await,
            Err(error) => Err(error),
        };
        let outputs = outputs.unwrap_or_else(|error| {
            // Why the command itself failed explains more than what it left behind.
            journal.note(error.to_string());
            failure.get_or_insert_with(|| error.into());
            Outputs::default()
        });
        for note in &outputs.notes {
            journal.note(note);
        }
        Ok(Collected { context, stdout, stderr, outputs, root, failure })
    }
}

/// Whether the logs were cut, the logs, and the outputs.
type TakenIn = (bool, [BlobPin; 2], Result<Gathered, CollectError>);

/// Takes the logs, cut at their bound, and the files of the outputs into the store: one job of the pool.
async fn take_in(
    context: &Context<'_>,
    root: &InputRoot,
    declared: DeclaredOutputs,
    intake: Arc<Intake>,
) -> Result<TakenIn, Failure> {
    let worker = context.worker;
    let logs = reopen(root.folder())?;
    let folder = ActionFolder { root: reopen(root.dir())?, path: root.path().to_owned() };
    let log_bytes_max = worker.options.log_bytes_max;
    let take_in = move || {
        let is_cut = match log_bytes_max {
            Some(bytes_max) => logs::cut(&logs, STDOUT, bytes_max)? | logs::cut(&logs, STDERR, bytes_max)?,
            None => false,
        };
        let adopt = |name| {
            let adopted = intake.adopt(&logs, Path::new(name));
            adopted.map_err(|error| Failure::of_store(name, &error))
        };
        let pins = [adopt(STDOUT)?, adopt(STDERR)?];
        Ok((is_cut, pins, gather(&folder, &declared, &intake)))
    };
    worker.io.run(take_in).await
}

/// A descriptor of its own for a thread of the pool, whatever modes the action left behind.
pub(super) fn reopen(dir: &OsDir) -> Result<OsDir, PathError> {
    match dir.open_sub(Path::new(".")) {
        Err(error) if error.errno == Errno::EACCES => {
            dir.unlock()?;
            dir.open_sub(Path::new("."))
        }
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RES-01, RES-02, ACT-10, ACT-11: a client that looks at one field alone is not misled.
    #[test]
    fn every_end_has_an_exit_code() {
        let timeout = Some(Duration::from_secs(3));
        let exited = Ended::of(Verdict::Exited(3), timeout).unwrap();
        assert_eq!(exited, Ended { exit_code: 3, failure: None, note: None });

        let killed = Ended::of(Verdict::Signaled(11), None).unwrap();
        assert_eq!((killed.exit_code, killed.failure), (139, None));
        assert!(killed.note.unwrap().contains("SIGSEGV"));

        let expired = Ended::of(Verdict::TimedOut, timeout).unwrap();
        assert_eq!(expired.exit_code, 137);
        let failure = expired.failure.unwrap();
        assert_eq!(failure.code(), Code::DeadlineExceeded);
        // Bazel's own tests look for these words.
        assert!(failure.message().contains("exceeded deadline"), "{failure:?}");

        assert_eq!(Ended::of(Verdict::Cancelled, None).unwrap_err().code(), Code::Cancelled);
    }
}
