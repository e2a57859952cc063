use std::path::Path;

use super::*;

// A kill loses nothing that was published, leaves no half, and what is not ours does not stay.
#[tokio::test]
async fn a_restart_finds_what_was_published() {
    let mut fixture = Fixture::new();
    let blob = *fixture.put(noise(5000, 1)).await.digest();
    let key = FileKey { digest: blob, executable: true };
    let pins = fixture.store().pin_tree(&[], &[key]).await.unwrap();
    let work = OsDir::open(&fixture.work()).unwrap();
    fixture.store().link(&key, &work, Path::new("tool")).unwrap();
    drop(pins);
    let size_bytes = fixture.store().stats().size_bytes;
    let shard = fixture.file("blobs", &blob);
    std::fs::write(shard.with_file_name("odd"), b"x").unwrap();
    std::fs::write(fixture.path("scratch/left"), b"x").unwrap();

    fixture.restart();
    assert_eq!((fixture.recovered.blobs, fixture.recovered.size_bytes), (1, size_bytes));
    assert_eq!(fixture.store().stats().size_bytes, fixture.disk_bytes());
    assert!(!shard.with_file_name("odd").exists() && !fixture.path("scratch/left").exists());
    let pin = fixture.store().pin(&blob).unwrap();
    assert_eq!(fixture.store().read(&pin, 0..9999).await.unwrap(), noise(5000, 1));
    assert_eq!(fixture.store().stats().writes, 0);
}

// After a crash of the machine no torn file is served or linked, though its name and size are right.
#[tokio::test]
async fn a_crash_of_the_machine_is_noticed() {
    let mut fixture = Fixture::new();
    let mut blobs = Vec::new();
    for seed in 0..10 {
        let data = noise(5000, seed);
        for function in [DigestFunction::Sha256, DigestFunction::Blake3] {
            let digest = function.digest(&data);
            fixture.store().put(digest, data.clone()).await.unwrap();
            blobs.push(digest);
        }
    }
    for torn in &blobs[..3] {
        let path = fixture.file("blobs", torn);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, vec![0; 5000]).unwrap();
    }
    fixture.restart_machine();
    assert_eq!(fixture.recovered.blobs, 17);
    assert_eq!(fixture.store().find_missing(&blobs), blobs[..3]);
    assert_eq!(fixture.store().stats().size_bytes, fixture.disk_bytes());
    fixture.root().vouch().unwrap();
    fixture.restart();
    assert_eq!(fixture.root().trust(), Trust::Trusted);
}
