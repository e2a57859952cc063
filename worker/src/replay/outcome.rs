//! How an action went: what can be compared between two executions of it.
//!
//! Times, workers and whether contents came inline are left out: they may differ. Standard output and error are outputs
//! named `<stdout>` and `<stderr>`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use longshore_cas_store::digest::{Digest, DigestError, DigestFunction};
use longshore_proto::reapi;
use tonic::Code;

use super::digests;

/// The outputs' names for what a command printed.
pub(crate) const STDOUT: &str = "<stdout>";
pub(crate) const STDERR: &str = "<stderr>";

/// The comparable part of an `ExecuteResponse`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// `ExecuteResponse.status`.
    pub(crate) status: Code,
    pub(crate) exit_code: i32,
    /// By path.
    pub(crate) outputs: BTreeMap<String, Output>,
}

/// What lies at an output's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    File {
        digest: Digest,
        executable: bool,
    },
    /// The digest of a `Tree`.
    Tree(Digest),
    /// The digest of a `Directory`, from servers that give no `Tree`.
    Directory(Digest),
    Symlink(String),
}

/// Why a response says nothing that can be compared.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OutcomeError {
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// It says that the action has run, and not how.
    #[error("it is OK, and there is none")]
    NoResult,
}

impl Outcome {
    /// What a response says; digests are of `function`.
    pub(crate) fn of(
        response: &reapi::ExecuteResponse,
        function: DigestFunction,
    ) -> Result<Self, OutcomeError> {
        let status = response.status.as_ref().map_or(Code::Ok, |status| Code::from(status.code));
        let Some(result) = &response.result else {
            if status == Code::Ok {
                return Err(OutcomeError::NoResult);
            }
            return Ok(Self { status, exit_code: 0, outputs: BTreeMap::new() });
        };
        Ok(Self { status, exit_code: result.exit_code, outputs: outputs(result, function)? })
    }

    /// Whether it is the action that came to this: another status is of a server, a network or an account, which says
    /// nothing of what the action does, and would say something else on another day.
    pub(crate) fn is_of_the_action(&self) -> bool {
        matches!(self.status, Code::Ok | Code::DeadlineExceeded | Code::InvalidArgument)
    }

    /// The paths at which two outcomes differ, and `<status>` or `<exit code>` where those do.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let mut paths = Vec::new();
        if self.status != other.status {
            paths.push("<status>".to_owned());
        }
        if self.exit_code != other.exit_code {
            paths.push("<exit code>".to_owned());
        }
        let here = self.outputs.iter();
        let changed = here.filter(|(path, output)| other.outputs.get(*path) != Some(output));
        paths.extend(changed.map(|(path, _)| path.clone()));
        let added = other.outputs.keys().filter(|path| !self.outputs.contains_key(*path));
        paths.extend(added.cloned());
        paths
    }

    /// Whether there is an output of that path.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.outputs.contains_key(path)
    }

    /// The first output that is a file or a folder: a name for an action that has no better one.
    pub(crate) fn first_output(&self) -> Option<&str> {
        self.outputs.keys().map(String::as_str).find(|path| ![STDOUT, STDERR].contains(path))
    }
}

/// A status as the specification writes it: `DEADLINE_EXCEEDED`.
pub(crate) fn status_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

fn outputs(
    result: &reapi::ActionResult,
    function: DigestFunction,
) -> Result<BTreeMap<String, Output>, DigestError> {
    let content = |wire: Option<&reapi::Digest>, inline: &[u8]| match wire {
        Some(wire) => Digest::from_wire(function, Some(wire)),
        None => Ok(function.digest(inline)),
    };
    let mut outputs = BTreeMap::new();
    for (name, wire, inline) in [
        (STDOUT, &result.stdout_digest, &result.stdout_raw),
        (STDERR, &result.stderr_digest, &result.stderr_raw),
    ] {
        let digest = content(wire.as_ref(), inline)?;
        outputs.insert(name.to_owned(), Output::File { digest, executable: false });
    }
    for file in &result.output_files {
        let digest = content(file.digest.as_ref(), &file.contents)?;
        outputs.insert(file.path.clone(), Output::File { digest, executable: file.is_executable });
    }
    for directory in &result.output_directories {
        let output = match (&directory.tree_digest, &directory.root_directory_digest) {
            (None, Some(root)) => Output::Directory(Digest::from_wire(function, Some(root))?),
            (tree, _) => Output::Tree(Digest::from_wire(function, tree.as_ref())?),
        };
        outputs.insert(directory.path.clone(), output);
    }
    #[expect(deprecated, reason = "older servers say where symlinks are in these fields")]
    let older = result.output_file_symlinks.iter().chain(&result.output_directory_symlinks);
    for symlink in older.chain(&result.output_symlinks) {
        outputs.insert(symlink.path.clone(), Output::Symlink(symlink.target.clone()));
    }
    Ok(outputs)
}

/// As it stands in a manifest: a kind, a space, and a digest or a target.
impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, digest) = match self {
            Self::File { digest, executable: false } => ("file", digest),
            Self::File { digest, executable: true } => ("executable", digest),
            Self::Tree(digest) => ("tree", digest),
            Self::Directory(digest) => ("directory", digest),
            Self::Symlink(target) => return write!(f, "symlink {target}"),
        };
        write!(f, "{kind} {}", digests::format(digest))
    }
}

impl FromStr for Output {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(' ').ok_or("expected a kind and a digest")?;
        Ok(match kind {
            "file" => Self::File { digest: digests::parse(rest)?, executable: false },
            "executable" => Self::File { digest: digests::parse(rest)?, executable: true },
            "tree" => Self::Tree(digests::parse(rest)?),
            "directory" => Self::Directory(digests::parse(rest)?),
            "symlink" => Self::Symlink(rest.to_owned()),
            _ => return Err(format!("{kind:?} is no kind of output")),
        })
    }
}

#[cfg(test)]
mod tests {
    use longshore_proto::rpc;

    use super::*;

    fn sha(data: &[u8]) -> Digest {
        DigestFunction::Sha256.digest(data)
    }

    fn outcome(result: reapi::ActionResult) -> Outcome {
        let response = reapi::ExecuteResponse { result: Some(result), ..Default::default() };
        Outcome::of(&response, DigestFunction::Sha256).unwrap()
    }

    // A server may inline what another one names.
    #[test]
    fn contents_are_the_same_inline_or_not() {
        let inline = reapi::ActionResult { stdout_raw: b"x".to_vec(), ..Default::default() };
        let named = reapi::ActionResult {
            stdout_digest: Some(sha(b"x").to_wire()),
            stderr_digest: Some(sha(b"").to_wire()),
            ..Default::default()
        };
        assert_eq!(outcome(inline), outcome(named));
    }

    #[test]
    fn what_differs_is_named() {
        let file = |path: &str, data: &[u8], is_executable| reapi::OutputFile {
            path: path.to_owned(),
            digest: Some(sha(data).to_wire()),
            is_executable,
            ..Default::default()
        };
        let one = reapi::ActionResult {
            output_files: vec![file("a", b"1", false), file("b", b"1", false), file("c", b"1", false)],
            ..Default::default()
        };
        let other = reapi::ActionResult {
            exit_code: 1,
            output_files: vec![file("a", b"1", true), file("b", b"2", false), file("d", b"1", false)],
            stdout_raw: b"hello".to_vec(),
            ..Default::default()
        };
        let (one, other) = (outcome(one), outcome(other));
        assert_eq!(one.differences(&other), ["<exit code>", "<stdout>", "a", "b", "c", "d"]);
        assert_eq!(one.differences(&one), Vec::<String>::new());
        let failed = reapi::ExecuteResponse {
            status: Some(rpc::Status { code: Code::DeadlineExceeded.into(), ..Default::default() }),
            ..Default::default()
        };
        let failed = Outcome::of(&failed, DigestFunction::Sha256).unwrap();
        assert_eq!(failed.differences(&one)[0], "<status>");
    }

    // Nothing that was written would otherwise be the same as nothing that was said.
    #[test]
    fn an_action_that_has_run_has_a_result() {
        let of = |response: &reapi::ExecuteResponse| Outcome::of(response, DigestFunction::Sha256);
        let mut response = reapi::ExecuteResponse::default();
        assert_eq!(of(&response), Err(OutcomeError::NoResult));
        response.status = Some(rpc::Status::default());
        assert_eq!(of(&response), Err(OutcomeError::NoResult));
        response.result = Some(reapi::ActionResult::default());
        assert_eq!(of(&response).unwrap().status, Code::Ok);
    }

    #[test]
    fn statuses_have_the_names_of_the_specification() {
        let names = [Code::Ok, Code::DeadlineExceeded, Code::Internal].map(status_name);
        assert_eq!(names, ["OK", "DEADLINE_EXCEEDED", "INTERNAL"]);
    }

    #[test]
    fn what_is_written_is_read() {
        let outputs = [
            Output::File { digest: sha(b"1"), executable: false },
            Output::File { digest: DigestFunction::Blake3.digest(b"1"), executable: true },
            Output::Tree(sha(b"2")),
            Output::Directory(sha(b"3")),
            Output::Symlink("../a b".to_owned()),
            Output::Symlink(String::new()),
        ];
        for output in outputs {
            assert_eq!(output.to_string().parse(), Ok(output));
        }
        for text in ["", "file", "file x", "folder x/1"] {
            assert!(text.parse::<Output>().is_err(), "{text:?}");
        }
    }
}
