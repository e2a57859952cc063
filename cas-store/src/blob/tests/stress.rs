use std::path::PathBuf;

use super::*;

const THREADS: u64 = 16;
const STEPS: u64 = 150;
const BLOBS: u64 = 60;

/// A generator that is the same on every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn content(n: u64) -> Bytes {
    noise(usize::try_from(100 + n * n * 9).unwrap(), n)
}

/// One random thing that callers do; whatever it yields is right.
async fn step(
    store: &Arc<BlobStore>,
    work: &OsDir,
    dice: &mut Dice,
    kind: u64,
    name: &str,
) -> Result<(), StoreError> {
    let n = dice.roll(BLOBS);
    let (data, digest) = (content(n), sha(&content(n)));
    match kind {
        0 | 1 => {
            let pin = store.put(digest, data.clone()).await?;
            assert_eq!(store.read(&pin, 0..u64::MAX).await?, data);
        }
        2 => {
            let batch = (n..n + 5).map(|n| (sha(&content(n)), content(n))).collect();
            store.put_many(batch).await.into_iter().find(Result::is_err).transpose()?;
        }
        3 => {
            if let Ingest::Write(mut writer) = store.ingest(digest).await? {
                writer.write(data.slice(..data.len() / 2)).await?;
                if dice.roll(2) == 0 {
                    writer.write(data.slice(data.len() / 2..)).await?;
                    writer.finish().await?;
                }
            }
        }
        4 => {
            std::fs::write(store_path(work, name), &data).unwrap();
            let adopted = store.adopt(DigestFunction::Sha256, work, name.as_ref());
            // Before the error is looked at: the name is needed again.
            let _ = std::fs::remove_file(store_path(work, name));
            assert_eq!(*adopted?.0.digest(), digest);
        }
        5 => {
            let key = FileKey { digest, executable: dice.roll(2) == 0 };
            if let Ok(_pins) = store.pin_tree(&[], &[key]).await {
                store.link(&key, work, name.as_ref())?;
                assert_eq!(std::fs::read(store_path(work, name)).unwrap(), data);
                std::fs::remove_file(store_path(work, name)).unwrap();
            }
        }
        6 => drop(store.charge(dice.roll(50_000)).await?),
        _ => {
            let digests: Vec<_> = (n..n + 10).map(|n| sha(&content(n))).collect();
            store.find_missing(&digests);
            let read = store.read_many(digests).await?;
            for (n, data) in (n..).zip(read) {
                assert!(data.is_none_or(|data| data == content(n)), "{n}");
            }
        }
    }
    Ok(())
}

fn store_path(work: &OsDir, name: &str) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}/{name}", Dir::fd(work).as_raw_fd()))
}

// Whatever happens at once, in a store that is always full: no byte is wrong, none is lost count of, and none is
// left behind.
#[test]
fn a_busy_store_keeps_its_books() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(4).build().unwrap();
    let _entered = runtime.enter();
    let limit_bytes = 400_000;
    let mut fixture = Fixture::with_limit(limit_bytes);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (fixture, runtime) = (&fixture, &runtime);
            scope.spawn(move || {
                let work = OsDir::open(&fixture.work()).unwrap();
                let (mut dice, name) = (Dice(thread), format!("t{thread}"));
                for _ in 0..STEPS {
                    let kind = dice.roll(8);
                    let store = fixture.store();
                    let outcome = runtime.block_on(step(&store, &work, &mut dice, kind, &name));
                    let is_fair = matches!(outcome, Ok(()) | Err(StoreError::NoSpace { .. }));
                    assert!(is_fair, "thread {thread}, kind {kind}: {outcome:?}");
                    assert!(fixture.store().stats().size_bytes <= limit_bytes);
                }
            });
        }
    });
    fixture.settle();
    let size_bytes = fixture.store().stats().size_bytes;
    assert!(size_bytes <= limit_bytes && size_bytes > 0);
    // Every file is what its name says.
    let blobs = fixture.store().stats().blobs;
    fixture.restart_machine();
    assert_eq!((fixture.recovered.blobs, fixture.recovered.size_bytes), (blobs, size_bytes));
}
