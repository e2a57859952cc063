//! The actions, and a client that executes them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use longshore_cas_store::digest::Digest;
use longshore_proto::{protobuf, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::tree::InputTree;

/// What an action does.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Nothing: no inputs, no outputs.
    True,
    /// A shell that needs no other program: three inputs, one output.
    Shell,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::True, Self::Shell];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::True => "/bin/true",
            Self::Shell => "sh, 3 inputs",
        }
    }

    pub(crate) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::True => &["/bin/true"],
            Self::Shell => &["/bin/sh", "-c", "read line < a.txt; echo $line > out.txt"],
        }
    }

    /// The names and contents of the inputs; `salt` makes them different from others.
    pub(crate) fn inputs(self, salt: &str) -> Vec<(&'static str, String)> {
        match self {
            Self::True => Vec::new(),
            Self::Shell => ["a.txt", "b.txt", "c.txt"].map(|name| (name, format!("{salt} {name}\n"))).into(),
        }
    }

    fn action(self, salt: &str) -> TestAction {
        let inputs = self.inputs(salt).into_iter();
        let inputs = inputs.fold(InputTree::new(), |tree, (name, content)| tree.file(name, content));
        let action = TestAction::new(self.arguments().iter().copied()).inputs(inputs).salt(salt.to_owned());
        match self {
            Self::True => action,
            Self::Shell => action.outputs(["out.txt"]),
        }
    }
}

/// How long one action took.
pub(crate) struct Took {
    pub(crate) client: Duration,
    pub(crate) worker: Duration,
    pub(crate) inputs: Duration,
    pub(crate) command: Duration,
    pub(crate) outputs: Duration,
    /// From the assignment until the command starts.
    pub(crate) to_exec: Duration,
    /// From when the inputs are there until the command starts.
    pub(crate) start: Duration,
}

/// Uploads distinct actions, and returns their digests.
pub(crate) async fn upload(client: &Client, kind: Kind, salt: &str, count: usize) -> Result<Vec<Digest>> {
    let mut digests = Vec::with_capacity(count);
    let mut blobs = Vec::new();
    for index in 0..count {
        let built = kind.action(&format!("{salt} {index}")).build(client.function());
        digests.push(built.digest);
        blobs.extend(built.blobs);
    }
    client.upload(&blobs).await?;
    Ok(digests)
}

/// Executes every action, so many at once.
pub(crate) async fn run(client: &Client, actions: &[Digest], at_once: usize) -> Result<Vec<Took>> {
    let one = |digest: &Digest| {
        let digest = *digest;
        async move {
            let started = Instant::now();
            let response = client.execute(&digest, false).await?;
            let client = started.elapsed();
            ensure!(!response.cached_result, "an action came from the cache");
            let result = response.result.with_context(|| format!("no result: {:?}", response.status))?;
            ensure!(result.exit_code == 0, "{result:?}");
            took(&result, client)
        }
    };
    let started: Vec<_> = actions.iter().map(one).collect();
    futures::stream::iter(started).buffer_unordered(at_once).try_collect().await
}

fn took(result: &reapi::ActionResult, client: Duration) -> Result<Took> {
    let metadata = result.execution_metadata.as_ref().context("no metadata")?;
    let worker =
        between(metadata.worker_start_timestamp.as_ref(), metadata.worker_completed_timestamp.as_ref())?;
    let inputs = between(
        metadata.input_fetch_start_timestamp.as_ref(),
        metadata.input_fetch_completed_timestamp.as_ref(),
    )?;
    let command = between(
        metadata.execution_start_timestamp.as_ref(),
        metadata.execution_completed_timestamp.as_ref(),
    )?;
    let outputs = between(
        metadata.output_upload_start_timestamp.as_ref(),
        metadata.output_upload_completed_timestamp.as_ref(),
    )?;
    let exec = metadata.execution_start_timestamp.as_ref();
    let to_exec = between(metadata.worker_start_timestamp.as_ref(), exec)?;
    let start = between(metadata.input_fetch_completed_timestamp.as_ref(), exec)?;
    Ok(Took { client, worker, inputs, command, outputs, to_exec, start })
}

fn between(from: Option<&protobuf::Timestamp>, to: Option<&protobuf::Timestamp>) -> Result<Duration> {
    let nanos = |time: Option<&protobuf::Timestamp>| {
        let time = time.context("no timestamp")?;
        anyhow::Ok(i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos))
    };
    Ok(Duration::from_nanos(u64::try_from(nanos(to)? - nanos(from)?).context("ended before it began")?))
}
