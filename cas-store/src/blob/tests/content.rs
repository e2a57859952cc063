use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use super::*;

#[tokio::test]
async fn what_goes_in_comes_out_for_every_function() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let data = noise(700_000, 1);
    for function in DigestFunction::ALL {
        let digest = function.digest(&data);
        let pin = store.put(digest, data.clone()).await.unwrap();
        assert_eq!(store.read(&pin, 0..u64::MAX).await.unwrap(), data);
        assert_eq!(store.read(&pin, 699_999..800_000).await.unwrap(), data[699_999..]);
        assert_eq!(collect(store.reader(pin.clone(), 5, 600_000)).await.unwrap(), data[5..600_005]);
        assert_eq!(collect(store.reader(pin.clone(), 5, u64::MAX)).await.unwrap(), data[5..]);
        let metadata = fixture.file("blobs", &digest).metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o444);
        assert_eq!(metadata.modified().unwrap(), SystemTime::UNIX_EPOCH + BLOB_MTIME);
    }
    assert_eq!(store.stats().blobs, 5);
    assert_eq!(store.stats().size_bytes, fixture.disk_bytes());
}

#[tokio::test]
async fn the_empty_blob_is_always_here_and_has_no_file() {
    let fixture = Fixture::new();
    let store = fixture.store();
    for function in DigestFunction::ALL {
        let empty = Digest::empty(function);
        assert!(store.find_missing(&[empty]).is_empty());
        let pin = store.pin(&empty).unwrap();
        assert_eq!(store.read(&pin, 0..10).await.unwrap(), Bytes::new());
        assert!(collect(store.reader(pin, 0, 10)).await.unwrap().is_empty());
        assert!(matches!(store.ingest(empty).await.unwrap(), Ingest::Present(_)));
        store.put(empty, Bytes::new()).await.unwrap();
        assert!(store.pin_all(&[empty]).is_ok());
        assert_eq!(store.read_many(vec![empty]).await.unwrap(), [Some(Bytes::new())]);
    }
    assert!(fixture.inodes().is_empty());
    assert_eq!(store.stats(), StoreStats::default());
}

#[tokio::test]
async fn wrong_content_is_refused_and_leaves_nothing() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let digest = sha(b"right");
    let wrong = [&b"wrong"[..], b"righ", b"right!", b""];
    for data in wrong {
        let outcome = store.put(digest, Bytes::from_static(data)).await;
        assert!(matches!(outcome, Err(StoreError::Mismatch { .. })), "{data:?}");
        let Ingest::Write(mut writer) = store.ingest(digest).await.unwrap() else { panic!("present") };
        let outcome = match writer.write(Bytes::from_static(data)).await {
            Ok(()) => writer.finish().await.map(drop),
            Err(error) => Err(error),
        };
        assert!(matches!(outcome, Err(StoreError::Mismatch { .. })), "{data:?}");
    }
    let zero = Digest::parse(DigestFunction::Sha256, &digest.hash_hex(), 0).unwrap();
    assert!(matches!(store.put(zero, Bytes::new()).await, Err(StoreError::Mismatch { .. })));
    assert!(store.pin(&digest).is_none());
    store.put(digest, Bytes::from_static(b"right")).await.unwrap();
    assert_eq!(fixture.inodes().len(), 1);
    assert_eq!(store.stats().size_bytes, fixture.disk_bytes());
}

#[tokio::test]
async fn a_stream_becomes_a_blob() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let data = noise(3 << 20, 2);
    let Ingest::Write(mut writer) = store.ingest(sha(&data)).await.unwrap() else { panic!("present") };
    for chunk in data.chunks(100_000) {
        writer.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    assert_eq!(writer.written_bytes(), 3 << 20);
    let pin = writer.finish().await.unwrap();
    assert_eq!(store.read(&pin, 0..3 << 20).await.unwrap(), data);
    assert!(matches!(store.ingest(sha(&data)).await.unwrap(), Ingest::Present(_)));
}

#[tokio::test]
async fn a_batch_has_an_outcome_for_each_in_order() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let (a, b) = (noise(10, 1), noise(5000, 2));
    let batch = vec![
        (sha(&a), a.clone()),
        (sha(&b), a.clone()),
        (sha(&b), b.clone()),
        (sha(&a), a.clone()),
        (sha(b""), Bytes::new()),
    ];
    let outcomes = store.put_many(batch).await;
    let is_ok: Vec<_> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(is_ok, [true, false, true, true, true]);
    assert_eq!(store.stats().writes, 2);
    let read = store.read_many(vec![sha(&b), sha(b"absent"), sha(&a)]).await.unwrap();
    assert_eq!(read, [Some(b), None, Some(a)]);
}

#[tokio::test]
async fn what_is_missing_is_named_once() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let here = *fixture.put("here").await.digest();
    let (one, two) = (sha(b"one"), sha(b"two"));
    assert_eq!(store.find_missing(&[two, here, one, two]), [two, one]);
    assert_eq!(store.pin_all(&[two, here, one, two]).unwrap_err(), [two, one]);
}

#[tokio::test]
async fn damaged_blobs_are_not_here() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let pin = fixture.put(noise(9000, 1)).await;
    let path = fixture.file("blobs", pin.digest());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"short").unwrap();
    assert!(matches!(store.read(&pin, 0..10).await, Err(StoreError::NotFound(_))));
    assert_eq!(store.find_missing(&[*pin.digest()]), [*pin.digest()]);
    assert!(!path.exists());
    let again = store.put(*pin.digest(), noise(9000, 1)).await.unwrap();
    drop(pin);
    assert_eq!(store.read(&again, 0..9000).await.unwrap(), noise(9000, 1));
    assert_eq!(store.stats().size_bytes, fixture.disk_bytes());
}
