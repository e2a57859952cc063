//! The blobs that an `ActionResult` names, directly and inside its trees, and whether they are all here.

use std::sync::Arc;

use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::{Message as _, reapi};

use super::limits::METADATA_BYTES_MAX;
use super::walk::{Found, Visit, Walk};
use crate::status::Failure;

/// Why a result cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// Blobs that it names are not here.
    Missing(Vec<Digest>),
    /// What it names is not what it should be.
    Malformed(String),
    /// That cannot be told.
    Failed(Failure),
}

impl From<Failure> for Unfit {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Checks that everything that `result` names is here, and marks it used.
pub(super) async fn check(
    store: &Arc<BlobStore>,
    function: DigestFunction,
    result: &reapi::ActionResult,
) -> Result<(), Unfit> {
    let named = Named::of(function, result).map_err(Unfit::Malformed)?;
    // Before anything is read: most of what is gone shows here.
    require(store, &named.blobs)?;
    for tree in &named.trees {
        let files = read_tree(store, tree).await?;
        require(store, &files)?;
    }
    for root in &named.roots {
        check_directories(store, *root).await?;
    }
    Ok(())
}

/// What a result names in its own fields.
struct Named {
    /// Everything but the directories below `roots`.
    blobs: Vec<Digest>,
    /// Those that are `Tree` messages.
    trees: Vec<Digest>,
    /// Those that are `Directory` messages.
    roots: Vec<Digest>,
}

impl Named {
    fn of(function: DigestFunction, result: &reapi::ActionResult) -> Result<Self, String> {
        let parse = |field: &str, wire: Option<&reapi::Digest>| {
            Digest::from_wire(function, wire).map_err(|error| format!("{field}: {error}"))
        };
        let mut named = Self { blobs: Vec::new(), trees: Vec::new(), roots: Vec::new() };
        for (index, file) in result.output_files.iter().enumerate() {
            named.blobs.push(parse(&format!("output_files[{index}].digest"), file.digest.as_ref())?);
        }
        for (index, directory) in result.output_directories.iter().enumerate() {
            let field = format!("output_directories[{index}]");
            if directory.tree_digest.is_none() && directory.root_directory_digest.is_none() {
                return Err(format!("{field}: neither tree_digest nor root_directory_digest is set"));
            }
            if let Some(wire) = &directory.tree_digest {
                named.trees.push(parse(&format!("{field}.tree_digest"), Some(wire))?);
            }
            if let Some(wire) = &directory.root_directory_digest {
                named.roots.push(parse(&format!("{field}.root_directory_digest"), Some(wire))?);
            }
        }
        for (field, wire) in
            [("stdout_digest", &result.stdout_digest), ("stderr_digest", &result.stderr_digest)]
        {
            if let Some(wire) = wire {
                named.blobs.push(parse(field, Some(wire))?);
            }
        }
        named.blobs.extend(&named.trees);
        named.blobs.extend(&named.roots);
        Ok(named)
    }
}

fn require(store: &BlobStore, digests: &[Digest]) -> Result<(), Unfit> {
    let missing = store.find_missing(digests);
    if missing.is_empty() { Ok(()) } else { Err(Unfit::Missing(missing)) }
}

/// The files in a `Tree` message.
async fn read_tree(store: &Arc<BlobStore>, digest: &Digest) -> Result<Vec<Digest>, Unfit> {
    let malformed = |reason: String| Unfit::Malformed(format!("tree {digest}: {reason}"));
    if digest.size_bytes() > METADATA_BYTES_MAX {
        return Err(malformed("is too large".to_owned()));
    }
    let message = store.read_many(vec![*digest]).await.map_err(Failure::from)?.pop().flatten();
    let message = message.ok_or_else(|| Unfit::Missing(vec![*digest]))?;
    let tree = reapi::Tree::decode(message).map_err(|error| malformed(error.to_string()))?;
    let mut files = Vec::new();
    for directory in tree.root.iter().chain(&tree.children) {
        files_of(digest.function(), directory, &mut files).map_err(malformed)?;
    }
    Ok(files)
}

async fn check_directories(store: &Arc<BlobStore>, root: Digest) -> Result<(), Unfit> {
    let mut walk = Walk::new(store.clone(), root);
    while let Some(Visit { digest, found }) = walk.next().await? {
        let directory = match found {
            Found::Directory(directory) => directory,
            Found::Missing => return Err(Unfit::Missing(vec![digest])),
            Found::Malformed(reason) => return Err(Unfit::Malformed(format!("directory {digest} {reason}"))),
        };
        let mut files = Vec::new();
        files_of(digest.function(), &directory, &mut files)
            .map_err(|reason| Unfit::Malformed(format!("directory {digest}: {reason}")))?;
        require(store, &files)?;
    }
    Ok(())
}

fn files_of(
    function: DigestFunction,
    directory: &reapi::Directory,
    files: &mut Vec<Digest>,
) -> Result<(), String> {
    for node in &directory.files {
        let digest = Digest::from_wire(function, node.digest.as_ref());
        files.push(digest.map_err(|error| format!("file {:?}: {error}", node.name))?);
    }
    Ok(())
}
