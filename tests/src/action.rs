//! Actions to run: a Command, an Action and the inputs, as blobs.

use std::time::Duration;

use bytes::Bytes;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::{Message as _, protobuf, reapi};

use crate::tree::{Blob, InputTree};

/// An action that is being described; nothing but the arguments is needed.
#[derive(Clone, Debug, Default)]
pub struct TestAction {
    /// The Command, free to be changed in every way.
    pub command: reapi::Command,
    /// The input root.
    pub inputs: InputTree,
    /// `Action.timeout`.
    pub timeout: Option<Duration>,
    /// `Action.platform`.
    pub platform: Option<reapi::Platform>,
    /// `Action.do_not_cache`.
    pub do_not_cache: bool,
    /// `Action.salt`: what tells two actions apart that do the same.
    pub salt: Bytes,
}

/// An action as blobs.
#[derive(Clone, Debug)]
pub struct ActionBlobs {
    /// The digest of the Action.
    pub digest: Digest,
    /// The Action, the Command and everything that the input root names.
    pub blobs: Vec<Blob>,
}

impl TestAction {
    /// An action that runs `arguments`.
    pub fn new<S: Into<String>>(arguments: impl IntoIterator<Item = S>) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        Self { command: reapi::Command { arguments, ..Default::default() }, ..Self::default() }
    }

    /// An action that runs a shell script, with the usual PATH.
    pub fn shell(script: &str) -> Self {
        Self::new(["/bin/sh", "-c", script]).environment("PATH", "/usr/bin:/bin")
    }

    /// Sets a variable.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        let variable = reapi::command::EnvironmentVariable { name: name.to_owned(), value: value.to_owned() };
        self.command.environment_variables.push(variable);
        self.command.environment_variables.sort_by(|a, b| a.name.cmp(&b.name));
        self
    }

    /// Declares outputs of any kind (`output_paths`).
    #[must_use]
    pub fn outputs<S: Into<String>>(mut self, paths: impl IntoIterator<Item = S>) -> Self {
        self.command.output_paths.extend(paths.into_iter().map(Into::into));
        self.command.output_paths.sort();
        self
    }

    /// Sets the input root.
    #[must_use]
    pub fn inputs(mut self, inputs: InputTree) -> Self {
        self.inputs = inputs;
        self
    }

    /// Sets the timeout.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Forbids to cache the result.
    #[must_use]
    pub fn do_not_cache(mut self) -> Self {
        self.do_not_cache = true;
        self
    }

    /// Makes it another action than one with another salt.
    #[must_use]
    pub fn salt(mut self, salt: impl Into<Bytes>) -> Self {
        self.salt = salt.into();
        self
    }

    /// The blobs, digested with `function`.
    pub fn build(&self, function: DigestFunction) -> ActionBlobs {
        let inputs = self.inputs.build(function);
        let command = Bytes::from(self.command.encode_to_vec());
        let command_digest = function.digest(&command);
        let action = reapi::Action {
            command_digest: Some(command_digest.to_wire()),
            input_root_digest: Some(inputs.root.to_wire()),
            timeout: self.timeout.map(duration_to_wire),
            do_not_cache: self.do_not_cache,
            salt: self.salt.clone().into(),
            platform: self.platform.clone(),
        };
        let action = Bytes::from(action.encode_to_vec());
        let digest = function.digest(&action);
        let mut blobs: Vec<Blob> = inputs.blobs().cloned().collect();
        blobs.push((command_digest, command));
        blobs.push((digest, action));
        ActionBlobs { digest, blobs }
    }
}

/// A duration as protobuf has it.
fn duration_to_wire(duration: Duration) -> protobuf::Duration {
    let seconds = i64::try_from(duration.as_secs()).expect("a test's timeout fits");
    let nanos = i32::try_from(duration.subsec_nanos()).expect("less than a second");
    protobuf::Duration { seconds, nanos }
}
