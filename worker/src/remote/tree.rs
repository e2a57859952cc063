//! `GetTree`: the messages of a tree that is not here, by one question.
//!
//! It is a help, not a duty: what does not come this way is asked for level by level, and where the server has no
//! `GetTree`, it is not asked again. A tree of which most is here already (one file changed) is not worth the rest:
//! the stream is left as soon as that shows, or when nothing comes of it for a while.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt as _, Stream, StreamExt as _};
use longshore_cas_store::digest::Digest;
use longshore_cas_store::source::Fetched;
use longshore_proto::{Message as _, reapi};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use super::Remote;
use super::fetch::stored;
use crate::connect::reason;

/// Messages in a page: enough to tell how much of the tree is here.
const PAGE_LEN: i32 = 256;
/// The most messages of one tree that are taken.
const MESSAGES_MAX: usize = 1 << 20;
/// What they may add up to.
const MESSAGES_BYTES_MAX: u64 = 1 << 30;
/// How long the next page may take.
const STALL_TIME_MAX: Duration = Duration::from_mins(1);

/// Yields what came of the tree of `root`, stored.
pub(super) fn fetch(remote: Remote, root: Digest) -> BoxStream<'static, Fetched> {
    async move {
        let Ok(limits) = remote.caller.limits().await else { return futures::stream::empty().boxed() };
        if !limits.tree.is_offered() || root.is_empty() {
            return futures::stream::empty().boxed();
        }
        match ask(&remote, root).await {
            Ok(pages) => pages_of(remote, root, pages).boxed(),
            Err(status) => {
                tracing::debug!(origin = remote.caller.origin(), "GetTree: {}", reason(&status));
                if status.code() == Code::Unimplemented {
                    limits.tree.is_absent();
                }
                futures::stream::empty().boxed()
            }
        }
    }
    .flatten_stream()
    .boxed()
}

async fn ask(remote: &Remote, root: Digest) -> Result<Streaming<reapi::GetTreeResponse>, Status> {
    let request = reapi::GetTreeRequest {
        instance_name: remote.caller.instance_name(),
        root_digest: Some(root.to_wire()),
        page_size: PAGE_LEN,
        page_token: String::new(),
        digest_function: root.function().to_wire().into(),
    };
    let request = remote.caller.request(request).await?;
    let mut client = remote.caller.cas();
    Ok(in_time(client.get_tree(request)).await?.into_inner())
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded("the stream stalls");
    timeout(STALL_TIME_MAX, answer).await.map_err(late)?
}

struct Pages {
    remote: Remote,
    root: Digest,
    stream: Streaming<reapi::GetTreeResponse>,
    /// The root, and what the messages so far name.
    named: HashSet<Digest>,
    messages: usize,
    messages_bytes: u64,
}

fn pages_of(
    remote: Remote,
    root: Digest,
    stream: Streaming<reapi::GetTreeResponse>,
) -> impl Stream<Item = Fetched> {
    let named = HashSet::from([root]);
    let pages = Pages { remote, root, stream, named, messages: 0, messages_bytes: 0 };
    let stored = futures::stream::unfold(Some(pages), |pages| async {
        let mut pages = pages?;
        let (fetched, is_worth_it) = pages.next().await?;
        Some((futures::stream::iter(fetched), is_worth_it.then_some(pages)))
    });
    stored.flatten()
}

impl Pages {
    /// Stores a page. Whether another one is worth it.
    async fn next(&mut self) -> Option<(Vec<Fetched>, bool)> {
        let page = match in_time(self.stream.message()).await {
            Ok(page) => page?,
            Err(status) => {
                tracing::debug!(origin = self.remote.caller.origin(), "GetTree: {}", reason(&status));
                return None;
            }
        };
        let function = self.root.function();
        let (mut blobs, mut present) = (Vec::new(), 0);
        for directory in page.directories {
            let message = Bytes::from(directory.encode_to_vec());
            let digest = function.digest(&message);
            // What is not of the tree was not asked for. A child that comes before its parent is asked for by itself.
            if !self.named.contains(&digest) {
                continue;
            }
            let children = directory.directories.iter();
            let children =
                children.filter_map(|child| Digest::from_wire(function, child.digest.as_ref()).ok());
            self.named.extend(children);
            self.messages_bytes += message.len() as u64;
            if self.remote.shared.store.pin(&digest).is_some() {
                present += 1;
            } else {
                blobs.push((digest, message));
            }
        }
        self.messages += blobs.len();
        let is_within =
            self.messages < MESSAGES_MAX && self.messages_bytes < MESSAGES_BYTES_MAX && !blobs.is_empty();
        let is_worth_it = present <= blobs.len() && is_within;
        let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
        let outcomes = self.remote.shared.store.put_many(blobs).await;
        let fetched = digests.into_iter().zip(outcomes).map(|(digest, outcome)| stored(digest, outcome));
        Some((fetched.collect(), is_worth_it))
    }
}
