//! `GetTree`.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::{Message as _, reapi};
use longshore_tests::client::Client;
use longshore_tests::tree::{InputTree, MerkleTree};
use tonic::{Code, Status};

use crate::support::{absent, all_of, put_message, refused, shared_client, unique, wire_of};

async fn pages(
    client: &Client,
    root: &Digest,
    page_size: i32,
    page_token: &str,
) -> Result<Vec<reapi::GetTreeResponse>, Status> {
    let request = reapi::GetTreeRequest {
        root_digest: Some(root.to_wire()),
        page_size,
        page_token: page_token.to_owned(),
        digest_function: wire_of(root.function()),
        ..Default::default()
    };
    all_of(client.cas().get_tree(request).await).await
}

fn flat(pages: &[reapi::GetTreeResponse]) -> Vec<reapi::Directory> {
    pages.iter().flat_map(|page| page.directories.clone()).collect()
}

/// The encoded directories, as a set.
fn set(directories: &[reapi::Directory]) -> BTreeSet<Vec<u8>> {
    directories.iter().map(reapi::Directory::encode_to_vec).collect()
}

fn expected(tree: &MerkleTree) -> BTreeSet<Vec<u8>> {
    tree.directories.iter().map(|(_, bytes)| bytes.to_vec()).collect()
}

/// A tree of nine directories that no other test has.
async fn stored_tree(client: &Client) -> Result<MerkleTree> {
    let tree = InputTree::new()
        .file("seed", unique(20))
        .file("a/f", "a")
        .file("a/b/f", "b")
        .executable("a/b/c/f", "c")
        .symlink("d/link", "../seed")
        .directory("d/empty")
        .file("e/1/f", "1")
        .file("e/2/f", "2");
    let tree = tree.build(client.function());
    client.upload(&tree.blobs().cloned().collect::<Vec<_>>()).await?;
    Ok(tree)
}

fn parent_of(children: &[(&str, Digest)]) -> reapi::Directory {
    let node = |(name, digest): &(&str, Digest)| reapi::DirectoryNode {
        name: (*name).to_owned(),
        digest: Some(digest.to_wire()),
    };
    reapi::Directory { directories: children.iter().map(node).collect(), ..Default::default() }
}

/// Every directory that can be reached is sent, the root among them.
#[tokio::test]
async fn gtr_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let tree = stored_tree(&client).await?;
        let pages = pages(&client, &tree.root, 0, "").await?;
        assert_eq!(set(&flat(&pages)), expected(&tree), "{function}");
        assert_eq!(flat(&pages).len(), 9);
        assert_eq!(pages.last().context("a page")?.next_page_token, "");
    }
    Ok(())
}

/// A root that is absent is `NOT_FOUND`.
#[tokio::test]
async fn gtr_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let root = absent(function);
        refused(pages(&client, &root, 0, "").await, Code::NotFound, &["root_digest", &root.hash_hex()]);
    }
    Ok(())
}

/// A directory that is missing is left out, and the rest is sent.
#[tokio::test]
async fn gtr_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let tree = stored_tree(&client).await?;
    let root =
        parent_of(&[("a", absent(client.function())), ("b", tree.root), ("c", absent(client.function()))]);
    let root_digest = put_message(&client, &root).await?;
    for page_size in [0, 1, 3] {
        let pages = pages(&client, &root_digest, page_size, "").await?;
        let mut all = expected(&tree);
        all.insert(root.encode_to_vec());
        assert_eq!(set(&flat(&pages)), all);
    }
    Ok(())
}

/// No page has more than `page_size` directories; a negative size is `INVALID_ARGUMENT`.
#[tokio::test]
async fn gtr_04() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let tree = stored_tree(&client).await?;
    for page_size in [1, 2, 8, 9, 10, i32::MAX] {
        let pages = pages(&client, &tree.root, page_size, "").await?;
        assert!(pages.iter().all(|page| i32::try_from(page.directories.len()).unwrap() <= page_size));
        assert_eq!(set(&flat(&pages)), expected(&tree));
    }
    for page_size in [-1, i32::MIN] {
        let outcome = pages(&client, &tree.root, page_size, "").await;
        refused(outcome, Code::InvalidArgument, &["page_size", &page_size.to_string()]);
    }
    Ok(())
}

/// Every page but the last has a token, behind which a request goes on; any other token is `INVALID_ARGUMENT`.
#[tokio::test]
async fn gtr_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let tree = stored_tree(&client).await?;
    let all = pages(&client, &tree.root, 2, "").await?;
    assert_eq!(all.len(), 5);
    let (last, others) = all.split_last().context("pages")?;
    assert_eq!(last.next_page_token, "");
    let tokens: BTreeSet<_> = others.iter().map(|page| page.next_page_token.as_str()).collect();
    assert_eq!(tokens.len(), 4);
    assert!(!tokens.contains(""));
    let rest = pages(&client, &tree.root, 2, &others[0].next_page_token).await?;
    assert_eq!(flat(&rest), flat(&all)[2..]);

    // Of another tree, even one that shares directories; of nothing; and changed.
    let sharing = put_message(&client, &parent_of(&[("shared", tree.root)])).await?;
    let token = &others[1].next_page_token;
    for root in [sharing, stored_tree(&client).await?.root, Digest::empty(client.function())] {
        refused(pages(&client, &root, 2, token).await, Code::InvalidArgument, &["page_token"]);
    }
    let foreign = pages(&client, &sharing, 1, "").await?.remove(0).next_page_token;
    let shortened = &token[..token.len() - 1];
    for token in
        ["junk", "0", " ", "../..", "\0", shortened, &token.repeat(2), &"x".repeat(100_000), &foreign]
    {
        refused(pages(&client, &tree.root, 2, token).await, Code::InvalidArgument, &["page_token"]);
    }
    Ok(())
}

/// The pages of any size, and what follows any token, give the same directories.
#[tokio::test]
async fn gtr_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let tree = stored_tree(&client).await?;
    let whole = flat(&pages(&client, &tree.root, 0, "").await?);
    for page_size in 1..=10 {
        let all = pages(&client, &tree.root, page_size, "").await?;
        assert_eq!(flat(&all), whole);
        let mut seen = 0;
        for page in all.iter().filter(|page| !page.next_page_token.is_empty()) {
            seen += page.directories.len();
            for resumed_size in [0, 1, 4] {
                let rest = pages(&client, &tree.root, resumed_size, &page.next_page_token).await?;
                assert_eq!(flat(&rest), whole[seen..], "{seen} of pages of {page_size}");
            }
        }
    }
    Ok(())
}

/// A directory that is reached by many ways is sent once, however many ways there are.
#[tokio::test]
async fn gtr_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let leaf = reapi::Directory {
        symlinks: vec![reapi::SymlinkNode {
            name: "seed".to_owned(),
            target: uuid::Uuid::new_v4().to_string(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let mut digest = put_message(&client, &leaf).await?;
    // Two to the power of forty paths.
    for _ in 0..40 {
        digest = put_message(&client, &parent_of(&[("l", digest), ("r", digest)])).await?;
    }
    let all = flat(&pages(&client, &digest, 0, "").await?);
    assert_eq!((all.len(), set(&all).len()), (41, 41));
    Ok(())
}

/// Every response is below 4 MiB, however many directories a client asks for.
#[tokio::test]
async fn gtr_08() -> Result<()> {
    const MESSAGE_BYTES_MAX: usize = 4 << 20;
    let (_longshore, client) = shared_client().await?;
    let mut children = Vec::new();
    for index in 0..9 {
        let link = |number: usize| reapi::SymlinkNode {
            name: format!("{number:06}"),
            target: format!("{index}{}", "x".repeat(2000)),
            ..Default::default()
        };
        let directory = reapi::Directory { symlinks: (0..500).map(link).collect(), ..Default::default() };
        children.push((format!("d{index}"), put_message(&client, &directory).await?));
    }
    let children: Vec<_> = children.iter().map(|(name, digest)| (name.as_str(), *digest)).collect();
    let root = put_message(&client, &parent_of(&children)).await?;
    // The client itself refuses larger ones.
    let all = pages(&client, &root, 1_000, "").await?;
    assert!(all.iter().all(|page| page.encoded_len() < MESSAGE_BYTES_MAX));
    assert!(all.len() >= 3, "9 MiB in {} pages", all.len());
    assert_eq!(flat(&all).len(), 10);
    let rest = pages(&client, &root, 1_000, &all[0].next_page_token).await?;
    assert_eq!(flat(&rest).len(), 10 - all[0].directories.len());
    Ok(())
}

/// The empty digest is one empty directory, without any upload.
#[tokio::test]
async fn gtr_09() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        for page_size in [0, 1] {
            let all = pages(&client, &Digest::empty(function), page_size, "").await?;
            assert_eq!(flat(&all), [reapi::Directory::default()], "{function}");
            assert_eq!(all[0].next_page_token, "");
        }
        let client = client.with_function(function);
        let parent = parent_of(&[("e", Digest::empty(function))]);
        let root = put_message(&client, &parent).await?;
        assert_eq!(flat(&pages(&client, &root, 0, "").await?), [parent, reapi::Directory::default()]);
    }
    Ok(())
}

/// A root that is no Directory is `INVALID_ARGUMENT`; a child that is none is left out.
#[tokio::test]
async fn gtr_10() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let no_directory = client.put([b"\xff\xff\xff", &unique(10)[..]].concat()).await?;
    let outcome = pages(&client, &no_directory, 0, "").await;
    refused(outcome, Code::InvalidArgument, &["root_digest", &no_directory.hash_hex(), "Directory"]);
    // A directory by its form whose child has a digest that is none.
    let mut wrong = parent_of(&[("c", no_directory)]);
    wrong.directories[0].digest = Some(reapi::Digest { hash: "beef".to_owned(), size_bytes: 1 });
    let wrong = put_message(&client, &wrong).await?;
    refused(pages(&client, &wrong, 0, "").await, Code::InvalidArgument, &["root_digest", "beef"]);

    let root = parent_of(&[("a", no_directory), ("b", wrong), ("c", Digest::empty(client.function()))]);
    let root_digest = put_message(&client, &root).await?;
    let all = flat(&pages(&client, &root_digest, 0, "").await?);
    assert_eq!(all, [root, reapi::Directory::default()]);
    Ok(())
}

/// The first directory is the root.
#[tokio::test]
async fn gtr_11() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for _ in 0..5 {
        let tree = stored_tree(&client).await?;
        for page_size in [0, 1, 3] {
            let first = pages(&client, &tree.root, page_size, "").await?.remove(0).directories.remove(0);
            assert_eq!(client.function().digest(&first.encode_to_vec()), tree.root);
        }
    }
    Ok(())
}
