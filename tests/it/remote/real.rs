//! Against a real longshore: what one stores, another one builds trees from.

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::DigestFunction;
use longshore_proto::reapi;
use longshore_tests::action::TestAction;
use longshore_tests::cold::ColdWorker;
use longshore_tests::longshore::{Launch, Longshore};
use longshore_tests::proxy::DelayingProxy;
use longshore_tests::tree::T3;
use longshore_worker::remote::RemoteOptions;

use super::{LARGE_BYTES, noise};

#[tokio::test]
async fn a_tree_comes_from_another_longshore() -> Result<()> {
    for unix in [false, true] {
        let longshore = Longshore::launch(Launch { unix, ..Launch::default() }).await?;
        let client = longshore.client().await?;
        let tree = T3.tree(1).file("large", noise(LARGE_BYTES, 1)).build(DigestFunction::Sha256);
        client.upload(&tree.blobs().cloned().collect::<Vec<_>>()).await?;
        let worker = ColdWorker::hasty(&RemoteOptions::new(longshore.uri())).await?;
        let pin = worker.get(tree.root).await?;
        assert_eq!(std::fs::read(pin.path().join("large"))?, noise(LARGE_BYTES, 1));
        let stats = worker.remote.stats();
        assert_eq!(stats.fetched_blobs, tree.files.len() as u64, "messages come by GetTree");
        assert_eq!(stats.retries, 0);
    }
    Ok(())
}

#[tokio::test]
async fn outputs_and_results_go_to_another_longshore() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let worker = ColdWorker::hasty(&RemoteOptions::new(longshore.uri())).await?;
    let mut pins = vec![worker.put(noise(LARGE_BYTES, 1)).await?];
    for seed in 0..200 {
        pins.push(worker.put(noise(30_000, seed)).await?);
    }
    worker.remote.upload(&pins).await?;
    for pin in &pins {
        assert_eq!(client.read(pin.digest()).await?, worker.read(pin.digest()).await?);
    }
    let action = TestAction::new(["true"]).build(DigestFunction::Sha256);
    client.upload(&action.blobs).await?;
    let action = action.digest;
    assert_eq!(worker.remote.get_action_result(&action).await?, None);
    let result = reapi::ActionResult {
        stdout_digest: Some(pins[0].digest().to_wire()),
        execution_metadata: Some(reapi::ExecutedActionMetadata::default()),
        ..Default::default()
    };
    worker.remote.update_action_result(&action, result).await?;
    let found = worker.remote.get_action_result(&action).await?.context("a result")?;
    assert_eq!(found.stdout_digest, Some(pins[0].digest().to_wire()));
    Ok(())
}

// A server that ends in the middle of downloads and comes back loses nothing.
#[tokio::test]
async fn a_restart_is_survived() -> Result<()> {
    let longshore = Longshore::launch(Launch { unix: true, ..Launch::default() }).await?;
    let tree = T3.tree(2).build(DigestFunction::Sha256);
    longshore.client().await?.upload(&tree.blobs().cloned().collect::<Vec<_>>()).await?;
    let worker = ColdWorker::real(&RemoteOptions::new(longshore.uri()), &std::env::temp_dir()).await?;
    worker.fetch_one(tree.files[0].0).await?;
    let home = longshore.home();
    longshore.kill().await?;
    let build = worker.get(tree.root);
    let restart = Longshore::launch(Launch { unix: true, home: Some(home), ..Launch::default() });
    let (tree, other) = futures::join!(build, restart);
    tree?;
    other?;
    Ok(())
}

// A long way changes nothing but the time.
#[tokio::test]
async fn a_tree_comes_through_a_long_way() -> Result<()> {
    let longshore = Longshore::start().await?;
    let tree = T3.tree(3).build(DigestFunction::Sha256);
    longshore.client().await?.upload(&tree.blobs().cloned().collect::<Vec<_>>()).await?;
    let target = longshore.uri().trim_start_matches("http://");
    let proxy = DelayingProxy::start(target, std::time::Duration::from_millis(5)).await?;
    let options = RemoteOptions::new(format!("grpc://{}", proxy.address()));
    let worker = ColdWorker::hasty(&options).await?;
    worker.get(tree.root).await?;
    Ok(())
}
