//! Baselines (a) and (b): one hop to a blocking thread a call, and `cp -al`.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Result, ensure};
use futures::future::{BoxFuture, FutureExt as _};

use crate::bare::{Node, Plan};

/// Writes the tree out in the fresh directory `to`, every call on a blocking thread of its own, directories side by
/// side.
pub(crate) async fn hops(plan: &Arc<Plan>, store: &Path, to: &Path) -> Result<()> {
    let (plan, store, to) = (plan.clone(), Arc::new(store.to_owned()), to.to_owned());
    directory(plan, Vec::new(), store, to).await
}

fn directory(
    plan: Arc<Plan>,
    way: Vec<usize>,
    store: Arc<PathBuf>,
    to: PathBuf,
) -> BoxFuture<'static, Result<()>> {
    async move {
        let at = to.clone();
        tokio::task::spawn_blocking(move || std::fs::create_dir(at)).await??;
        let node = node(&plan, &way);
        for link in &node.links {
            let stored = store.join(std::ffi::OsStr::from_bytes(link.stored.as_bytes()));
            let name = to.join(std::ffi::OsStr::from_bytes(link.name.as_bytes()));
            tokio::task::spawn_blocking(move || std::fs::hard_link(stored, name)).await??;
        }
        let children = node.children.iter().enumerate().map(|(number, child)| {
            let to = to.join(std::ffi::OsStr::from_bytes(child.name.as_bytes()));
            let way = way.iter().copied().chain([number]).collect();
            tokio::spawn(directory(plan.clone(), way, store.clone(), to))
        });
        for outcome in futures::future::join_all(children).await {
            outcome??;
        }
        Ok(())
    }
    .boxed()
}

fn node<'p>(plan: &'p Plan, way: &[usize]) -> &'p Node {
    way.iter().fold(&plan.root, |node, &number| &node.children[number])
}

/// Copies the tree at `from` to `to` as links.
pub(crate) async fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = std::process::Command::new("cp");
    command.arg("-al").arg(from).arg(to).stdin(Stdio::null());
    let status = tokio::task::spawn_blocking(move || command.status()).await??;
    ensure!(status.success(), "cp: {status}");
    Ok(())
}
