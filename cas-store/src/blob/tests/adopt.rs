use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::*;

/// A file in the folder of an action.
fn output(fixture: &Fixture, data: &[u8]) -> PathBuf {
    let path = fixture.work().join("output");
    std::fs::write(&path, data).unwrap();
    path
}

fn adopt(fixture: &Fixture) -> (BlobPin, Adopted) {
    let work = OsDir::open(&fixture.work()).unwrap();
    fixture.store().adopt(DigestFunction::Sha256, &work, Path::new("output")).unwrap()
}

/// Asserts that the store holds `data` under its digest, as a blob like any other.
async fn assert_stored(fixture: &Fixture, pin: &BlobPin, data: &[u8]) {
    assert_eq!(*pin.digest(), sha(data));
    assert_eq!(fixture.store().read(pin, 0..u64::MAX).await.unwrap(), data);
    let metadata = fixture.file("blobs", pin.digest()).metadata().unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o444);
    assert_eq!(metadata.modified().unwrap(), blob_mtime());
    assert_eq!(metadata.uid(), nix::unistd::geteuid().as_raw());
    assert_eq!(metadata.nlink(), 1);
    fixture.settle();
}

#[tokio::test]
async fn a_finished_file_moves_in() {
    let fixture = Fixture::new();
    let path = output(&fixture, b"finished");
    let inode = path.metadata().unwrap().ino();
    let (pin, adopted) = adopt(&fixture);
    assert_eq!(adopted, Adopted::Moved);
    assert!(!path.exists());
    assert_eq!(fixture.file("blobs", pin.digest()).metadata().unwrap().ino(), inode);
    assert_stored(&fixture, &pin, b"finished").await;
    assert_eq!(fixture.store().stats().writes, 0);
}

// A process that outlives its action may hold its output open.
#[tokio::test]
async fn a_file_with_a_writer_is_copied() {
    let fixture = Fixture::new();
    let path = output(&fixture, b"before");
    let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
    let (pin, adopted) = adopt(&fixture);
    assert_eq!(adopted, Adopted::Copied);
    writer.write_all(b"AFTER!").unwrap();
    assert_stored(&fixture, &pin, b"before").await;
    assert_eq!(std::fs::read(&path).unwrap(), b"AFTER!");
}

#[tokio::test]
async fn a_file_with_a_second_name_is_copied() {
    let fixture = Fixture::new();
    let path = output(&fixture, b"before");
    std::fs::hard_link(&path, fixture.work().join("second")).unwrap();
    let (pin, adopted) = adopt(&fixture);
    assert_eq!(adopted, Adopted::Copied);
    for name in ["second", "output"] {
        std::fs::write(fixture.work().join(name), b"AFTER!").unwrap();
    }
    assert_stored(&fixture, &pin, b"before").await;
}

#[tokio::test]
async fn what_is_here_already_is_left_alone() {
    let fixture = Fixture::new();
    let first = fixture.put("same").await;
    let inode = fixture.file("blobs", first.digest()).metadata().unwrap().ino();
    output(&fixture, b"same");
    let (pin, adopted) = adopt(&fixture);
    assert_eq!(adopted, Adopted::Present);
    assert_eq!(fixture.file("blobs", pin.digest()).metadata().unwrap().ino(), inode);
    assert_stored(&fixture, &pin, b"same").await;

    let path = output(&fixture, b"same");
    let _writer = OpenOptions::new().write(true).open(path).unwrap();
    assert_eq!(adopt(&fixture).1, Adopted::Present, "not even a copy is kept");
    fixture.settle();
    output(&fixture, b"");
    assert_eq!(adopt(&fixture).1, Adopted::Present, "the empty blob");
}

// An input that is renamed to an output is an inode of the store.
#[tokio::test]
async fn an_input_as_an_output_is_the_blob_that_it_was() {
    let fixture = Fixture::new();
    let work = OsDir::open(&fixture.work()).unwrap();
    let first = fixture.put("input").await;
    let key = FileKey { digest: *first.digest(), executable: false };
    fixture.store().link(&key, &work, Path::new("output")).unwrap();
    let (pin, adopted) = adopt(&fixture);
    assert_eq!((adopted, pin.digest()), (Adopted::Present, first.digest()));
}

#[tokio::test]
async fn a_file_that_nobody_may_read_is_collected() {
    let fixture = Fixture::new();
    let path = output(&fixture, b"secret");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    let (pin, adopted) = adopt(&fixture);
    assert_eq!(adopted, Adopted::Moved);
    assert_stored(&fixture, &pin, b"secret").await;
}

#[tokio::test]
async fn root_takes_over_the_file_of_an_actions_user() {
    let fixture = Fixture::new();
    let path = output(&fixture, b"theirs");
    // An ordinary user may not, and root may not either where a user namespace knows no other.
    if std::os::unix::fs::chown(&path, Some(4711), Some(4711)).is_err() {
        return;
    }
    let (pin, adopted) = adopt(&fixture);
    assert_eq!(adopted, Adopted::Moved);
    assert_stored(&fixture, &pin, b"theirs").await;
}

// Only the bytes on disk are counted: what was allocated beyond the end counts, too.
#[tokio::test]
async fn odd_files_are_counted_as_they_are() {
    let fixture = Fixture::new();
    let path = output(&fixture, b"");
    let mut file = File::create(&path).unwrap();
    file.seek(std::io::SeekFrom::Start(1 << 20)).unwrap();
    file.write_all(b"end").unwrap();
    drop(file);
    let (pin, adopted) = adopt(&fixture);
    assert_eq!(adopted, Adopted::Moved);
    assert_eq!(pin.digest().size_bytes(), (1 << 20) + 3);
    assert!(fixture.store().stats().size_bytes >= fixture.disk_bytes());
}

#[tokio::test]
async fn what_is_no_file_is_refused() {
    let fixture = Fixture::new();
    let work = OsDir::open(&fixture.work()).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", fixture.work().join("link")).unwrap();
    std::fs::create_dir(fixture.work().join("folder")).unwrap();
    nix::unistd::mkfifo(&fixture.work().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for name in ["link", "folder", "fifo"] {
        let outcome = fixture.store().adopt(DigestFunction::Sha256, &work, Path::new(name));
        assert!(matches!(outcome, Err(StoreError::Path(error)) if error.errno == Errno::EINVAL), "{name}");
    }
}

#[tokio::test]
async fn a_file_of_another_file_system_is_copied() {
    let fixture = Fixture::new();
    let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else { return };
    if elsewhere.path().metadata().unwrap().dev() == fixture.work().metadata().unwrap().dev() {
        return;
    }
    std::fs::write(elsewhere.path().join("output"), b"far").unwrap();
    let dir = OsDir::open(elsewhere.path()).unwrap();
    let (pin, adopted) = fixture.store().adopt(DigestFunction::Sha256, &dir, Path::new("output")).unwrap();
    assert_eq!(adopted, Adopted::Copied);
    assert_stored(&fixture, &pin, b"far").await;
}
