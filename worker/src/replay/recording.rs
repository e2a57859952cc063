//! What is to be replayed, wherever it comes from: actions, how they went, and the blobs that came along.

use std::fs::File;
use std::io::{BufReader, Cursor, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use longshore_cas_store::digest::Digest;

use super::blobs::LocalBlobs;
use super::outcome::Outcome;
use super::{bundle, digests, log, remotetool};

/// What is looked at to tell a list of digests from a log.
const SAMPLE_BYTES: u64 = 1024;

/// Actions in the order in which they were started.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    pub(crate) actions: Vec<RecordedAction>,
    /// Blobs that a server may lack.
    pub(crate) blobs: Arc<LocalBlobs>,
    /// What could not be read, and why. The rest can be replayed.
    pub(crate) problems: Vec<String>,
}

/// One action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordedAction {
    pub(crate) digest: Digest,
    /// What a person knows it by; may be empty.
    pub(crate) name: String,
    /// When it was started, counted from the first one.
    pub(crate) start: Duration,
    /// How it went, where that is known, and where it is the action that went and not a server that failed.
    pub(crate) outcome: Option<Outcome>,
}

impl RecordedAction {
    /// An action of which no more is known.
    pub(crate) fn new(digest: Digest) -> Self {
        Self { digest, name: String::new(), start: Duration::ZERO, outcome: None }
    }
}

/// Why nothing can be replayed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    /// The system will not have it.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// What is read.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is something else.
    #[error("cannot use {}: {reason}", .path.display())]
    Unsuitable {
        /// What was read.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl InputError {
    /// What could not be read at `path`.
    pub(crate) fn read(path: &Path) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Read { path: path.to_owned(), source }
    }

    /// Why what is at `path` will not do.
    pub(crate) fn unsuitable(path: &Path, reason: impl Into<String>) -> Self {
        Self::Unsuitable { path: path.to_owned(), reason: reason.into() }
    }
}

impl Recording {
    /// Reads a log, a list of digests, a bundle or an action directory; `-` is a list of digests on stdin.
    pub(crate) fn open(path: &Path) -> Result<Self, InputError> {
        let mut recording = if path == Path::new("-") {
            digests::read(path, std::io::stdin().lock())
        } else if path.is_dir() {
            open_folder(path)
        } else {
            open_file(path)
        }?;
        if recording.actions.is_empty() {
            let reason = match &*recording.problems {
                [] => "it has no action".to_owned(),
                [only] => only.clone(),
                [first, more @ ..] => format!("it has no action; {first}; and {} more like that", more.len()),
            };
            return Err(InputError::unsuitable(path, reason));
        }
        for action in &mut recording.actions {
            // How a server failed is nothing to compare with.
            action.outcome.take_if(|outcome| !outcome.is_of_the_action());
        }
        Ok(recording)
    }
}

fn open_folder(path: &Path) -> Result<Recording, InputError> {
    if path.join(bundle::MANIFEST).exists() {
        bundle::open(path)
    } else if path.join(remotetool::COMMAND).exists() {
        remotetool::open(path)
    } else {
        let (manifest, command) = (bundle::MANIFEST, remotetool::COMMAND);
        let reason = format!("it has neither {manifest} (a bundle) nor {command} (an action directory)");
        Err(InputError::unsuitable(path, reason))
    }
}

fn open_file(path: &Path) -> Result<Recording, InputError> {
    let read = InputError::read(path);
    let mut file = File::open(path).map_err(&read)?;
    let mut sample = Vec::new();
    (&mut file).take(SAMPLE_BYTES).read_to_end(&mut sample).map_err(&read)?;
    let is_text = is_text(&sample);
    // What was read of a pipe is not there a second time.
    let whole = BufReader::new(Cursor::new(sample).chain(file));
    if is_text { digests::read(path, whole) } else { log::read(path, whole) }
}

/// Every entry of a log has lengths and tags below the space.
fn is_text(sample: &[u8]) -> bool {
    !sample.is_empty() && sample.iter().all(|byte| *byte >= b' ' || byte.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;

    use longshore_cas_store::digest::DigestFunction;

    use super::*;

    // `replay <(cat list)`.
    #[test]
    fn a_pipe_is_read_from_its_beginning() {
        let digests: Vec<_> = (0..100_u8).map(|number| DigestFunction::Sha256.digest(&[number])).collect();
        let list: Vec<_> = digests.iter().map(|digest| format!("{digest}\n")).collect();
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(list.concat().as_bytes()).unwrap();
        drop(writer);
        let path = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
        let recording = Recording::open(&path).unwrap();
        assert_eq!(recording.problems, Vec::<String>::new());
        assert_eq!(recording.actions.iter().map(|action| action.digest).collect::<Vec<_>>(), digests);
    }

    // A recorded failure of a server is nothing that another one has to do as well.
    #[test]
    fn how_a_server_failed_is_not_how_an_action_went() {
        let folder = tempfile::tempdir().unwrap();
        let line = |status| {
            let digest = DigestFunction::Sha256.digest(&[status]);
            format!("{{\"action\":\"{digest}\",\"outcome\":{{\"status\":{status}}}}}\n")
        };
        let header = "{\"format\":\"longshore-bundle\",\"version\":1,\"actions\":4}\n";
        let [fine, late, internal, gone] = [0, 4, 13, 14].map(line);
        let manifest = [header, &fine, &late, &internal, &gone].concat();
        std::fs::write(folder.path().join(bundle::MANIFEST), manifest).unwrap();
        let recording = Recording::open(folder.path()).unwrap();
        let known: Vec<_> = recording.actions.iter().map(|action| action.outcome.is_some()).collect();
        assert_eq!(known, [true, true, false, false]);
    }

    #[test]
    fn what_is_none_of_them_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let error = Recording::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("neither manifest.jsonl"), "{error}");
        let error = Recording::open(&folder.path().join("absent")).unwrap_err().to_string();
        assert!(error.contains("absent: No such file"), "{error}");
        let empty = folder.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        let error = Recording::open(&empty).unwrap_err().to_string();
        assert!(error.contains("it is empty"), "{error}");
        std::fs::write(&empty, "# no digest\n").unwrap();
        let error = Recording::open(&empty).unwrap_err().to_string();
        assert!(error.contains("it has no action"), "{error}");
    }
}
