//! The pages of `GetTree`: directories in the order of a walk, cut by number and by bytes.
//!
//! A page's token is the digest of the root and that of the page's last directory. The walk starts anew with every
//! request, so a token works as long as its directory is still reached, however the pages were cut before.

use std::sync::Arc;

use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::Digest;
use longshore_proto::{Message as _, reapi};
use tonic::Code;

use super::digests::one;
use super::limits::{PAGE_MAX, RESPONSE_BYTES_MAX};
use super::walk::{Found, Visit, Walk};
use crate::status::Failure;

/// What the tag and the length of a directory take in a page, at most.
const FIELD_BYTES_MAX: usize = 8;

/// Pages that are yet to be sent.
#[derive(Debug)]
pub(super) struct TreePages {
    walk: Walk,
    root: Digest,
    page_len_max: usize,
    /// The directory behind which the pages begin, until the walk comes by.
    behind: Option<Digest>,
    /// Found already, and no longer fit for the page before.
    ahead: Option<(Digest, reapi::Directory)>,
    done: bool,
}

impl TreePages {
    /// The pages that `request` asks for.
    pub(super) fn new(store: Arc<BlobStore>, request: &reapi::GetTreeRequest) -> Result<Self, Failure> {
        let root = one(request.digest_function, request.root_digest.as_ref(), "root_digest")?;
        let page_len_max = match usize::try_from(request.page_size) {
            Ok(0) => PAGE_MAX,
            Ok(page_size) => page_size,
            Err(_) => return Err(Failure::invalid(format!("page_size: {} is negative", request.page_size))),
        };
        let behind = match request.page_token.as_str() {
            "" => None,
            token => Some(parse_token(&root, token).ok_or_else(|| wrong_token(token))?),
        };
        Ok(Self { walk: Walk::new(store, root), root, page_len_max, behind, ahead: None, done: false })
    }

    /// Makes the next page; the last one has no token, and may be empty.
    pub(super) async fn next(&mut self) -> Result<Option<reapi::GetTreeResponse>, Failure> {
        if self.done {
            return Ok(None);
        }
        let mut page = reapi::GetTreeResponse::default();
        let (mut bytes, mut last) = (0, self.root);
        while let Some((digest, directory)) = self.directory().await? {
            let directory_bytes = directory.encoded_len() + FIELD_BYTES_MAX;
            if directory_bytes > RESPONSE_BYTES_MAX {
                let message = format!("directory {digest} is larger than a response");
                return Err(Failure::new(Code::ResourceExhausted, message));
            }
            if page.directories.len() == self.page_len_max || bytes + directory_bytes > RESPONSE_BYTES_MAX {
                self.ahead = Some((digest, directory));
                page.next_page_token = format!("{}/{last}", self.root);
                return Ok(Some(page));
            }
            bytes += directory_bytes;
            last = digest;
            page.directories.push(directory);
        }
        self.done = true;
        Ok(Some(page))
    }

    /// The next directory that belongs into a page; those that are missing are left out, but for the root.
    async fn directory(&mut self) -> Result<Option<(Digest, reapi::Directory)>, Failure> {
        if self.ahead.is_some() {
            return Ok(self.ahead.take());
        }
        while let Some(Visit { digest, found }) = self.walk.next().await? {
            let directory = match found {
                Found::Directory(directory) => Some(directory),
                Found::Missing if digest == self.root => {
                    let message = format!("root_digest: blob {digest} is not in the store");
                    return Err(Failure::new(Code::NotFound, message));
                }
                Found::Malformed(reason) if digest == self.root => {
                    return Err(Failure::invalid(format!("root_digest: blob {digest} {reason}")));
                }
                Found::Missing | Found::Malformed(_) => None,
            };
            if let Some(behind) = self.behind {
                self.behind = Some(behind).filter(|behind| *behind != digest);
            } else if let Some(directory) = directory {
                return Ok(Some((digest, directory)));
            }
        }
        match self.behind {
            None => Ok(None),
            Some(behind) => Err(wrong_token(&format!("{}/{behind}", self.root))),
        }
    }
}

fn parse_token(root: &Digest, token: &str) -> Option<Digest> {
    let last = token.strip_prefix(&root.to_string())?.strip_prefix('/')?;
    let (hash, size) = last.split_once('/')?;
    Digest::parse(root.function(), hash, size.parse().ok()?).ok()
}

fn wrong_token(token: &str) -> Failure {
    Failure::invalid(format!("page_token: {token:?} is of no page of this tree"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::testing::Fixture;
    use super::*;

    async fn pages(
        fixture: &Fixture,
        request: &reapi::GetTreeRequest,
    ) -> Result<Vec<reapi::GetTreeResponse>, Failure> {
        let mut pages = TreePages::new(fixture.store.clone(), request)?;
        let mut all = Vec::new();
        while let Some(page) = pages.next().await? {
            all.push(page);
        }
        Ok(all)
    }

    fn request(root: &Digest, page_size: i32, page_token: &str) -> reapi::GetTreeRequest {
        reapi::GetTreeRequest {
            root_digest: Some(root.to_wire()),
            page_size,
            page_token: page_token.to_owned(),
            ..Default::default()
        }
    }

    fn directory(children: &[(&str, Digest)]) -> reapi::Directory {
        let node = |(name, digest): &(&str, Digest)| reapi::DirectoryNode {
            name: (*name).to_owned(),
            digest: Some(digest.to_wire()),
        };
        reapi::Directory { directories: children.iter().map(node).collect(), ..Default::default() }
    }

    fn flat(pages: &[reapi::GetTreeResponse]) -> Vec<reapi::Directory> {
        pages.iter().flat_map(|page| page.directories.clone()).collect()
    }

    /// A root with a shared subtree, and a chain below it: five distinct directories.
    async fn shared(fixture: &Fixture) -> (Digest, reapi::Directory) {
        let leaf = fixture.put_message(&reapi::Directory::default()).await;
        let low = fixture.put_message(&directory(&[("leaf", leaf)])).await;
        let mid = fixture.put_message(&directory(&[("a", low), ("b", low)])).await;
        let top = fixture.put_message(&directory(&[("m", mid), ("l", leaf)])).await;
        let root = directory(&[("x", top), ("y", mid), ("z", low)]);
        (fixture.put_message(&root).await, root)
    }

    #[tokio::test]
    async fn every_directory_comes_once_and_the_root_first() {
        let fixture = Fixture::new();
        let (root, message) = shared(&fixture).await;
        let all = pages(&fixture, &request(&root, 0, "")).await.unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].next_page_token, "");
        assert_eq!(all[0].directories.len(), 5);
        assert_eq!(all[0].directories[0], message);
        let distinct: BTreeSet<_> = flat(&all).iter().map(reapi::Directory::encode_to_vec).collect();
        assert_eq!(distinct.len(), 5);
    }

    // However a client pages, and wherever it takes up again, it sees the same tree.
    #[tokio::test]
    async fn pages_and_tokens_give_the_same_directories() {
        let fixture = Fixture::new();
        let (root, _) = shared(&fixture).await;
        let whole = flat(&pages(&fixture, &request(&root, 0, "")).await.unwrap());
        for page_size in 1..6 {
            let all = pages(&fixture, &request(&root, page_size, "")).await.unwrap();
            assert_eq!(flat(&all), whole, "pages of {page_size}");
            let mut seen = 0;
            for page in &all {
                assert!(page.directories.len() <= usize::try_from(page_size).unwrap());
                seen += page.directories.len();
                if !page.next_page_token.is_empty() {
                    let rest = pages(&fixture, &request(&root, 2, &page.next_page_token)).await.unwrap();
                    assert_eq!(flat(&rest), whole[seen..], "after {seen} directories");
                }
            }
        }
    }

    #[tokio::test]
    async fn missing_children_are_left_out_and_a_missing_root_is_not_found() {
        let fixture = Fixture::new();
        let absent = longshore_cas_store::digest::DigestFunction::Sha256.digest(b"absent");
        let junk = fixture.put(b"\xff\xff no message").await;
        let root = fixture.put_message(&directory(&[("a", absent), ("b", junk)])).await;
        assert_eq!(flat(&pages(&fixture, &request(&root, 0, "")).await.unwrap()).len(), 1);
        assert_eq!(pages(&fixture, &request(&absent, 0, "")).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(pages(&fixture, &request(&junk, 0, "")).await.unwrap_err().code(), Code::InvalidArgument);
    }

    #[tokio::test]
    async fn wrong_sizes_and_tokens_are_refused() {
        let fixture = Fixture::new();
        let (root, _) = shared(&fixture).await;
        let foreign = longshore_cas_store::digest::DigestFunction::Sha256.digest(b"foreign");
        let leaf = fixture.put_message(&reapi::Directory::default()).await;
        let tokens =
            ["junk".to_owned(), format!("{root}/{foreign}"), format!("{foreign}/{leaf}"), leaf.to_string()];
        for request in tokens.iter().map(|token| request(&root, 0, token)).chain([request(&root, -1, "")]) {
            assert_eq!(pages(&fixture, &request).await.unwrap_err().code(), Code::InvalidArgument);
        }
    }

    #[tokio::test]
    async fn the_empty_root_is_one_empty_directory() {
        let fixture = Fixture::new();
        let root = Digest::empty(longshore_cas_store::digest::DigestFunction::Sha256);
        let all = pages(&fixture, &request(&root, 0, "")).await.unwrap();
        assert_eq!(flat(&all), [reapi::Directory::default()]);
    }
}
