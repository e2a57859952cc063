//! What a Command declares about its outputs, checked before anything is prepared.
//!
//! Pure: paths are resolved by their text alone. Whether symbolic links lead a path out of the input root is
//! seen where it is opened.

use std::collections::{BTreeMap, BTreeSet};

use longshore_cas_store::name::{NameError, RelPath};
use longshore_proto::reapi;

/// What a Command declares about its outputs, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeclaredOutputs {
    /// Each declared path, in the order of the Command, each once.
    pub paths: Vec<DeclaredOutput>,
    /// `Command.output_directory_format`.
    pub directory_format: DirectoryFormat,
    /// `Command.output_node_properties`.
    pub node_properties: ReportedProperties,
}

/// One declared output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredOutput {
    /// The path exactly as the Command has it: results echo it.
    pub declared: String,
    /// Where it is, relative to the input root.
    pub path: RelPath,
    /// Which field declared it, and so what it may be.
    pub kind: DeclaredKind,
}

/// Which field of the Command declared an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeclaredKind {
    /// `output_paths`: anything.
    Path,
    /// `output_files`, of clients before REAPI 2.1.
    File,
    /// `output_directories`, of clients before REAPI 2.1.
    Directory,
}

impl DeclaredKind {
    fn field(self) -> &'static str {
        match self {
            Self::Path => "output_paths",
            Self::File => "output_files",
            Self::Directory => "output_directories",
        }
    }
}

/// `Command.OutputDirectoryFormat`. A `Tree` message is given with every format, which REAPI allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectoryFormat {
    /// A `Tree` message.
    #[default]
    TreeOnly,
    /// `Directory` messages.
    DirectoryOnly,
    /// Both.
    TreeAndDirectory,
}

impl DirectoryFormat {
    /// Unknown values of newer clients mean the default.
    fn from_wire(value: i32) -> Self {
        use reapi::command::OutputDirectoryFormat as Wire;
        match Wire::try_from(value) {
            Ok(Wire::DirectoryOnly) => Self::DirectoryOnly,
            Ok(Wire::TreeAndDirectory) => Self::TreeAndDirectory,
            Ok(Wire::TreeOnly) | Err(_) => Self::TreeOnly,
        }
    }

    /// Whether every `Directory` message is wanted as a blob of its own.
    pub fn wants_directories(self) -> bool {
        self != Self::TreeOnly
    }
}

/// Which node properties outputs are reported with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReportedProperties {
    /// `mtime`.
    pub mtime: bool,
    /// `unix_mode`.
    pub unix_mode: bool,
}

/// Why a declaration is refused: the client's error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeclareError {
    /// A path cannot be an output's.
    #[error("Command.{field}: {reason}")]
    Path {
        /// The field of the Command.
        field: &'static str,
        /// What is wrong.
        reason: NameError,
    },
    /// Two declarations of the older fields contradict each other.
    #[error("Command.{field}: {path:?} {reason}")]
    Conflict {
        /// The field of the Command.
        field: &'static str,
        /// The path as declared.
        path: String,
        /// With what.
        reason: String,
    },
    /// A property that longshore does not report.
    #[error("Command.output_node_properties: {0:?} is not supported, only \"mtime\" and \"unix_mode\" are")]
    Property(String),
}

/// Reads the outputs of `command`, whose paths are relative to `working_directory`.
///
/// Where `output_paths` has an entry, the two older fields are ignored (REAPI, `Command.output_paths`).
pub fn declare(
    command: &reapi::Command,
    working_directory: &RelPath,
) -> Result<DeclaredOutputs, DeclareError> {
    let resolve = |kind: DeclaredKind, declared: &String| match working_directory.join(declared) {
        Ok(path) => Ok(DeclaredOutput { declared: declared.clone(), path, kind }),
        Err(reason) => Err(DeclareError::Path { field: kind.field(), reason }),
    };
    let paths = if command.output_paths.is_empty() {
        let (files, directories) = older_fields(command);
        let files = files.iter().map(|path| resolve(DeclaredKind::File, path));
        let directories = directories.iter().map(|path| resolve(DeclaredKind::Directory, path));
        let paths = files.chain(directories).collect::<Result<Vec<_>, _>>()?;
        check_overlaps(&paths)?;
        paths
    } else {
        let mut seen = BTreeSet::new();
        let distinct = command.output_paths.iter().filter(|path| seen.insert(path.as_str()));
        distinct.map(|path| resolve(DeclaredKind::Path, path)).collect::<Result<Vec<_>, _>>()?
    };
    Ok(DeclaredOutputs {
        paths,
        directory_format: DirectoryFormat::from_wire(command.output_directory_format),
        node_properties: reported_properties(&command.output_node_properties)?,
    })
}

impl DeclaredOutputs {
    /// The directories that must exist before the command runs, sorted, each once; not the outputs themselves.
    pub fn parents(&self) -> Vec<RelPath> {
        let parents = self.paths.iter().filter_map(|output| output.path.parent());
        let distinct: BTreeSet<_> = parents.filter(|parent| !parent.is_empty()).collect();
        distinct.into_iter().collect()
    }
}

#[expect(deprecated, reason = "clients that speak REAPI 2.0 have no other fields")]
fn older_fields(command: &reapi::Command) -> (&[String], &[String]) {
    (&command.output_files, &command.output_directories)
}

/// The older fields: no path twice, and no output file above another one.
fn check_overlaps(outputs: &[DeclaredOutput]) -> Result<(), DeclareError> {
    let mut by_path: BTreeMap<&str, &DeclaredOutput> = BTreeMap::new();
    for output in outputs {
        if let Some(other) = by_path.insert(output.path.as_str(), output) {
            return Err(conflict(output, format!("is declared by {} already", other.kind.field())));
        }
    }
    let mut files: Vec<_> = outputs.iter().filter(|output| output.kind == DeclaredKind::File).collect();
    // What lies below a path follows it at once.
    files.sort_unstable_by(|a, b| a.path.as_str().split('/').cmp(b.path.as_str().split('/')));
    for (above, below) in files.iter().zip(files.iter().skip(1)) {
        let rest = below.path.as_str().strip_prefix(above.path.as_str());
        if above.path.is_empty() || rest.is_some_and(|rest| rest.starts_with('/')) {
            return Err(conflict(below, format!("lies below the output file {:?}", above.declared)));
        }
    }
    Ok(())
}

fn conflict(output: &DeclaredOutput, reason: String) -> DeclareError {
    DeclareError::Conflict { field: output.kind.field(), path: output.declared.clone(), reason }
}

fn reported_properties(names: &[String]) -> Result<ReportedProperties, DeclareError> {
    let mut reported = ReportedProperties::default();
    for name in names {
        match name.as_str() {
            "mtime" => reported.mtime = true,
            "unix_mode" => reported.unix_mode = true,
            _ => return Err(DeclareError::Property(name.clone())),
        }
    }
    Ok(reported)
}

#[cfg(test)]
mod tests;
