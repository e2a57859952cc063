//! Small named records beside the blobs, counted in the same ledger: where an action cache keeps its entries.

use std::sync::Arc;

use bytes::Bytes;

use crate::blob::{BlobStore, StoreError};

/// The name of a record: a hash of whatever identifies it.
pub type RecordKey = [u8; 32];

/// Records, evicted like blobs that nobody references. Last writer wins; readers never see a torn one.
#[derive(Debug)]
pub struct RecordStore {
    _private: (),
}

impl RecordStore {
    /// The records of `store`.
    pub fn new(store: Arc<BlobStore>) -> Self {
        todo!("{store:?}")
    }

    /// Reads a record and marks it used.
    pub async fn get(&self, key: RecordKey) -> Result<Option<Bytes>, StoreError> {
        todo!("{key:?}")
    }

    /// Writes a record, replacing what was there.
    pub async fn put(&self, key: RecordKey, data: Bytes) -> Result<(), StoreError> {
        todo!("{key:?} {}", data.len())
    }

    /// Removes a record, if it is there.
    pub async fn remove(&self, key: RecordKey) -> Result<(), StoreError> {
        todo!("{key:?}")
    }
}
