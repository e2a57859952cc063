//! Outputs that somebody else can still reach when their action has ended: what is stored stays right.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::reapi;
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::longshore::{Longshore, new_home};
use longshore_tests::process::fifo;
use tokio::task::spawn_blocking;

use crate::result_of;

/// What the output is when its action ends.
const CONTENT: &str = "as it was when the action ended\n";

/// Runs an action that writes `out` and says where; `reach` opens it before the action ends. Whoever writes then does
/// not reach the store.
async fn reached_from_outside(extra: &str, reach: fn(&Path, &Path) -> std::io::Result<File>) -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let folder = new_home()?;
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o777))?;
    let (says, hears) = (folder.path().join("says"), folder.path().join("hears"));
    fifo(&says)?;
    fifo(&hears)?;
    let at = folder.path().display();
    let script = format!("printf '{CONTENT}' > out; {extra} pwd > {at}/says; read line < {at}/hears")
        .replace("FOLDER", &at.to_string());
    let action = TestAction::shell(&script).outputs(["out"]);
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.run(&action).await }
    });

    let folder_path = folder.path().to_owned();
    let mut writer = spawn_blocking(move || {
        let mut root = String::new();
        BufReader::new(File::open(says)?).read_line(&mut root)?;
        let writer = reach(Path::new(root.trim_end()), &folder_path)?;
        OpenOptions::new().write(true).open(hears)?.write_all(b"\n")?;
        std::io::Result::Ok(writer)
    })
    .await??;
    let result = result_of(&running.await??, 0)?.clone();
    stays_right(&client, &result, &mut writer).await
}

async fn stays_right(client: &Client, result: &reapi::ActionResult, writer: &mut File) -> Result<()> {
    let [output] = &result.output_files[..] else { anyhow::bail!("{result:?}") };
    let digest = Digest::from_wire(DigestFunction::Sha256, output.digest.as_ref())?;
    ensure!(digest == DigestFunction::Sha256.digest(CONTENT.as_bytes()), "{digest}");
    for _ in 0..3 {
        writer.write_all(b"and more")?;
        // The client compares the digest of what it reads.
        let content = client.read(&digest).await.context("the store has other bytes")?;
        ensure!(content == CONTENT.as_bytes());
    }
    Ok(())
}

// Somebody has it open for writing while its action ends.
#[tokio::test]
async fn a_writer_that_outlives_an_action_does_not_reach_the_store() -> Result<()> {
    reached_from_outside("", |root, _| OpenOptions::new().append(true).open(root.join("out"))).await
}

// The action gave it a second name, elsewhere.
#[tokio::test]
async fn a_second_name_of_an_output_does_not_lead_into_the_store() -> Result<()> {
    let link = "chmod 666 out; ln out FOLDER/link;";
    reached_from_outside(link, |_, folder| OpenOptions::new().append(true).open(folder.join("link"))).await
}
