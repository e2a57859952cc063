//! Actions with everything that they need, in a folder. `docs/replay.md` describes the format.
//!
//! `manifest.jsonl` has a line of JSON for the bundle and one for each action; `blobs/FUNCTION/HASH` has each blob once.
//! The manifest is written last: a folder without one is no bundle.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use longshore_cas_store::digest::{Digest, DigestFunction};
use serde::{Deserialize, Serialize};
use tonic::Code;

use super::blobs::LocalBlobs;
use super::digests;
use super::outcome::{Outcome, Output};
use super::recording::{InputError, RecordedAction, Recording};

/// The file that makes a folder a bundle.
pub(crate) const MANIFEST: &str = "manifest.jsonl";
/// The folder of the blobs.
const BLOBS: &str = "blobs";
/// What the first line says that it is.
const FORMAT: &str = "longshore-bundle";
/// The version of the format.
const VERSION: u32 = 1;
/// A line of a manifest that is believed, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// The first line of a manifest.
#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    /// How many lines follow.
    actions: usize,
}

/// Every other line.
#[derive(Serialize, Deserialize)]
struct Line {
    action: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(default)]
    start_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outcome: Option<OutcomeLine>,
}

#[derive(Serialize, Deserialize)]
struct OutcomeLine {
    #[serde(default)]
    status: i32,
    #[serde(default)]
    exit_code: i32,
    #[serde(default)]
    outputs: BTreeMap<String, String>,
}

/// Where a blob lies in a bundle's folder of blobs.
pub(crate) fn blob_path(digest: &Digest) -> PathBuf {
    Path::new(digest.function().name()).join(digest.hash_hex())
}

/// Opens the bundle in `folder`. Its blobs are not looked at.
pub(crate) fn open(folder: &Path) -> Result<Recording, InputError> {
    let path = folder.join(MANIFEST);
    let read = InputError::read(&path);
    let unsuitable = |reason: String| InputError::unsuitable(&path, reason);
    let mut lines = Lines(io::BufReader::new(File::open(&path).map_err(&read)?));
    let header = lines.next().map_err(&read)?.unwrap_or_default();
    let header: Header = serde_json::from_str(&header)
        .map_err(|error| unsuitable(format!("its first line is not a bundle's: {error}")))?;
    if header.format != FORMAT {
        return Err(unsuitable(format!("it is a {:?}", header.format)));
    }
    if header.version != VERSION {
        let version = header.version;
        return Err(unsuitable(format!("its version is {version}, and this longshore reads {VERSION}")));
    }
    let blobs = Arc::new(LocalBlobs::Bundle(folder.join(BLOBS)));
    let mut recording = Recording { blobs, ..Recording::default() };
    let mut seen = 0;
    while let Some(line) = lines.next().map_err(&read)? {
        seen += 1;
        match parse(&line) {
            Ok(action) => recording.actions.push(action),
            Err(reason) => recording.problems.push(format!("{MANIFEST}: line {}: {reason}", seen + 1)),
        }
    }
    if seen != header.actions {
        let actions = header.actions;
        let why = if seen < actions { "it is cut off" } else { "somebody has added to it" };
        recording.problems.push(format!("{MANIFEST} has {seen} actions instead of {actions}: {why}"));
    }
    Ok(recording)
}

/// The lines of a manifest.
struct Lines<R>(R);

impl<R: io::BufRead> Lines<R> {
    fn next(&mut self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        let read = (&mut self.0).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        // What is not UTF-8 is no JSON either, and is named as such.
        Ok((read > 0).then(|| String::from_utf8_lossy(&line).into_owned()))
    }
}

fn parse(line: &str) -> Result<RecordedAction, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let outcome = match line.outcome {
        None => None,
        Some(OutcomeLine { status, exit_code, outputs }) => {
            let parse = |(path, output): (String, String)| Ok((path, output.parse::<Output>()?));
            let outputs = outputs.into_iter().map(parse).collect::<Result<_, String>>()?;
            Some(Outcome { status: Code::from(status), exit_code, outputs })
        }
    };
    let digest = digests::parse(&line.action)?;
    Ok(RecordedAction { digest, name: line.name, start: Duration::from_millis(line.start_ms), outcome })
}

fn format(action: &RecordedAction) -> Line {
    let outcome = action.outcome.as_ref().map(|outcome| OutcomeLine {
        status: outcome.status.into(),
        exit_code: outcome.exit_code,
        outputs: outcome.outputs.iter().map(|(path, output)| (path.clone(), output.to_string())).collect(),
    });
    Line {
        action: digests::format(&action.digest),
        name: action.name.clone(),
        start_ms: u64::try_from(action.start.as_millis()).unwrap_or(u64::MAX),
        outcome,
    }
}

/// A bundle that is being made: without a manifest yet.
pub(crate) struct BundleWriter {
    folder: PathBuf,
    blobs: LocalBlobs,
    functions: HashSet<DigestFunction>,
}

impl BundleWriter {
    /// Begins a bundle in `folder`, which must be empty or absent, but that it may have blobs of one that was not finished.
    pub(crate) fn create(folder: &Path) -> io::Result<Self> {
        if folder.exists() {
            for entry in fs::read_dir(folder)? {
                let name = entry?.file_name();
                if name != BLOBS {
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the folder is not empty"));
                }
            }
        }
        let blobs = folder.join(BLOBS);
        fs::create_dir_all(&blobs)?;
        let blobs = LocalBlobs::Bundle(blobs);
        Ok(Self { folder: folder.to_owned(), blobs, functions: HashSet::new() })
    }

    /// Where a blob goes.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(BLOBS).join(blob_path(digest))
    }

    /// Makes a place for a blob, and says whether it is to be filled: what lies there already may be the blob.
    pub(crate) fn clear(&mut self, digest: &Digest) -> io::Result<bool> {
        let path = self.path(digest);
        if self.functions.insert(digest.function())
            && let Some(parent) = path.parent()
        {
            fs::create_dir_all(parent)?;
        }
        if fs::symlink_metadata(&path).is_ok() {
            if self.blobs.has(digest) {
                return Ok(false);
            }
            fs::remove_file(&path)?;
        }
        Ok(true)
    }

    /// Writes the manifest: the folder is a bundle.
    pub(crate) fn finish<'a>(
        self,
        actions: impl ExactSizeIterator<Item = &'a RecordedAction>,
    ) -> io::Result<()> {
        let partial = self.folder.join(format!("{MANIFEST}.partial"));
        let mut manifest = io::BufWriter::new(File::create(&partial)?);
        let header = Header { format: FORMAT.to_owned(), version: VERSION, actions: actions.len() };
        serde_json::to_writer(&mut manifest, &header)?;
        manifest.write_all(b"\n")?;
        for action in actions {
            serde_json::to_writer(&mut manifest, &format(action))?;
            manifest.write_all(b"\n")?;
        }
        manifest.into_inner().map_err(io::IntoInnerError::into_error)?;
        fs::rename(partial, self.folder.join(MANIFEST))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn actions() -> impl Strategy<Value = Vec<RecordedAction>> {
        let digest = any::<Vec<u8>>().prop_map(|data| DigestFunction::Sha256.digest(&data));
        let output = prop_oneof![
            (digest.clone(), any::<bool>())
                .prop_map(|(digest, executable)| Output::File { digest, executable }),
            digest.clone().prop_map(Output::Tree),
            any::<String>().prop_map(Output::Symlink),
        ];
        let outputs = prop::collection::btree_map(any::<String>(), output, 0..4);
        let outcome = (0..17_i32, any::<i32>(), outputs).prop_map(|(code, exit_code, outputs)| Outcome {
            status: Code::from(code),
            exit_code,
            outputs,
        });
        let action = (digest, any::<String>(), any::<u32>(), prop::option::of(outcome));
        let action = action.prop_map(|(digest, name, start_ms, outcome)| RecordedAction {
            digest,
            name,
            start: Duration::from_millis(start_ms.into()),
            outcome,
        });
        prop::collection::vec(action, 0..6)
    }

    fn write(folder: &Path, actions: &[RecordedAction]) {
        BundleWriter::create(folder).unwrap().finish(actions.iter()).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_written_is_read(actions in actions()) {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), &actions);
            let recording = open(folder.path()).unwrap();
            prop_assert_eq!(recording.actions, actions);
            prop_assert_eq!(recording.problems, Vec::<String>::new());
        }

        // Wherever a manifest is cut off, it is noticed, and the actions of whole lines are there.
        #[test]
        fn a_manifest_can_be_cut_off_anywhere(actions in actions(), cut in any::<prop::sample::Index>()) {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), &actions);
            let path = folder.path().join(MANIFEST);
            let manifest = fs::read(&path).unwrap();
            let cut = cut.index(manifest.len());
            fs::write(&path, &manifest[..cut]).unwrap();
            let lines = manifest[..cut].split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")).count();
            let is_line_end = manifest[cut] == b'\n';
            let Ok(recording) = open(folder.path()) else {
                prop_assert!(lines == 0 && !is_line_end);
                return Ok(());
            };
            // The line's end alone is not missed.
            let whole = lines + usize::from(is_line_end) - 1;
            prop_assert_eq!(&recording.actions, &actions[..whole]);
            prop_assert_eq!(recording.problems.is_empty(), whole == actions.len());
        }
    }

    #[test]
    fn what_is_no_bundle_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let cases = [
            ("", "its first line is not a bundle's"),
            ("[]\n", "its first line is not a bundle's"),
            ("{\"format\":\"other\",\"version\":1,\"actions\":0}\n", "it is a \"other\""),
            ("{\"format\":\"longshore-bundle\",\"version\":2,\"actions\":0}\n", "its version is 2"),
        ];
        for (manifest, reason) in cases {
            fs::write(folder.path().join(MANIFEST), manifest).unwrap();
            let error = open(folder.path()).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    // A manifest is for other programs, too: what they wrote long ago must stay readable.
    #[test]
    fn version_1_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let hash = DigestFunction::Sha256.digest(b"").hash_hex();
        let manifest = format!(
            "{{\"format\":\"longshore-bundle\",\"version\":1,\"actions\":3}}\n\
             {{\"action\":\"sha256/{hash}/7\",\"name\":\"n\",\"start_ms\":5,\"outcome\":{{\"status\":4,\
             \"exit_code\":1,\"outputs\":{{\"a\":\"executable sha256/{hash}/2\",\"b\":\"symlink c d\"}}}}}}\n\
             {{\"action\":\"{hash}/8\"}}\n\
             {{\"action\":\"wrong\"}}\n"
        );
        fs::write(folder.path().join(MANIFEST), manifest).unwrap();
        let recording = open(folder.path()).unwrap();
        let action = &recording.actions[0];
        assert_eq!((action.digest.size_bytes(), &*action.name, action.start.as_millis()), (7, "n", 5));
        let outcome = action.outcome.as_ref().unwrap();
        assert_eq!((outcome.status, outcome.exit_code), (Code::DeadlineExceeded, 1));
        assert_eq!(outcome.outputs["b"], Output::Symlink("c d".to_owned()));
        let digest = digests::parse(&format!("{hash}/2")).unwrap();
        assert_eq!(outcome.outputs["a"], Output::File { digest, executable: true });
        assert_eq!(recording.actions[1].outcome, None);
        assert!(recording.problems[0].starts_with("manifest.jsonl: line 4: "), "{:?}", recording.problems);
    }

    #[test]
    fn a_bundle_is_not_made_over_something_else() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("precious"), "").unwrap();
        assert!(BundleWriter::create(folder.path()).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "and nothing is put beside it");
    }

    // What was recorded before is used again, and nothing else that lies there.
    #[test]
    fn what_lies_in_a_blobs_place_is_the_blob_or_goes() {
        let folder = tempfile::tempdir().unwrap();
        let digest = DigestFunction::Sha256.digest(b"content");
        let mut bundle = BundleWriter::create(&folder.path().join("new/bundle")).unwrap();
        assert!(bundle.clear(&digest).unwrap());
        let path = bundle.path(&digest);
        fs::write(&path, "content").unwrap();
        assert!(!bundle.clear(&digest).unwrap() && path.exists());
        fs::write(&path, "contemt").unwrap();
        assert!(bundle.clear(&digest).unwrap() && !path.exists());
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert!(bundle.clear(&digest).unwrap() && !path.is_symlink());
    }
}
