use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::*;
use crate::dir::Op;
use crate::record::RecordStore;

// An inode takes 65,000 links on ext4: the next link gets a fresh one, and the disk holds both.
#[tokio::test]
async fn an_inode_without_a_link_left_is_renewed() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let work = OsDir::open(&fixture.work()).unwrap();
    let pin = fixture.put(noise(5000, 1)).await;
    for executable in [false, true] {
        let key = FileKey { digest: *pin.digest(), executable };
        let pins = store.pin_tree(&[], &[key]).await.unwrap();
        let name = |n: u32| format!("{executable}{n}");
        store.link(&key, &work, name(1).as_ref()).unwrap();
        fixture.faults.fail_next(Op::Link, Errno::EMLINK);
        let before_bytes = store.stats().size_bytes;
        store.link(&key, &work, name(2).as_ref()).unwrap();
        assert!(!fixture.faults.clear(), "the fault came");
        store.link(&key, &work, name(3).as_ref()).unwrap();
        let inode = |n: u32| fixture.work().join(name(n)).metadata().unwrap().ino();
        // The second look under the key finds that a link is left after all.
        assert_eq!(inode(1), inode(2));
        assert_eq!(store.stats().size_bytes, before_bytes);

        fixture.faults.fail_twice(Op::Link, Errno::EMLINK);
        store.link(&key, &work, name(4).as_ref()).unwrap();
        assert!(!fixture.faults.clear(), "both faults came");
        assert_ne!(inode(1), inode(4));
        assert!(store.stats().size_bytes > before_bytes, "both inodes are on the disk");
        let mode = fixture.work().join(name(4)).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, if executable { 0o555 } else { 0o444 });
        assert_eq!(std::fs::read(fixture.work().join(name(4))).unwrap(), noise(5000, 1));
        drop(pins);
    }
}

// Two trees want one variant: while the first link of the one fails, the other makes it.
#[tokio::test]
async fn a_variant_that_was_made_meanwhile_is_linked() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let work = OsDir::open(&fixture.work()).unwrap();
    let pin = fixture.put(noise(5000, 1)).await;
    let key = FileKey { digest: *pin.digest(), executable: true };
    let _pins = store.pin_tree(&[], &[key]).await.unwrap();
    store.link(&key, &work, "one".as_ref()).unwrap();
    fixture.faults.fail_next(Op::Link, Errno::ENOENT);
    store.link(&key, &work, "other".as_ref()).unwrap();
    assert!(!fixture.faults.clear(), "the fault came");
    assert_eq!(std::fs::read(fixture.work().join("other")).unwrap(), noise(5000, 1));
    // Where it is the target that is not there, that is said.
    let error = store.link(&key, &work, "nowhere/other".as_ref()).unwrap_err();
    assert!(matches!(&error, StoreError::Path(error) if error.errno == Errno::ENOENT), "{error}");
}

#[tokio::test]
async fn where_a_link_cannot_reach_the_file_is_copied() {
    let fixture = Fixture::new();
    let work = OsDir::open(&fixture.work()).unwrap();
    let pin = fixture.put(noise(5000, 1)).await;
    for (executable, mode) in [(false, 0o444), (true, 0o555)] {
        let key = FileKey { digest: *pin.digest(), executable };
        let name = executable.to_string();
        fixture.faults.fail_next(Op::Link, Errno::EXDEV);
        fixture.store().link(&key, &work, name.as_ref()).unwrap();
        let metadata = fixture.work().join(&name).metadata().unwrap();
        assert_eq!((metadata.nlink(), metadata.permissions().mode() & 0o7777), (1, mode));
        assert_eq!(metadata.modified().unwrap(), blob_mtime());
    }
}

#[tokio::test]
async fn a_full_disk_is_no_space() {
    let fixture = Fixture::new();
    for errno in [Errno::ENOSPC, Errno::EDQUOT] {
        for op in [Op::Create, Op::Link] {
            fixture.faults.fail_next(op, errno);
            let outcome = fixture.store().put(sha(b"data"), Bytes::from_static(b"data")).await;
            assert!(matches!(outcome, Err(StoreError::NoSpace { .. })), "{op} {errno}");
            fixture.settle();
        }
    }
    drop(fixture.put("data").await);
}

// The disk is others' as well: what nobody needs goes, so that whoever tries again finds room.
#[tokio::test]
async fn a_full_disk_costs_what_nobody_refers_to() {
    let fixture = Fixture::new();
    let kept = fixture.put(noise(100_000, 1)).await;
    let idle = *fixture.put(noise(100_000, 2)).await.digest();
    let before_bytes = fixture.disk_bytes();
    fixture.faults.fail_next(Op::Create, Errno::ENOSPC);
    let data = noise(50_000, 3);
    let outcome = fixture.store().put(sha(&data), data.clone()).await;
    assert!(matches!(outcome, Err(StoreError::NoSpace { .. })));
    fixture.settle();
    assert!(fixture.store().pin(&idle).is_none());
    assert!(fixture.disk_bytes() < before_bytes);
    assert_eq!(fixture.store().read(&kept, 0..100_000).await.unwrap(), noise(100_000, 1));
    drop(fixture.put(data).await);
}

/// Everything that makes or reads a file, once.
async fn everything(fixture: &Fixture, seed: u64) -> Result<(), StoreError> {
    let store = fixture.store();
    let work = OsDir::open(&fixture.work()).unwrap();
    let data = noise(300_000, seed);
    let pin = store.put(sha(&data), data.clone()).await?;
    assert_eq!(store.read(&pin, 0..300_000).await?, data);
    let key = FileKey { digest: *pin.digest(), executable: true };
    let _ = std::fs::remove_file(fixture.work().join("tool"));
    store.link(&key, &work, Path::new("tool"))?;
    let second = noise(2000, seed + 1_000_000);
    if let Ingest::Write(mut writer) = store.ingest(sha(&second)).await? {
        writer.write(second.clone()).await?;
        writer.finish().await?;
    }
    let third = noise(3000, seed + 2_000_000);
    std::fs::write(fixture.work().join("output"), &third).unwrap();
    let (pin, _) = store.adopt(DigestFunction::Sha256, &work, Path::new("output"))?;
    assert_eq!(store.read_many(vec![*pin.digest()]).await?, [Some(third)]);
    let records = RecordStore::new(store);
    records.put([1; 32], second.clone()).await?;
    if let Some(record) = records.get([1; 32]).await? {
        assert_eq!(record, second);
    }
    Ok(())
}

// Whichever operation fails: no wrong byte, no lost count, nothing left over; and without the fault it works.
#[tokio::test]
async fn every_operation_may_fail() {
    for has_unnamed_files in [true, false] {
        let mut fixture = Fixture::new();
        if !has_unnamed_files {
            fixture.faults.refuse_unnamed_files();
            fixture.restart();
        }
        for count in 0.. {
            fixture.faults.fail_after(count);
            let outcome = everything(&fixture, count as u64).await;
            let is_over = fixture.faults.clear();
            assert!(!is_over || outcome.is_ok(), "{outcome:?} without a fault");
            everything(&fixture, count as u64).await.unwrap();
            fixture.settle();
            if is_over {
                assert!(count > 15, "there were operations to fail");
                break;
            }
        }
    }
}

// A file that the ledger does not know is nobody's promise.
#[tokio::test]
async fn an_unknown_file_in_a_blobs_place_is_replaced() {
    let fixture = Fixture::new();
    let data = noise(5000, 1);
    drop(fixture.put(data.clone()).await);
    let path = fixture.file("blobs", &sha(&data));
    fixture.store().space.evict_key(&ledger::SlotKey::Blob(sha(&data)));
    assert!(!path.exists());
    std::fs::write(&path, b"rubbish").unwrap();
    let pin = fixture.put(data.clone()).await;
    assert_eq!(fixture.store().read(&pin, 0..5000).await.unwrap(), data);
    drop(pin);
    fixture.store().space.evict_key(&ledger::SlotKey::Blob(sha(&data)));

    std::fs::write(&path, b"rubbish").unwrap();
    std::fs::write(fixture.work().join("output"), &data).unwrap();
    let work = OsDir::open(&fixture.work()).unwrap();
    let (pin, how) = fixture.store().adopt(DigestFunction::Sha256, &work, Path::new("output")).unwrap();
    assert_eq!(how, Adopted::Moved);
    assert_eq!(fixture.store().read(&pin, 0..5000).await.unwrap(), data);
    fixture.settle();
}
