//! `longshore record`: a bundle from a recording and the CAS that still has its blobs.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use longshore_cas_store::blob::BlobPin;
use longshore_cas_store::digest::Digest;

use super::bundle::BundleWriter;
use super::closure::Closure;
use super::outcome::Output;
use super::prepare::wrong_with;
use super::recording::{RecordedAction, Recording};
use super::server::{Server, ServerArgs, is_of_the_server};
use super::{Verdict, name_of, open, tell};
use crate::signals::Signals;
use crate::status_line::{Bar, say, size, unless_gone};

/// The store that blobs pass through is as large as the bundle: both have the same files.
const STORE_BYTES_MAX: u64 = u64::MAX / 2;
/// Actions that are named, of those that are left out, and problems of the recording.
const NAMED_MAX: usize = 20;

/// Make a bundle: actions with everything that they need, in a folder
///
/// Reads which actions to record from a log of Bazel's (--remote_grpc_log=FILE, or --experimental_remote_grpc_log=FILE in
/// older versions) or from a list of digests, and fetches all their inputs from the server, while it still has them.
///
/// Exit codes: 0 everything is in the bundle; 2 the recording is not what it should be, and what could be read of it is in
/// the bundle; 4 the server lacks some of it, and the rest is in the bundle, or cannot be asked.
#[expect(clippy::doc_markdown, reason = "it is what --help says, and no Markdown")]
#[derive(Args, Clone, Debug)]
pub struct RecordArgs {
    /// A log of Bazel's, or a list of action digests, one a line; - reads such a list from stdin.
    #[arg(value_name = "LOG")]
    pub recording: PathBuf,

    /// The bundle's folder, which must be new or empty.
    #[arg(value_name = "BUNDLE")]
    pub bundle: PathBuf,

    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Makes a bundle.
///
/// # Errors
/// A bundle that cannot be written. What is wrong with the recording or the server is in the exit code, and said.
pub async fn record(args: RecordArgs) -> anyhow::Result<ExitCode> {
    if let Some(reason) = args.server.mistake() {
        tell(&reason);
        return Ok(Verdict::BadInput.into());
    }
    let recording = match Recording::open(&args.recording) {
        Ok(recording) if recording.blobs.is_elsewhere() => recording,
        Ok(_) => {
            say("the recording has its blobs already: replay it as it is");
            return Ok(Verdict::BadInput.into());
        }
        Err(error) => {
            tell(&error.to_string());
            return Ok(Verdict::BadInput.into());
        }
    };
    for problem in recording.problems.iter().take(NAMED_MAX) {
        tell(problem);
    }
    if recording.problems.len() > NAMED_MAX {
        say(&format!("{} more problems of the recording", recording.problems.len() - NAMED_MAX));
    }
    let mut signals = Signals::new()?;
    let bundle = BundleWriter::create(&args.bundle)
        .with_context(|| format!("cannot make a bundle in {}", args.bundle.display()))?;
    let Some(server) = open(&args.server, &args.bundle, STORE_BYTES_MAX)? else {
        return Ok(Verdict::BadInput.into());
    };
    let mut recorder = Recorder {
        server,
        bundle,
        closure: Closure::default(),
        broken: HashMap::new(),
        no_actions: HashMap::new(),
        recorded: HashSet::new(),
        lacks_trees: false,
    };
    let bar = Bar::spinner();
    let gathered = tokio::select! {
        gathered = recorder.gather(&recording.actions, &bar) => gathered,
        () = signals.next() => {
            drop(bar);
            say("interrupted: there is no bundle yet");
            return Ok(Verdict::Interrupted.into());
        }
    };
    drop(bar);
    match gathered {
        Err(error) if is_of_the_server(&error) => {
            tell(&format!("{error:#}"));
            return Ok(Verdict::Errors.into());
        }
        gathered => gathered?,
    }
    recorder.finish(&args, &recording)
}

struct Recorder {
    server: Server,
    bundle: BundleWriter,
    closure: Closure,
    /// Blobs that are not to be had, and why.
    broken: HashMap<Digest, String>,
    /// Blobs that are no Actions, and why: nothing is wrong with them for whoever needs them as something else.
    no_actions: HashMap<Digest, String>,
    /// Blobs of the bundle, whoever put them there.
    recorded: HashSet<Digest>,
    /// Whether the server was of no use any more when it was asked for output folders.
    lacks_trees: bool,
}

impl Recorder {
    /// Fetches all that the actions need; fails when the server cannot be asked.
    async fn gather(&mut self, actions: &[RecordedAction], bar: &Bar) -> anyhow::Result<()> {
        self.server.reach().await?;
        let digests = actions.iter().map(|action| action.digest).collect();
        for (digest, message) in self.messages(digests, bar).await? {
            if let Err(reason) = self.closure.action(digest, &message) {
                self.no_actions.insert(digest, reason);
            }
        }
        loop {
            let pending = self.closure.take_pending();
            if pending.is_empty() {
                break;
            }
            for (digest, message) in self.messages(pending, bar).await? {
                if let Err(reason) = self.closure.directory(digest, &message) {
                    self.broken.insert(digest, reason);
                }
            }
        }
        self.fetch(self.closure.leaves(), bar, async |_, _| Ok(())).await?;
        self.output_trees(actions, bar).await
    }

    /// Output folders are compared by their trees; a server that has evicted them leaves their digests to compare. Nobody
    /// needs them to execute an action: the bundle is made without them.
    async fn output_trees(&mut self, actions: &[RecordedAction], bar: &Bar) -> anyhow::Result<()> {
        let outputs = actions.iter().filter_map(|action| action.outcome.as_ref());
        let mut trees: Vec<Digest> = outputs
            .flat_map(|outcome| outcome.outputs.values())
            .filter_map(|output| if let Output::Tree(digest) = output { Some(*digest) } else { None })
            .filter(|digest| !digest.is_empty())
            .collect();
        trees.sort_unstable();
        trees.dedup();
        let broken = self.broken.clone();
        let fetched = self.fetch(trees, bar, async |_, _| Ok(())).await;
        self.broken = broken;
        match fetched {
            Err(error) if is_of_the_server(&error) => {
                tell(&format!("not all output folders are in the bundle: {error:#}"));
                self.lacks_trees = true;
                Ok(())
            }
            fetched => fetched,
        }
    }

    /// Fetches messages into the bundle, and returns those that came.
    async fn messages(&mut self, wanted: Vec<Digest>, bar: &Bar) -> anyhow::Result<Vec<(Digest, Bytes)>> {
        let mut messages = Vec::with_capacity(wanted.len());
        self.fetch(wanted, bar, async |server, pin| {
            messages.push((*pin.digest(), server.read(&pin).await?));
            Ok(())
        })
        .await?;
        Ok(messages)
    }

    /// Fetches blobs into the bundle, and hands over each one that came.
    async fn fetch(
        &mut self,
        wanted: Vec<Digest>,
        bar: &Bar,
        mut take: impl AsyncFnMut(&Server, BlobPin) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut bytes = self.bytes();
        let mut download = self.server.download(wanted);
        while let Some((digest, outcome)) = download.next().await? {
            let pin = match outcome {
                Ok(pin) => pin,
                Err(reason) => {
                    self.broken.insert(digest, reason);
                    continue;
                }
            };
            if self.recorded.insert(digest) {
                let path = self.bundle.path(&digest);
                let write = async {
                    if self.bundle.clear(&digest)? {
                        self.server.link(&pin, path.clone()).await?;
                    }
                    anyhow::Ok(())
                };
                write.await.with_context(|| format!("cannot write {}", path.display()))?;
                bytes += digest.size_bytes();
            }
            bar.message(&format!("{} blobs, {}", self.recorded.len(), size(bytes)));
            take(&self.server, pin).await?;
        }
        Ok(())
    }

    /// What the blobs of the bundle take.
    fn bytes(&self) -> u64 {
        self.recorded.iter().map(Digest::size_bytes).sum()
    }

    /// Writes the manifest, and says what is not in it.
    fn finish(self, args: &RecordArgs, recording: &Recording) -> anyhow::Result<ExitCode> {
        let spoilt = self.closure.spoilt(self.broken.keys().copied());
        let wrong = |action: &RecordedAction| {
            if let Some(reason) = self.no_actions.get(&action.digest) {
                return Some(format!("the action {reason}"));
            }
            let blob = spoilt.get(&action.digest)?;
            Some(wrong_with(action.digest, *blob, &self.broken[blob]))
        };
        let (left_out, actions): (Vec<_>, Vec<_>) = recording
            .actions
            .iter()
            .map(|action| (action, wrong(action)))
            .partition(|(_, wrong)| wrong.is_some());
        for (action, reason) in left_out.iter().take(NAMED_MAX) {
            let reason = reason.as_deref().unwrap_or_default();
            tell(&format!("{} is left out: {reason}", name_of(action)));
        }
        if left_out.len() > NAMED_MAX {
            say(&format!("{} more actions are left out", left_out.len() - NAMED_MAX));
        }
        if actions.is_empty() {
            say("there is nothing to make a bundle of");
            return Ok(Verdict::Errors.into());
        }
        let (blobs, bytes) = (self.recorded.len(), size(self.bytes()));
        let bundle = args.bundle.display();
        let finished = self.bundle.finish(actions.iter().map(|(action, _)| *action));
        finished.with_context(|| format!("cannot write the manifest of {bundle}"))?;
        let of = if left_out.is_empty() { String::new() } else { format!(" of {}", recording.actions.len()) };
        let written = writeln!(
            std::io::stdout(),
            "recorded {}{of} actions with {blobs} blobs, {bytes}, in {bundle}",
            actions.len()
        );
        unless_gone(written).context("cannot say what was recorded")?;
        let verdict = if self.lacks_trees || !left_out.is_empty() {
            Verdict::Errors
        } else if recording.problems.is_empty() {
            Verdict::Equal
        } else {
            Verdict::BadInput
        };
        Ok(verdict.into())
    }
}
