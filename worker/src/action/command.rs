//! What an Action and its Command ask for, checked before anything is prepared.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::time::Duration;

use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::name::RelPath;
use longshore_proto::{reapi, time};

use super::ActionOptions;
use crate::materialize::MaterializeError;
use crate::output::{DeclaredOutputs, declare};
use crate::status::Failure;

/// The field that the command's folder comes from.
pub(super) const WORKING_DIRECTORY: &str = "Command.working_directory";

/// What an Action says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CheckedAction {
    pub(super) command: Digest,
    pub(super) input_root: Digest,
    /// How long the command may run; nothing for no bound.
    pub(super) timeout: Option<Duration>,
    /// Whether its result may be given to others.
    pub(super) may_cache: bool,
}

impl CheckedAction {
    pub(super) fn parse(
        function: DigestFunction,
        action: &reapi::Action,
        options: &ActionOptions,
    ) -> Result<Self, Failure> {
        let digest = |field: &str, wire: Option<&reapi::Digest>| {
            Digest::from_wire(function, wire)
                .map_err(|error| Failure::invalid(format!("Action.{field}: {error}")))
        };
        Ok(Self {
            command: digest("command_digest", action.command_digest.as_ref())?,
            input_root: digest("input_root_digest", action.input_root_digest.as_ref())?,
            timeout: timeout(action, options)?,
            may_cache: !action.do_not_cache,
        })
    }
}

/// A timeout of zero is meant: it expires at once (REAPI leaves only an absent one to the server).
fn timeout(action: &reapi::Action, options: &ActionOptions) -> Result<Option<Duration>, Failure> {
    let Some(wire) = &action.timeout else { return Ok(options.timeout_default) };
    let Some(timeout) = time::from_duration(wire) else {
        let reason = format!("{} s and {} ns is no span of time", wire.seconds, wire.nanos);
        return Err(Failure::invalid(format!("Action.timeout: {reason}")));
    };
    match options.timeout_max {
        Some(timeout_max) if timeout > timeout_max => Err(Failure::invalid(format!(
            "Action.timeout: {timeout:?} is more than the {timeout_max:?} allowed here"
        ))),
        _ => Ok(Some(timeout)),
    }
}

/// What a Command says, in the form that running it takes.
#[derive(Debug)]
pub(super) struct CheckedCommand {
    pub(super) arguments: Vec<CString>,
    /// `NAME=value`, sorted, each name once.
    pub(super) environment: Vec<CString>,
    pub(super) working_directory: RelPath,
    pub(super) outputs: DeclaredOutputs,
}

impl CheckedCommand {
    pub(super) fn parse(command: &reapi::Command) -> Result<Self, Failure> {
        let working_directory = RelPath::parse(&command.working_directory)
            .map_err(|error| Failure::invalid(error.to_string()).within(WORKING_DIRECTORY))?;
        Ok(Self {
            arguments: arguments(&command.arguments)?,
            environment: environment(&command.environment_variables)?,
            outputs: declare(command, &working_directory)?,
            working_directory,
        })
    }

    /// Tells the command of its platform, in a variable of that name: `NAME=VALUE`, the properties comma separated.
    /// A variable that the Command sets itself stays.
    pub(super) fn tell_platform(&mut self, name: &str, platform: &reapi::Platform) -> Result<(), Failure> {
        let prefix = format!("{name}=");
        if self.environment.iter().any(|variable| variable.to_bytes().starts_with(prefix.as_bytes())) {
            return Ok(());
        }
        let properties =
            platform.properties.iter().map(|property| format!("{}={}", property.name, property.value));
        let text = prefix + &properties.collect::<Vec<_>>().join(",");
        let text =
            CString::new(text).map_err(|_| Failure::invalid("Platform.properties: contain a NUL byte"))?;
        self.environment.push(text);
        self.environment.sort_unstable();
        Ok(())
    }

    /// The directories that must exist before the command starts, sorted, each once.
    pub(super) fn directories(&self) -> Vec<RelPath> {
        let mut directories = self.outputs.parents();
        if !self.working_directory.is_empty() {
            directories.push(self.working_directory.clone());
        }
        directories.sort_unstable();
        directories.dedup();
        directories
    }

    /// Why there is no input root, with the field of the Command if that is at fault.
    pub(super) fn in_its_terms(&self, error: MaterializeError) -> Failure {
        let field = match &error {
            MaterializeError::Parent { path, .. } if *path == self.working_directory => WORKING_DIRECTORY,
            MaterializeError::Parent { .. } => "the outputs of the Command",
            _ => return error.into(),
        };
        Failure::from(error).within(field)
    }
}

fn arguments(arguments: &[String]) -> Result<Vec<CString>, Failure> {
    if arguments.is_empty() {
        return Err(Failure::invalid("Command.arguments: is empty"));
    }
    let argument = |argument: &String| {
        CString::new(argument.as_str())
            .map_err(|_| Failure::invalid(format!("Command.arguments: {argument:?} contains a NUL byte")))
    };
    arguments.iter().map(argument).collect()
}

/// Where a name comes twice, the later value counts, as in a shell.
fn environment(variables: &[reapi::command::EnvironmentVariable]) -> Result<Vec<CString>, Failure> {
    let mut values = BTreeMap::new();
    for variable in variables {
        let wrong = |reason: &str| {
            Failure::invalid(format!("Command.environment_variables: {:?} {reason}", variable.name))
        };
        if variable.name.is_empty() {
            return Err(wrong("is no name"));
        }
        if variable.name.contains('=') {
            return Err(wrong("contains '='"));
        }
        let text = CString::new(format!("{}={}", variable.name, variable.value))
            .map_err(|_| wrong("contains a NUL byte in its name or value"))?;
        values.insert(variable.name.as_str(), text);
    }
    Ok(values.into_values().collect())
}

#[cfg(test)]
mod tests;
