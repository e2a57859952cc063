use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use super::super::testing::{ManualClock, environment};
use super::*;

/// Polls `future` at most `polls_max` times and then drops it.
async fn dropped_after<T>(future: impl Future<Output = T>, polls_max: usize) -> Option<T> {
    let mut future = pin!(future);
    let mut polls = 0;
    std::future::poll_fn(move |context| {
        if polls == polls_max {
            return Poll::Ready(None);
        }
        polls += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            // The next poll is the last for a future that is never woken again, too.
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

async fn ingest_in_chunks(store: &Arc<BlobStore>, data: &Bytes) -> Result<BlobPin, StoreError> {
    match store.ingest(sha(data)).await? {
        Ingest::Present(pin) => Ok(pin),
        Ingest::Write(mut writer) => {
            for start in (0..data.len()).step_by(300_000) {
                writer.write(data.slice(start..data.len().min(start + 300_000))).await?;
            }
            writer.finish().await
        }
    }
}

// Wherever a caller leaves, nothing half is visible, nothing is left over, and the next caller succeeds.
#[tokio::test]
async fn an_ingest_can_be_dropped_at_every_await() {
    let fixture = Fixture::new();
    let store = fixture.store();
    for polls_max in 0.. {
        let data = noise(1_000_000, polls_max as u64);
        let pin = dropped_after(ingest_in_chunks(&store, &data), polls_max).await;
        let is_complete = pin.is_some();
        let again = ingest_in_chunks(&store, &data).await.unwrap();
        assert_eq!(store.read(&again, 0..1_000_000).await.unwrap(), data);
        drop((pin, again));
        fixture.settle();
        if is_complete {
            assert!(polls_max >= 4, "there were awaits to be dropped at");
            break;
        }
    }
}

#[tokio::test]
async fn a_put_can_be_dropped_at_every_await() {
    let fixture = Fixture::new();
    let store = fixture.store();
    for polls_max in 0.. {
        let blobs: Vec<_> = (0..5).map(|n| noise(9000, 100 * polls_max as u64 + n)).collect();
        let batch = || blobs.iter().map(|data| (sha(data), data.clone())).collect();
        let outcomes = dropped_after(store.put_many(batch()), polls_max).await;
        let is_complete = outcomes.is_some();
        assert!(store.put_many(batch()).await.iter().all(Result::is_ok));
        fixture.settle();
        if is_complete {
            break;
        }
    }
}

// A write whose caller left was accepted: the writer goes on with the next chunk.
#[tokio::test]
async fn a_writer_survives_a_dropped_write() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let data = noise(900_000, 1);
    let Ingest::Write(mut writer) = store.ingest(sha(&data)).await.unwrap() else { panic!("present") };
    dropped_after(writer.write(data.slice(..300_000)), 1).await;
    writer.write(data.slice(300_000..)).await.unwrap();
    let pin = writer.finish().await.unwrap();
    assert_eq!(store.read(&pin, 0..900_000).await.unwrap(), data);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_ingests_of_one_digest_cost_one_write() {
    let fixture = Fixture::new();
    let data = noise(1 << 20, 1);
    let callers: Vec<_> = (0..32)
        .map(|caller| {
            let (store, data) = (fixture.store(), data.clone());
            tokio::spawn(async move {
                match caller % 3 {
                    0 => ingest_in_chunks(&store, &data).await,
                    1 => store.put(sha(&data), data).await,
                    _ => store.put_many(vec![(sha(&data), data)]).await.remove(0),
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    assert_eq!(fixture.store().stats().writes, 1);
    fixture.settle();
}

#[tokio::test]
async fn when_the_writer_fails_the_next_takes_over() {
    let fixture = Fixture::new();
    let (store, data) = (fixture.store(), noise(5000, 1));
    for is_dropped in [true, false] {
        let Ingest::Write(mut writer) = store.ingest(sha(&data)).await.unwrap() else { panic!("present") };
        let mut waiting = Box::pin(store.put(sha(&data), data.clone()));
        assert!(futures::poll!(&mut waiting).is_pending(), "somebody writes it");
        if is_dropped {
            drop(writer);
        } else {
            writer.write(noise(5000, 2)).await.unwrap();
            assert!(matches!(writer.finish().await, Err(StoreError::Mismatch { .. })));
        }
        drop(waiting.await.unwrap());
        fixture.store().space.evict_key(&ledger::SlotKey::Blob(sha(&data)));
    }
    assert_eq!(store.stats().writes, 2);
    fixture.settle();
}

// A client that sends nothing must not keep the others from storing the blob.
#[tokio::test]
async fn a_stalled_writer_is_overtaken() {
    let clock = Arc::new(ManualClock::default());
    let fixture = Fixture::with_environment(1 << 20, Environment { clock: clock.clone(), ..environment() });
    let (store, data) = (fixture.store(), noise(5000, 1));
    let Ingest::Write(mut stalled) = store.ingest(sha(&data)).await.unwrap() else { panic!("present") };
    let waiting = tokio::spawn({
        let (store, data) = (store.clone(), data.clone());
        async move { store.put(sha(&data), data).await }
    });
    clock.wake_sleepers().await;
    waiting.await.unwrap().unwrap();
    assert!(store.pin(&sha(&data)).is_some());
    stalled.write(data).await.unwrap();
    stalled.finish().await.unwrap();
    assert_eq!(store.stats().writes, 1, "what came late was there already");
    fixture.settle();
}

async fn begin(store: &Arc<BlobStore>, data: &Bytes, written_bytes: usize) -> BlobWriter {
    let Ingest::Write(mut writer) = store.ingest(sha(data)).await.unwrap() else { panic!("it is here") };
    writer.write(data.slice(..written_bytes)).await.unwrap();
    writer
}

// What is set aside holds the space of what is written, and nobody up; who goes on with it completes the blob.
#[tokio::test]
async fn a_blob_is_set_aside_and_taken_up() {
    let fixture = Fixture::new();
    let store = fixture.store();
    for written_bytes in [0, 1, 300_000, 1_000_000] {
        let data = noise(1_000_000, written_bytes as u64);
        let before_bytes = store.stats().size_bytes;
        let partial = begin(&store, &data, written_bytes).await.suspend().await.unwrap();
        assert_eq!((partial.digest(), partial.written_bytes()), (sha(&data), written_bytes as u64));
        let held_bytes = store.stats().size_bytes - before_bytes;
        assert!(held_bytes < written_bytes as u64 + 4096 + 1, "{written_bytes}: {held_bytes}");
        assert!(store.pin(&sha(&data)).is_none());
        let Ingest::Write(mut writer) = store.resume(partial).await.unwrap() else { panic!("it is here") };
        assert_eq!(writer.flushed_bytes(), written_bytes as u64);
        writer.write(data.slice(written_bytes..)).await.unwrap();
        let pin = writer.finish().await.unwrap();
        assert_eq!(store.read(&pin, 0..1_000_000).await.unwrap(), data);
        fixture.settle();
    }
}

// A beginning stands in nobody's way, and is not needed any more when somebody else was faster.
#[tokio::test]
async fn a_blob_that_is_set_aside_is_written_by_others() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let data = noise(500_000, 1);
    let partial = begin(&store, &data, 300_000).await.suspend().await.unwrap();
    ingest_in_chunks(&store, &data).await.unwrap();
    assert!(matches!(store.resume(partial).await.unwrap(), Ingest::Present(_)));
    let other = noise(500_000, 2);
    drop(begin(&store, &other, 300_000).await.suspend().await.unwrap());
    fixture.settle();
    assert!(store.pin(&sha(&other)).is_none());
}

// What was written before counts: in the hash, and in the length.
#[tokio::test]
async fn a_blob_that_was_taken_up_is_verified_as_a_whole() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let data = noise(500_000, 1);
    for (begun, rest) in
        [(noise(300_000, 2), data.slice(300_000..)), (data.slice(..300_000), data.slice(299_999..))]
    {
        let Ingest::Write(mut writer) = store.ingest(sha(&data)).await.unwrap() else { panic!("it is here") };
        writer.write(begun).await.unwrap();
        let partial = writer.suspend().await.unwrap();
        let Ingest::Write(mut writer) = store.resume(partial).await.unwrap() else { panic!("it is here") };
        let outcome = match writer.write(rest).await {
            Ok(()) => writer.finish().await.map(drop),
            Err(error) => Err(error),
        };
        assert!(matches!(outcome, Err(StoreError::Mismatch { .. })), "{outcome:?}");
        fixture.settle();
    }
}
