//! Running actions, and reading what they left behind.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::command_outcome::CommandOutcome;
use longshore_proto::error_details::{Detail as _, PreconditionFailure};
use longshore_proto::{Message as _, longrunning, reapi, rpc};
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::longshore::{Longshore, new_home};
use longshore_tests::process::fifo;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::Mutex;
use tonic::Code;

use crate::shared;
use crate::support::{execute, put_message};

/// An action that has been executed.
pub(crate) struct Ran {
    pub(crate) client: Client,
    pub(crate) response: reapi::ExecuteResponse,
    _longshore: Option<Arc<Longshore>>,
}

/// Executes an action on the shared longshore, past the action cache.
pub(crate) async fn run(action: &TestAction) -> Result<Ran> {
    let longshore = shared().await?;
    let client = longshore.client().await?;
    let ran = run_by(&client, action).await?;
    Ok(Ran { _longshore: Some(longshore), ..ran })
}

/// Executes an action by a client, past the action cache.
pub(crate) async fn run_by(client: &Client, action: &TestAction) -> Result<Ran> {
    let blobs = action.build(client.function());
    client.upload(&blobs.blobs).await?;
    let response = execute(client, &blobs.digest).await?;
    Ok(Ran { client: client.clone(), response, _longshore: None })
}

/// Executes an action in an input root of one's own making, past the action cache.
pub(crate) async fn run_on(client: &Client, root: Digest, action: TestAction) -> Result<Ran> {
    let command = put_message(client, &action.command).await?;
    let action = reapi::Action {
        command_digest: Some(command.to_wire()),
        input_root_digest: Some(root.to_wire()),
        ..Default::default()
    };
    let action = put_message(client, &action).await?;
    let response = execute(client, &action).await?;
    Ok(Ran { client: client.clone(), response, _longshore: None })
}

/// Executes a shell script with those `output_paths`, as they are given.
pub(crate) async fn run_script(script: &str, paths: &[&str]) -> Result<Ran> {
    run(&declaring(TestAction::shell(script), paths)).await
}

/// The action with `output_paths` exactly as given: neither sorted nor distinct.
pub(crate) fn declaring(mut action: TestAction, paths: &[&str]) -> TestAction {
    action.command.output_paths = owned(paths);
    action
}

/// The action with the fields of REAPI 2.0.
#[expect(deprecated, reason = "the fields of clients before REAPI 2.1")]
pub(crate) fn declaring_older(mut action: TestAction, files: &[&str], directories: &[&str]) -> TestAction {
    action.command.output_files = owned(files);
    action.command.output_directories = owned(directories);
    action
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

impl Ran {
    pub(crate) fn status(&self) -> rpc::Status {
        self.response.status.clone().unwrap_or_default()
    }

    pub(crate) fn code(&self) -> Code {
        Code::from(self.status().code)
    }

    /// The result, which is there whatever happened.
    pub(crate) fn any_result(&self) -> Result<&reapi::ActionResult> {
        self.response.result.as_ref().with_context(|| format!("no result: {:?}", self.response))
    }

    /// The result of a command that was run and exited with 0.
    pub(crate) async fn result(&self) -> Result<&reapi::ActionResult> {
        let result = self.any_result()?;
        if self.code() != Code::Ok || result.exit_code != 0 {
            let stderr = self.client.stderr(result).await.unwrap_or_default();
            bail!("{:?}, exit code {}, stderr {stderr:?}", self.status(), result.exit_code);
        }
        Ok(result)
    }

    /// Fails unless the action failed with that code, and all of these texts in its message.
    pub(crate) fn failed_with(&self, code: Code, texts: &[&str]) -> Result<()> {
        let status = self.status();
        ensure!(self.code() == code, "{code:?} was expected: {status:?}");
        for text in texts {
            ensure!(status.message.contains(text), "{text:?} is not in {:?}", status.message);
        }
        Ok(())
    }

    /// Everything that the result lists, one line each, in the order of the lists.
    pub(crate) fn listing(&self) -> Result<Vec<String>> {
        Ok(listing(self.any_result()?))
    }

    /// The contents of an output file.
    pub(crate) async fn file(&self, path: &str) -> Result<Bytes> {
        let file = self.any_result()?.output_files.iter().find(|file| file.path == path);
        let file = file.with_context(|| format!("no output {path} in {:?}", self.response))?;
        self.blob(file.digest.as_ref()).await
    }

    /// The entry of an output directory.
    pub(crate) fn directory(&self, path: &str) -> Result<&reapi::OutputDirectory> {
        let directories = &self.any_result()?.output_directories;
        let directory = directories.iter().find(|directory| directory.path == path);
        directory.with_context(|| format!("no output directory {path} in {:?}", self.response))
    }

    /// The Tree of an output directory, as it is stored.
    pub(crate) async fn tree_bytes(&self, path: &str) -> Result<Bytes> {
        self.blob(self.directory(path)?.tree_digest.as_ref()).await
    }

    /// The Tree of an output directory.
    pub(crate) async fn tree(&self, path: &str) -> Result<reapi::Tree> {
        Ok(reapi::Tree::decode(self.tree_bytes(path).await?)?)
    }

    /// What an output directory contains, at any depth: `a/f`, `a/`, `a/l -> t`, sorted.
    pub(crate) async fn contents(&self, path: &str) -> Result<Vec<String>> {
        let tree = self.tree(path).await?;
        let root = tree.root.as_ref().context("a Tree without a root")?;
        let mut lines = Vec::new();
        list_tree(self.client.function(), root, &tree.children, "", &mut lines)?;
        lines.sort();
        Ok(lines)
    }

    pub(crate) async fn blob(&self, digest: Option<&reapi::Digest>) -> Result<Bytes> {
        self.client.read(&Digest::from_wire(self.client.function(), digest)?).await
    }

    /// What longshore says about the end of the command.
    pub(crate) fn outcome(&self) -> Result<CommandOutcome> {
        let metadata = self.any_result()?.execution_metadata.as_ref().context("no metadata")?;
        let found: Vec<_> = metadata.auxiliary_metadata.iter().filter_map(CommandOutcome::from_any).collect();
        let [outcome] = &found[..] else { bail!("not one outcome: {:?}", metadata.auxiliary_metadata) };
        Ok(outcome.clone())
    }
}

/// The subjects of a status whose details are one list of `MISSING` violations.
pub(crate) fn missing(status: &rpc::Status) -> Result<Vec<String>> {
    let [detail] = &status.details[..] else { bail!("not one detail: {status:?}") };
    let failure = PreconditionFailure::from_any(detail).with_context(|| format!("{status:?}"))?;
    let mut subjects = Vec::new();
    for violation in failure.violations {
        ensure!(violation.r#type == "MISSING", "{violation:?}");
        subjects.push(violation.subject);
    }
    Ok(subjects)
}

/// Everything that a result lists, one line each.
#[expect(deprecated, reason = "the fields of clients before REAPI 2.1")]
pub(crate) fn listing(result: &reapi::ActionResult) -> Vec<String> {
    let files = result.output_files.iter().map(|file| format!("file {}", file.path));
    let directories =
        result.output_directories.iter().map(|directory| format!("directory {}", directory.path));
    let links = |kind: &'static str, links: &[reapi::OutputSymlink]| {
        links.iter().map(|link| format!("{kind} {} -> {}", link.path, link.target)).collect::<Vec<_>>()
    };
    files
        .chain(directories)
        .chain(links("symlink", &result.output_symlinks))
        .chain(links("file symlink", &result.output_file_symlinks))
        .chain(links("directory symlink", &result.output_directory_symlinks))
        .collect()
}

fn list_tree(
    function: DigestFunction,
    directory: &reapi::Directory,
    children: &[reapi::Directory],
    prefix: &str,
    lines: &mut Vec<String>,
) -> Result<()> {
    lines.extend(directory.files.iter().map(|file| format!("{prefix}{}", file.name)));
    lines.extend(directory.symlinks.iter().map(|link| format!("{prefix}{} -> {}", link.name, link.target)));
    for node in &directory.directories {
        let child = children
            .iter()
            .find(|child| Some(function.digest(&child.encode_to_vec()).to_wire()) == node.digest);
        let prefix = format!("{prefix}{}/", node.name);
        lines.push(prefix.clone());
        list_tree(function, child.with_context(|| prefix.clone())?, children, &prefix, lines)?;
    }
    Ok(())
}

/// The metadata of an operation.
pub(crate) fn metadata(operation: &longrunning::Operation) -> Result<reapi::ExecuteOperationMetadata> {
    let any = operation.metadata.as_ref().context("no metadata")?;
    ensure!(any.type_url == "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteOperationMetadata");
    Ok(reapi::ExecuteOperationMetadata::decode(any.value.as_slice())?)
}

/// The response of an operation that is done.
pub(crate) fn response(operation: &longrunning::Operation) -> Result<reapi::ExecuteResponse> {
    ensure!(operation.done, "not done: {operation:?}");
    match &operation.result {
        Some(longrunning::operation::Result::Response(any)) => {
            ensure!(any.type_url == "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteResponse");
            Ok(reapi::ExecuteResponse::decode(any.value.as_slice())?)
        }
        other => bail!("done without a response: {other:?}"),
    }
}

/// How long a script may take to come to its gate.
const PATIENCE: Duration = Duration::from_mins(1);

/// A place in a script where it waits for the test.
pub(crate) struct Gate {
    folder: TempDir,
    reached: Mutex<pipe::Receiver>,
    opened: pipe::Sender,
}

impl Gate {
    pub(crate) fn new() -> Result<Self> {
        let folder = new_home()?;
        let (reached, opened) = (folder.path().join("reached"), folder.path().join("open"));
        fifo(&reached)?;
        fifo(&opened)?;
        // For reading and writing: it neither waits for the other side nor sees it go.
        let mut options = pipe::OpenOptions::new();
        options.read_write(true);
        let reached = Mutex::new(options.open_receiver(reached)?);
        let opened = options.open_sender(opened)?;
        Ok(Self { folder, reached, opened })
    }

    /// The commands of a shell that wait.
    pub(crate) fn script(&self) -> String {
        let folder = self.folder.path().display();
        format!("echo > {folder}/reached; read line < {folder}/open")
    }

    /// Completes when the script waits.
    pub(crate) async fn reached(&self) -> Result<()> {
        let mut reached = self.reached.lock().await;
        tokio::time::timeout(PATIENCE, reached.read_u8()).await.context("nobody came to the gate")??;
        Ok(())
    }

    /// Lets the script go on.
    pub(crate) fn open(&self) -> Result<()> {
        self.opened.try_write(b"\n").context("open the gate")?;
        Ok(())
    }
}
