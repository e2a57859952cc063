//! The blobs that an `ActionResult` names, directly and inside its trees, and whether they are all here.

use std::collections::HashSet;
use std::iter;
use std::sync::Arc;

use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::tree;
use longshore_proto::raw::RawTree;
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

/// Checks that everything that `result` names is here, and marks it used. What is missing is told all at once.
pub(super) async fn check(
    store: &Arc<BlobStore>,
    function: DigestFunction,
    result: &reapi::ActionResult,
) -> Result<(), Unfit> {
    let named = Named::of(function, result).map_err(Unfit::Malformed)?;
    let mut missing = store.find_missing(&named.blobs);
    for tree in &named.trees {
        if let Some(files) = read_tree(store, tree).await? {
            missing.extend(store.find_missing(&files));
        }
    }
    for root in &named.roots {
        missing.extend(missing_below(store, *root).await?);
    }
    if missing.is_empty() { Ok(()) } else { Err(Unfit::Missing(missing)) }
}

/// Checks that the trees of `result`, which are here, have all the directories that they name, and begin with the
/// directory that stands beside them.
///
/// For what comes from outside: a tree is stored once it is known to be whole, and stays so.
pub(super) async fn check_trees(
    store: &Arc<BlobStore>,
    function: DigestFunction,
    result: &reapi::ActionResult,
) -> Result<(), Unfit> {
    let named = Named::of(function, result).map_err(Unfit::Malformed)?;
    for (tree, root) in named.trees.into_iter().zip(named.tree_roots) {
        let message = store.read_many(vec![tree]).await.map_err(Failure::from)?.pop().flatten();
        let message = message.ok_or_else(|| Unfit::Missing(vec![tree]))?;
        let whole = tokio::task::spawn_blocking(move || check_whole(function, &message, root)).await;
        let whole = whole.map_err(|error| Failure::internal(format!("tree {tree}: {error}")))?;
        whole.map_err(|reason| Unfit::Malformed(format!("tree {tree}: {reason}")))?;
    }
    Ok(())
}

fn check_whole(function: DigestFunction, message: &[u8], root: Option<Digest>) -> Result<(), String> {
    let tree = RawTree::decode(message).map_err(|error| error.to_string())?;
    let found = function.digest(&tree.root);
    if root.is_some_and(|root| root != found) {
        return Err(format!("its root is {found}, not what root_directory_digest says"));
    }
    let known: HashSet<_> = tree.children.iter().map(|child| function.digest(child)).collect();
    for directory in iter::once(&tree.root).chain(&tree.children) {
        let directory = reapi::Directory::decode(&directory[..]).map_err(|error| error.to_string())?;
        for node in &directory.directories {
            let child = Digest::from_wire(function, node.digest.as_ref());
            let child = child.map_err(|error| format!("directory {:?}: {error}", node.name))?;
            if !known.contains(&child) && !child.is_empty() {
                return Err(format!("directory {:?}: {child} is not among the children", node.name));
            }
        }
    }
    Ok(())
}

/// What a result names in its own fields.
struct Named {
    /// Everything but the directories below `roots`.
    blobs: Vec<Digest>,
    /// Those that are `Tree` messages.
    trees: Vec<Digest>,
    /// What the root of each of them is said to be.
    tree_roots: Vec<Option<Digest>>,
    /// Those that are `Directory` messages.
    roots: Vec<Digest>,
}

impl Named {
    fn of(function: DigestFunction, result: &reapi::ActionResult) -> Result<Self, String> {
        let parse = |field: &str, wire: Option<&reapi::Digest>| {
            Digest::from_wire(function, wire).map_err(|error| format!("{field}: {error}"))
        };
        let mut named =
            Self { blobs: Vec::new(), trees: Vec::new(), tree_roots: Vec::new(), roots: Vec::new() };
        for (index, file) in result.output_files.iter().enumerate() {
            named.blobs.push(parse(&format!("output_files[{index}].digest"), file.digest.as_ref())?);
        }
        for (index, directory) in result.output_directories.iter().enumerate() {
            let field = format!("output_directories[{index}]");
            if directory.tree_digest.is_none() && directory.root_directory_digest.is_none() {
                return Err(format!("{field}: neither tree_digest nor root_directory_digest is set"));
            }
            let root = directory.root_directory_digest.as_ref();
            let root = root.map(|wire| parse(&format!("{field}.root_directory_digest"), Some(wire)));
            let root = root.transpose()?;
            if let Some(wire) = &directory.tree_digest {
                named.trees.push(parse(&format!("{field}.tree_digest"), Some(wire))?);
                named.tree_roots.push(root);
            }
            named.roots.extend(root);
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

/// The files in a `Tree` message; nothing if the message is not here.
async fn read_tree(store: &Arc<BlobStore>, digest: &Digest) -> Result<Option<Vec<Digest>>, Unfit> {
    let malformed = |reason: String| Unfit::Malformed(format!("tree {digest}: {reason}"));
    if digest.size_bytes() > METADATA_BYTES_MAX {
        return Err(malformed("is too large".to_owned()));
    }
    let message = store.read_many(vec![*digest]).await.map_err(Failure::from)?.pop().flatten();
    let Some(message) = message else { return Ok(None) };
    let tree = reapi::Tree::decode(message).map_err(|error| malformed(error.to_string()))?;
    let mut files = Vec::new();
    for directory in tree.root.iter().chain(&tree.children) {
        files.extend(files_of(*digest, directory).map_err(malformed)?);
    }
    Ok(Some(files))
}

/// What is missing of the directories below `root` and their files.
async fn missing_below(store: &Arc<BlobStore>, root: Digest) -> Result<Vec<Digest>, Unfit> {
    let mut walk = Walk::new(store.clone(), root);
    let mut missing = Vec::new();
    while let Some(Visit { digest, found }) = walk.next().await? {
        let directory = match found {
            Found::Directory(directory) => directory,
            Found::Missing => {
                missing.push(digest);
                continue;
            }
            Found::Malformed(reason) => return Err(Unfit::Malformed(format!("directory {digest} {reason}"))),
        };
        let files: Vec<_> = files_of(digest, &directory).map_err(Unfit::Malformed)?.collect();
        missing.extend(store.find_missing(&files));
    }
    Ok(missing)
}

/// The files of a directory that a client could build: the one with that digest, or within the tree that has it.
fn files_of(
    digest: Digest,
    directory: &reapi::Directory,
) -> Result<impl Iterator<Item = Digest> + use<>, String> {
    let checked = tree::check(digest, directory).map_err(|error| error.to_string())?;
    Ok(checked.files.into_iter().map(|file| file.key.digest))
}
