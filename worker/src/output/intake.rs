//! The way of an action's files into the store, with an eye on what the action holds there.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use longshore_cas_store::blob::{BlobPin, BlobStore, Holding, StoreError};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::dir::Dir;
use longshore_cas_store::tree_cache::TreePin;
use parking_lot::Mutex;

/// Takes what one action made into the store. What never fits beside the rest of it and its inputs is refused as such.
///
/// *Locking*: one lock, for changes in memory.
#[derive(Debug)]
pub struct Intake {
    store: Arc<BlobStore>,
    function: DigestFunction,
    /// What stays pinned meanwhile.
    inputs: Option<TreePin>,
    taken: Mutex<HashSet<Digest>>,
}

impl Intake {
    /// Nothing was taken in yet; `inputs` stay pinned meanwhile.
    pub fn new(store: Arc<BlobStore>, function: DigestFunction, inputs: Option<TreePin>) -> Self {
        Self { store, function, inputs, taken: Mutex::default() }
    }

    /// The digest function of the action.
    pub(super) fn function(&self) -> DigestFunction {
        self.function
    }

    /// Takes in the finished file `name` of `dir`, which may be gone from there afterwards. Blocks; call on the pool.
    pub fn adopt(&self, dir: &dyn Dir, name: &Path) -> Result<BlobPin, StoreError> {
        let adopted = self.store.adopt(self.function, dir, name);
        let (pin, _) = adopted.map_err(|error| self.judge(error))?;
        self.taken.lock().insert(*pin.digest());
        Ok(pin)
    }

    /// Takes in blobs that are in memory.
    pub(super) async fn put_many(&self, blobs: Vec<(Digest, Bytes)>) -> Result<Vec<BlobPin>, StoreError> {
        let stored = self.store.put_many(blobs).await.into_iter().collect::<Result<Vec<_>, _>>();
        stored.map_err(|error| self.judge(error))
    }

    /// What an error means for this action.
    fn judge(&self, error: StoreError) -> StoreError {
        let mut holding = match &self.inputs {
            Some(inputs) => inputs.holding(),
            None => Holding::new(&self.store, 0),
        };
        self.taken.lock().iter().for_each(|digest| holding.add(digest));
        holding.judge(error)
    }
}
