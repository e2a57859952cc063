//! Transcripts of what a worker and a real scheduler said to each other, recorded and replayed message by message.
//!
//! [`Recorder`] stands between the two and writes down what passes; [`Replay`] is the scheduler of a transcript: it says
//! what that one said, byte for byte, as far as the worker says what the recorded one did. Both keep a [`Tape`], on
//! which a test can wait for something to have happened, so that the same test records and replays.
//!
//! Neither knows a protocol: calls are paths, and messages are bytes. `tests/transcripts/README.md` says what was
//! recorded, and how to record it anew.

mod codec;
mod recorder;
mod replay;
mod tape;
mod wire;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

pub use recorder::Recorder;
pub use replay::{Replay, Summary};
pub use tape::Tape;
pub use wire::Message;

use crate::source::source_root;

/// Binary headers and trailers, each with a message; the others are not written down.
pub type Headers = BTreeMap<String, Message>;

/// Something that passed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The number of its call, from 1 on.
    pub call: usize,
    /// What it was.
    #[serde(flatten)]
    pub step: Step,
}

/// What happens in a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The worker begins it.
    Called {
        /// Its path.
        method: String,
        /// Its binary headers.
        #[serde(default, skip_serializing_if = "Headers::is_empty")]
        headers: Headers,
    },
    /// The worker says something.
    Request(Message),
    /// The scheduler says something.
    Reply(Message),
    /// The scheduler ends it.
    Ended {
        /// The code of its status.
        code: i32,
        /// The message of its status.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        message: String,
        /// The binary trailers.
        #[serde(default, skip_serializing_if = "Headers::is_empty")]
        trailers: Headers,
    },
    /// The worker does not wait for its end.
    Abandoned,
}

/// What passed between one worker and one scheduler, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transcript(pub Vec<Event>);

impl Transcript {
    /// Where the transcript of that name is kept.
    pub fn path(name: &str) -> PathBuf {
        source_root().join("tests/transcripts").join(format!("{name}.jsonl"))
    }

    /// Reads the one of that name.
    pub fn read(name: &str) -> Result<Self> {
        let path = Self::path(name);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let event = |(number, line)| {
            serde_json::from_str(line).with_context(|| format!("{}:{}", path.display(), number + 1))
        };
        Ok(Self(text.lines().enumerate().map(event).collect::<Result<_>>()?))
    }

    /// Writes it down, one event a line.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = String::new();
        for event in &self.0 {
            text += &serde_json::to_string(event)?;
            text.push('\n');
        }
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }

    /// The calls, each as its steps.
    pub fn calls(&self) -> Vec<Vec<&Step>> {
        let mut calls = BTreeMap::<usize, Vec<_>>::new();
        for event in &self.0 {
            calls.entry(event.call).or_default().push(&event.step);
        }
        calls.into_values().collect()
    }

    /// The same without what is the machine's on which it was recorded: its name, its user, its folders.
    #[must_use]
    pub fn scrubbed(self) -> Self {
        let folder = source_root().canonicalize().map(|path| path.display().to_string()).unwrap_or_default();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let home = std::env::var("HOME").unwrap_or_default();
        let private = [(folder, "/source"), (host.trim().to_owned(), "host"), (home, "/home")];
        self.with_texts(&|text| {
            let mut text = text.to_owned();
            for (found, instead) in private.iter().filter(|(found, _)| found.len() > 1) {
                text = text.replace(found, instead);
            }
            text
        })
    }

    /// The same with every text in messages and statuses changed by `change`.
    fn with_texts(mut self, change: &impl Fn(&str) -> String) -> Self {
        let change_all = |headers: &mut Headers| {
            for value in headers.values_mut() {
                *value = value.with_texts(change);
            }
        };
        for event in &mut self.0 {
            match &mut event.step {
                Step::Called { headers, .. } => change_all(headers),
                Step::Request(message) | Step::Reply(message) => *message = message.with_texts(change),
                Step::Ended { message, trailers, .. } => {
                    *message = change(message);
                    change_all(trailers);
                }
                Step::Abandoned => {}
            }
        }
        self
    }
}
