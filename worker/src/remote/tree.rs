//! `GetTree`: the messages of a tree that is not here, by one question.
//!
//! It is a help, not a duty: what does not come this way is asked for level by level, and where the server has no
//! `GetTree`, it is not asked again. A tree of which most is here already (one file changed) is not worth the rest:
//! the stream is left as soon as that shows.

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt as _, Stream, StreamExt as _};
use longshore_cas_store::digest::Digest;
use longshore_cas_store::source::Fetched;
use longshore_proto::{Message as _, reapi};
use tonic::{Code, Status, Streaming};

use super::Remote;
use super::error::reason;
use super::fetch::stored;

/// Messages in a page: enough to tell how much of the tree is here.
const PAGE_LEN: i32 = 256;
/// The most messages of one tree that are taken.
const MESSAGES_MAX: usize = 1 << 20;

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
    Ok(remote.caller.cas().get_tree(request).await?.into_inner())
}

struct Pages {
    remote: Remote,
    root: Digest,
    stream: Streaming<reapi::GetTreeResponse>,
    messages: usize,
}

fn pages_of(
    remote: Remote,
    root: Digest,
    stream: Streaming<reapi::GetTreeResponse>,
) -> impl Stream<Item = Fetched> {
    let pages = Pages { remote, root, stream, messages: 0 };
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
        let page = match self.stream.message().await {
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
            if self.remote.shared.store.pin(&digest).is_some() {
                present += 1;
            } else {
                blobs.push((digest, message));
            }
        }
        self.messages += blobs.len();
        let is_worth_it = present <= blobs.len() && self.messages < MESSAGES_MAX;
        let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
        let outcomes = self.remote.shared.store.put_many(blobs).await;
        let fetched = digests.into_iter().zip(outcomes).map(|(digest, outcome)| stored(digest, outcome));
        Some((fetched.collect(), is_worth_it))
    }
}
