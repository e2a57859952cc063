//! From assignment to exec: what the worker adds before a command starts whose input tree is cached.

use std::time::Duration;

use anyhow::{Context as _, Result};
use longshore_proto::{Message as _, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::Client;
use longshore_tests::tree::{InputTree, T1, T3};

use crate::load::{self, Took};
use crate::quantiles::Quantiles;

/// Actions on each tree, after one that makes it.
const ACTIONS: usize = 200;

/// Prints, for trees of several sizes and one action at a time: `worker_start_timestamp` to
/// `execution_start_timestamp`, and its parts.
pub(crate) async fn print(client: &Client) -> Result<()> {
    println!(
        "\nassignment to exec, tree cached     p50     p99   messages and input root p50   starting it p50"
    );
    let trees =
        [("no files", InputTree::new()), ("T3, 200 files", T3.tree(1)), ("T1, 10,000 files", T1.tree(1))];
    for (name, tree) in trees {
        let built = TestAction::new(["/bin/true"]).inputs(tree).build(client.function());
        client.upload(&built.blobs).await?;
        let (_, message) =
            built.blobs.iter().find(|(digest, _)| *digest == built.digest).context("the Action")?;
        let action = reapi::Action::decode(message.clone())?;
        let mut digests = Vec::with_capacity(ACTIONS + 1);
        for index in 0..=ACTIONS {
            let salt = format!("{name} {index}").into_bytes();
            digests.push(client.put(reapi::Action { salt, ..action.clone() }.encode_to_vec()).await?);
        }
        load::run(client, &digests[..1], 1).await?;
        let took = load::run(client, &digests[1..], 1).await?;
        let [all, inputs, start] =
            [|took: &Took| took.to_exec, |took: &Took| took.inputs, |took: &Took| took.start]
                .map(|part| Quantiles::of(took.iter().map(part)));
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        println!("{name:<25} {all}   {:>24.2} ms {:>15.2}", ms(inputs.p50), ms(start.p50));
    }
    Ok(())
}
