use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc;
use futures::{TryStreamExt as _, stream};
use longshore_cas_store::digest::DigestFunction;
use tokio::task::JoinHandle;

use super::super::limits::{
    IDLE_MAX, KEPT_LOOK_EVERY, KEPT_LOOKS_MAX, SILENCE_MAX, STREAM_WINDOW_BYTES, WAITING_BYTES_A_CONNECTION,
};
use super::super::testing::{Fixture, ManualClock};
use super::*;

const DATA: &[u8] = b"0123456789";
const UPLOADS_MAX: usize = 4;

fn upload_name(data: &[u8]) -> String {
    format!("main/uploads/u/blobs/{}", DigestFunction::Sha256.digest(data))
}

fn part(write_offset: i64, data: &[u8], finish_write: bool) -> WriteRequest {
    WriteRequest { resource_name: upload_name(DATA), write_offset, finish_write, data: data.to_vec() }
}

/// Sends `parts`; what is left of them and the outcome.
async fn send(fixture: &Fixture, parts: Vec<WriteRequest>) -> (usize, Result<i64, Code>) {
    let service = ByteStreamService::new(fixture.store.clone(), &fixture.environment, UPLOADS_MAX);
    let mut requests = stream::iter(parts.into_iter().map(Ok));
    let outcome = service.receive(None, Share::default(), &mut requests).await;
    (requests.count().await, outcome.map_err(|status| status.code()))
}

fn is_present(fixture: &Fixture) -> bool {
    fixture.store.pin(&DigestFunction::Sha256.digest(DATA)).is_some()
}

#[tokio::test]
async fn a_write_in_parts_becomes_the_blob() {
    let fixture = Fixture::new();
    let mut later = part(7, &DATA[7..], false);
    later.resource_name.clear();
    let parts = vec![part(0, &DATA[..3], false), part(3, &DATA[3..7], false), later, part(10, b"", true)];
    assert_eq!(send(&fixture, parts).await, (0, Ok(10)));
    assert!(is_present(&fixture));
}

// Nothing that breaks the rules becomes a blob.
#[tokio::test]
async fn wrong_writes_are_refused_and_leave_nothing() {
    let fixture = Fixture::new();
    let mut renamed = part(3, &DATA[3..], true);
    renamed.resource_name = upload_name(b"another");
    let cases = [
        ("no request", vec![]),
        ("an offset at the start", vec![part(3, &DATA[3..], true)]),
        ("a gap", vec![part(0, &DATA[..3], false), part(4, &DATA[4..], true)]),
        ("a negative offset", vec![part(-1, DATA, true)]),
        ("another name", vec![part(0, &DATA[..3], false), renamed]),
        ("too short", vec![part(0, &DATA[..9], true)]),
        ("too long", vec![part(0, b"0123456789a", true)]),
        ("another hash", vec![part(0, b"012345678x", true)]),
        ("more after the end", vec![part(0, DATA, true), part(10, b"", true)]),
    ];
    for (what, parts) in cases {
        assert_eq!(send(&fixture, parts).await.1, Err(Code::InvalidArgument), "{what}");
        assert!(!is_present(&fixture), "{what}");
    }
}

// Too much is noticed when it comes, not at the end of the stream.
#[tokio::test]
async fn an_overlong_write_is_refused_without_reading_the_rest() {
    let fixture = Fixture::new();
    let parts = vec![part(0, b"0123456789a", false), part(11, b"b", false), part(12, b"c", true)];
    assert_eq!(send(&fixture, parts).await, (2, Err(Code::InvalidArgument)));
}

#[tokio::test]
async fn a_blob_that_is_here_is_answered_at_once() {
    let fixture = Fixture::new();
    fixture.put(DATA).await;
    assert_eq!(send(&fixture, vec![part(0, b"01", false), part(2, b"2", false)]).await, (1, Ok(10)));
}

#[tokio::test]
async fn the_empty_blob_can_be_written() {
    let fixture = Fixture::new();
    let request = WriteRequest { resource_name: upload_name(b""), finish_write: true, ..Default::default() };
    assert_eq!(send(&fixture, vec![request]).await, (0, Ok(0)));
}

async fn fetch(fixture: &Fixture, data: &[u8], read_offset: i64, read_limit: i64) -> Result<Vec<u8>, Code> {
    let resource_name = format!("blobs/{}", DigestFunction::Sha256.digest(data));
    let request = ReadRequest { resource_name, read_offset, read_limit };
    let service = ByteStreamService::new(fixture.store.clone(), &fixture.environment, UPLOADS_MAX);
    let parts = service.read(Request::new(request)).await.map_err(|status| status.code())?.into_inner();
    let parts: Vec<_> = parts.try_collect().await.map_err(|status| status.code())?;
    Ok(parts.into_iter().flat_map(|part| part.data).collect())
}

#[tokio::test]
async fn ranges_are_cut_at_the_end_and_refused_beyond_it() {
    let fixture = Fixture::new();
    fixture.put(DATA).await;
    let cases = [
        (0, 0, Ok(DATA)),
        (3, 0, Ok(&DATA[3..])),
        (3, 2, Ok(&DATA[3..5])),
        (3, 100, Ok(&DATA[3..])),
        (10, 0, Ok(&DATA[10..])),
        (11, 0, Err(Code::OutOfRange)),
        (-1, 0, Err(Code::OutOfRange)),
        (0, -1, Err(Code::InvalidArgument)),
    ];
    for (offset, limit, expected) in cases {
        let read = fetch(&fixture, DATA, offset, limit).await;
        assert_eq!(read, expected.map(<[u8]>::to_vec), "{offset} {limit}");
    }
    assert_eq!(fetch(&fixture, b"absent", 0, 0).await, Err(Code::NotFound));
    assert_eq!(fetch(&fixture, b"", 0, 0).await, Ok(Vec::new()));
}

/// A service whose time passes when it is told to.
struct Timed {
    fixture: Fixture,
    clock: Arc<ManualClock>,
    service: ByteStreamService,
}

impl Timed {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::default());
        let fixture = Fixture::with_clock(clock.clone());
        let service = ByteStreamService::new(fixture.store.clone(), &fixture.environment, UPLOADS_MAX);
        Self { fixture, clock, service }
    }

    async fn send(&self, parts: Vec<Result<WriteRequest, Status>>) -> Result<i64, Code> {
        let mut requests = stream::iter(parts);
        self.service.receive(None, Share::default(), &mut requests).await.map_err(|status| status.code())
    }

    fn ask(&self) -> Result<QueryWriteStatusResponse, Code> {
        self.service.write_status(&upload_name(DATA)).map_err(|failure| failure.code())
    }

    /// Lets time pass until nothing is known of the upload; how often the clock was looked at, at most.
    async fn wait_in_vain(&self) -> u32 {
        let mut looks = 0;
        while self.ask() != Err(Code::NotFound) {
            self.clock.has_sleeper().await;
            self.clock.advance(KEPT_LOOK_EVERY);
            looks += 1;
            tokio::task::yield_now().await;
        }
        looks
    }
}

fn status(committed_size: i64, complete: bool) -> QueryWriteStatusResponse {
    QueryWriteStatusResponse { committed_size, complete }
}

#[tokio::test]
async fn a_write_that_ends_early_or_breaks_off_is_gone_on_with() {
    let timed = Timed::new();
    assert_eq!(timed.ask(), Err(Code::NotFound));
    assert_eq!(timed.send(vec![Ok(part(0, &DATA[..3], false))]).await, Ok(3));
    assert_eq!(timed.ask(), Ok(status(3, false)));
    let broken = vec![Ok(part(3, &DATA[3..7], false)), Err(Status::cancelled("gone"))];
    assert_eq!(timed.send(broken).await, Err(Code::Cancelled));
    assert_eq!(timed.ask(), Ok(status(7, false)));
    assert_eq!(timed.send(vec![Ok(part(6, &DATA[6..], true))]).await, Err(Code::InvalidArgument));
    assert_eq!(timed.ask(), Ok(status(7, false)));
    assert_eq!(timed.send(vec![Ok(part(7, &DATA[7..], true))]).await, Ok(10));
    assert_eq!(timed.ask(), Ok(status(10, true)));
}

// Clients that do not ask how far they came begin anew.
#[tokio::test]
async fn a_write_that_begins_anew_owes_nothing_to_the_last_one() {
    let timed = Timed::new();
    assert_eq!(timed.send(vec![Ok(part(0, b"wrong", false))]).await, Ok(5));
    assert_eq!(timed.send(vec![Ok(part(0, b"0", false))]).await, Ok(1));
    assert_eq!(timed.ask(), Ok(status(1, false)));
    assert_eq!(timed.send(vec![Ok(part(0, DATA, true))]).await, Ok(10));
}

#[tokio::test]
async fn what_nobody_goes_on_with_is_given_up() {
    let timed = Timed::new();
    let before_bytes = timed.fixture.store.stats().size_bytes;
    timed.send(vec![Ok(part(0, &DATA[..3], false))]).await.unwrap();
    assert!(timed.fixture.store.stats().size_bytes > before_bytes);
    assert!(timed.wait_in_vain().await >= KEPT_LOOKS_MAX);
    // The file is freed by the pool.
    while timed.fixture.store.stats().size_bytes > before_bytes {
        tokio::task::yield_now().await;
    }
}

// A client that went without a word holds its name no longer than that.
#[tokio::test]
async fn a_silent_stream_is_ended_and_its_upload_is_kept() {
    let timed = Timed::new();
    let (sender, mut requests) = mpsc::unbounded();
    sender.unbounded_send(Ok(part(0, &DATA[..3], false))).unwrap();
    let silence = async {
        timed.clock.has_sleeper().await;
        timed.clock.advance(SILENCE_MAX);
    };
    let (outcome, ()) = futures::join!(timed.service.receive(None, Share::default(), &mut requests), silence);
    assert_eq!(outcome.unwrap_err().code(), Code::Aborted);
    assert_eq!(timed.ask(), Ok(status(3, false)));
}

// The stream that came last is the one that the client knows of.
#[tokio::test]
async fn a_newcomer_takes_the_name_over() {
    let timed = Timed::new();
    let (sender, mut old) = mpsc::unbounded();
    sender.unbounded_send(Ok(part(0, &DATA[..3], false))).unwrap();
    let old = timed.service.receive(None, Share::default(), &mut old);
    let new = async {
        while timed.ask() == Err(Code::NotFound) {
            tokio::task::yield_now().await;
        }
        timed.clock.has_sleeper().await;
        // Nothing of it is in a file yet, which is what is committed.
        assert_eq!(timed.ask(), Ok(status(0, false)));
        timed.send(vec![Ok(part(0, &DATA[..4], false))]).await
    };
    let (old, new) = futures::join!(old, new);
    assert_eq!((old.unwrap_err().code(), new), (Code::Aborted, Ok(4)));
    assert_eq!(timed.ask(), Ok(status(4, false)));
}

/// An upload of `bytes` bytes that has begun, and does not go on until it is told to.
fn open(
    timed: &Timed,
    name: &str,
    bytes: u64,
) -> (mpsc::UnboundedSender<Result<WriteRequest, Status>>, JoinHandle<Code>) {
    let hash = DigestFunction::Sha256.digest(name.as_bytes()).hash_hex();
    let resource_name = format!("uploads/{name}/blobs/{hash}/{bytes}");
    let (sender, mut requests) = mpsc::unbounded();
    let first = WriteRequest { resource_name, data: DATA.to_vec(), ..Default::default() };
    sender.unbounded_send(Ok(first)).unwrap();
    let service = timed.service.clone();
    let call = tokio::spawn(async move {
        service
            .receive(None, Share::default(), &mut requests)
            .await
            .map_or_else(|status| status.code(), |_| Code::Ok)
    });
    (sender, call)
}

// However many uploads stand still, the next one begins.
#[tokio::test]
async fn the_upload_that_stood_still_longest_gives_way() {
    let timed = Timed::new();
    let mut calls = Vec::new();
    for name in ["first", "second", "third", "fourth"] {
        calls.push(open(&timed, name, 100));
        tokio::task::yield_now().await;
    }
    // Until it has taken its step, it may be the one.
    let step = WriteRequest { write_offset: 10, data: DATA.to_vec(), ..Default::default() };
    calls[0].0.unbounded_send(Ok(step)).unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    calls.push(open(&timed, "fifth", 100));
    let (_sender, second) = calls.remove(1);
    assert_eq!(second.await.unwrap(), Code::Aborted);
    for (_, call) in &calls {
        assert!(!call.is_finished());
    }
}

// What an upload has set aside on the disk, and does not use, is not kept from others for long.
#[tokio::test]
async fn an_upload_that_stands_still_gives_up_its_space() {
    let timed = Timed::new();
    let most = timed.fixture.store.blob_size_bytes_max() - (1 << 20);
    let (_sender, large) = open(&timed, "large", most);
    timed.clock.has_sleeper().await;
    let (_other_sender, other) = open(&timed, "other", most);
    let mut waited = Duration::ZERO;
    while !large.is_finished() && waited < SILENCE_MAX / 2 {
        timed.clock.advance(Duration::from_secs(1));
        waited += Duration::from_secs(1);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
    assert!(waited >= IDLE_MAX, "it might have gone on");
    assert_eq!(large.await.unwrap(), Code::Aborted);
    assert!(!other.is_finished());
}

// A stream that waits is not read, and what its client has sent fills the connection: also for the one it waits for.
#[tokio::test]
async fn uploads_of_one_blob_that_wait_leave_room_on_their_connection() {
    const WAITING_MAX: usize = WAITING_BYTES_A_CONNECTION / STREAM_WINDOW_BYTES as usize;
    let data = Bytes::from(vec![7; DATA.len() + STREAM_WINDOW_BYTES as usize]);
    let (beginning, rest) = data.split_at(DATA.len());
    let digest = DigestFunction::Sha256.digest(&data);
    let timed = Timed::new();
    let service =
        ByteStreamService::new(timed.fixture.store.clone(), &timed.fixture.environment, 2 * WAITING_MAX);
    let (one, other) = (Share::default(), Share::default());
    let upload = |share: &Share| {
        let resource_name = format!("uploads/{}/blobs/{digest}", uuid::Uuid::new_v4());
        let first = WriteRequest { resource_name, data: beginning.to_vec(), ..Default::default() };
        let (sender, mut requests) = mpsc::unbounded();
        sender.unbounded_send(Ok(first)).unwrap();
        let (service, share) = (service.clone(), share.clone());
        let call = async move { service.receive(None, share, &mut requests).await.map_err(|s| s.code()) };
        (sender, tokio::spawn(call))
    };
    let (_idle, first) = upload(&one);
    timed.clock.has_sleeper().await;
    let waiting: Vec<_> = (0..WAITING_MAX).map(|_| upload(&one)).collect();
    let (_waits, elsewhere) = upload(&other);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!elsewhere.is_finished() && waiting.iter().all(|(_, call)| !call.is_finished()));

    let whole = digest.size_bytes().cast_signed();
    let (sender, beside) = upload(&one);
    let write_offset = i64::try_from(beginning.len()).unwrap();
    let last = WriteRequest { write_offset, data: rest.to_vec(), finish_write: true, ..Default::default() };
    sender.unbounded_send(Ok(last)).unwrap();
    drop(sender);
    assert_eq!(beside.await.unwrap(), Ok(whole));
    assert_eq!(elsewhere.await.unwrap(), Ok(whole));
    for (_, call) in waiting {
        assert_eq!(call.await.unwrap(), Ok(whole));
    }
    assert!(!first.is_finished());
}

#[test]
fn a_header_must_agree_where_there_is_one() {
    assert_eq!(check_header(None, "blobs"), Ok(()));
    assert_eq!(check_header(Some("blobs"), "blobs"), Ok(()));
    assert!(check_header(Some("other"), "blobs").is_err());
}
