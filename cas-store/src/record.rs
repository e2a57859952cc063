//! Small named records beside the blobs, counted in the same ledger: where an action cache keeps its entries.
//!
//! A record is a file `records/<xx>/<key>` that ends with a checksum of its content. It is replaced by a rename, so
//! that readers see one version or the other; the checksum tells what a crash of the machine tore, and such a
//! record is not there. Nobody refers to records: the one used longest ago is the next to be evicted, among the
//! blobs.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;

use crate::blob::layout::RECORD_MODE;
use crate::blob::ledger::SlotKey;
use crate::blob::space::{Reservation, Space};
use crate::blob::temporary::Temporary;
use crate::blob::{BlobStore, StoreError};
use crate::dir::{Op, PathErrorExt};

/// The name of a record: a hash of whatever identifies it.
pub type RecordKey = [u8; 32];

/// What the checksum at the end takes.
const CHECKSUM_BYTES: usize = blake3::OUT_LEN;

/// Records, evicted like blobs that nobody references. Last writer wins; readers never see a torn one.
#[derive(Debug)]
pub struct RecordStore {
    store: Arc<BlobStore>,
}

impl RecordStore {
    /// The records of `store`.
    pub fn new(store: Arc<BlobStore>) -> Self {
        Self { store }
    }

    /// Reads a record and marks it used.
    pub async fn get(&self, key: RecordKey) -> Result<Option<Bytes>, StoreError> {
        if !self.store.space.lock().ledger.touch(&SlotKey::Record(key)) {
            return Ok(None);
        }
        let space = self.store.space.clone();
        self.store.space.environment.io.run(move || space.read_record(key)).await
    }

    /// Writes a record, replacing what was there.
    pub async fn put(&self, key: RecordKey, data: Bytes) -> Result<(), StoreError> {
        let size_bytes = (data.len() + CHECKSUM_BYTES) as u64;
        let space = self.store.space.clone();
        let reservation = space.reserve(space.layout.disk_bytes(size_bytes)).await?;
        self.store.space.environment.io.run(move || space.write_record(key, &data, reservation)).await
    }

    /// Removes a record, if it is there.
    pub async fn remove(&self, key: RecordKey) -> Result<(), StoreError> {
        let space = self.store.space.clone();
        self.store.space.environment.io.run(move || space.evict_key(&SlotKey::Record(key))).await;
        Ok(())
    }
}

impl Space {
    fn read_record(self: &Arc<Self>, key: RecordKey) -> Result<Option<Bytes>, StoreError> {
        let slot_key = SlotKey::Record(key);
        let mut file = match self.layout.open_key(&slot_key) {
            // Evicted meanwhile.
            Err(error) if error.errno == Errno::ENOENT => return Ok(None),
            opened => opened?,
        };
        let mut content = Vec::new();
        file.read_to_end(&mut content).at(Op::Read, self.layout.locate(&slot_key).1)?;
        let data = content.split_last_chunk::<CHECKSUM_BYTES>();
        if let Some((data, _)) = data.filter(|(data, checksum)| blake3::hash(data) == **checksum) {
            let len = data.len();
            content.truncate(len);
            return Ok(Some(content.into()));
        }
        tracing::warn!(path = ?self.layout.locate(&slot_key).1, "a record is damaged and is dropped");
        self.evict_key(&slot_key);
        Ok(None)
    }

    fn write_record(
        self: &Arc<Self>,
        key: RecordKey,
        data: &[u8],
        reservation: Reservation,
    ) -> Result<(), StoreError> {
        let full = self.on_write(reservation.bytes());
        let slot_key = SlotKey::Record(key);
        let mut temporary = Temporary::create(&self.layout, RECORD_MODE).map_err(&full)?;
        temporary.write(data).map_err(&full)?;
        temporary.write(blake3::hash(data).as_bytes()).map_err(&full)?;
        let guard = self.take_key(slot_key);
        // Kept from eviction while its file is replaced.
        let known = self.lock().ledger.pin(&slot_key);
        let replaced = temporary.publish(&slot_key).map_err(&full);
        let returned = self.change(|state| {
            let (id, returned) = match (known, &replaced) {
                (Some(id), Ok(())) => {
                    let bytes = reservation.spend(state);
                    state.ledger.resize(id, bytes);
                    (Some(id), None)
                }
                (None, Ok(())) => (Some(state.insert(slot_key, reservation)), None),
                (id, Err(_)) => (id, Some(reservation)),
            };
            if let Some(id) = id {
                state.ledger.release(id);
            }
            returned
        });
        drop((guard, returned));
        replaced
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::testing::Fixture;

    #[tokio::test]
    async fn the_last_writer_wins_and_space_is_counted_once() {
        let fixture = Fixture::new();
        let records = RecordStore::new(fixture.store());
        let key = [7; 32];
        assert_eq!(records.get(key).await.unwrap(), None);
        records.put(key, Bytes::from(vec![1; 9000])).await.unwrap();
        records.put(key, Bytes::from_static(b"second")).await.unwrap();
        assert_eq!(records.get(key).await.unwrap().as_deref(), Some(&b"second"[..]));
        assert_eq!(fixture.store().stats().size_bytes, fixture.disk_bytes());
        records.remove(key).await.unwrap();
        records.remove(key).await.unwrap();
        assert_eq!(records.get(key).await.unwrap(), None);
        assert_eq!((fixture.store().stats().size_bytes, fixture.disk_bytes()), (0, 0));
    }

    #[tokio::test]
    async fn records_survive_a_restart_and_are_evicted_like_blobs() {
        let mut fixture = Fixture::new();
        for name in 0..4 {
            RecordStore::new(fixture.store()).put([name; 32], Bytes::from(vec![name; 5000])).await.unwrap();
        }
        let size_bytes = fixture.store().stats().size_bytes;
        fixture.restart();
        assert_eq!(fixture.recovered.size_bytes, size_bytes);
        let records = RecordStore::new(fixture.store());
        assert_eq!(records.get([3; 32]).await.unwrap().unwrap(), vec![3; 5000]);
        assert_eq!(fixture.recovered.blobs, 0, "records are no blobs");

        fixture.limit_bytes = 16 << 10;
        fixture.restart();
        let records = RecordStore::new(fixture.store());
        records.put([9; 32], Bytes::from_static(b"new")).await.unwrap();
        assert_eq!(records.get([9; 32]).await.unwrap().as_deref(), Some(&b"new"[..]));
        assert!(fixture.disk_bytes() <= 16 << 10);
    }

    // What a crash of the machine can leave is not there, rather than wrong.
    #[tokio::test]
    async fn a_torn_record_is_not_there() {
        let fixture = Fixture::new();
        let records = RecordStore::new(fixture.store());
        for (name, content) in [(1, &b""[..]), (2, b"short"), (3, &[0; 64])] {
            records.put([name; 32], Bytes::from_static(b"whole")).await.unwrap();
            let (dir, path) = records.store.space.layout.locate(&SlotKey::Record([name; 32]));
            dir.remove_file(&path).unwrap();
            std::io::Write::write_all(&mut dir.create_file(&path, 0o400).unwrap(), content).unwrap();
            assert_eq!(records.get([name; 32]).await.unwrap(), None);
        }
        assert_eq!(fixture.disk_bytes(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn readers_see_one_version_or_another() {
        let fixture = Fixture::new();
        let records = Arc::new(RecordStore::new(fixture.store()));
        let key = [1; 32];
        records.put(key, Bytes::from(vec![0; 5000])).await.unwrap();
        let writer = tokio::spawn({
            let records = records.clone();
            async move {
                for round in 1..=50u8 {
                    records.put(key, Bytes::from(vec![round; 5000 + usize::from(round)])).await.unwrap();
                }
            }
        });
        let mut last = 0;
        while last < 50 {
            let data = records.get(key).await.unwrap().unwrap();
            assert!(data.iter().all(|&byte| byte == data[0]) && data[0] >= last);
            assert_eq!(data.len(), 5000 + usize::from(data[0]));
            last = data[0];
        }
        writer.await.unwrap();
    }
}
