use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::*;

#[tokio::test]
async fn an_executable_is_an_inode_of_its_own() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let work = OsDir::open(&fixture.work()).unwrap();
    let digest = *fixture.put(noise(5000, 1)).await.digest();
    let keys = [true, false].map(|executable| FileKey { digest, executable });
    let pins = store.pin_tree(&[], &keys).await.unwrap();
    for (name, executable) in [("a", true), ("b", true), ("c", false), ("d", false)] {
        store.link(&FileKey { digest, executable }, &work, Path::new(name)).unwrap();
    }
    store.copy(&digest, &work, Path::new("e"), 0o640).unwrap();
    let metadata = |name: &str| fixture.work().join(name).metadata().unwrap();
    let inodes: std::collections::HashSet<_> = ["a", "c", "e"].map(|name| metadata(name).ino()).into();
    assert_eq!(inodes.len(), 3);
    assert_eq!((metadata("a").ino(), metadata("c").ino()), (metadata("b").ino(), metadata("d").ino()));
    let mode = |name| metadata(name).permissions().mode() & 0o7777;
    assert_eq!((mode("a"), mode("c"), mode("e")), (0o555, 0o444, 0o640));
    for name in ["a", "c"] {
        assert_eq!(metadata(name).modified().unwrap(), blob_mtime());
        assert_eq!(std::fs::read(fixture.work().join(name)).unwrap(), noise(5000, 1));
    }
    assert_eq!(store.stats().size_bytes, fixture.disk_bytes());
    assert_eq!(store.stats().blobs, 1, "a variant is no blob of its own");
    let error = store.link(&keys[0], &work, Path::new("a")).unwrap_err();
    assert!(matches!(error, StoreError::Path(error) if error.errno == Errno::EEXIST));
    drop(pins);
}
