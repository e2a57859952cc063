//! `ByteStream.Write` of blobs as they are.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::stream;
use longshore_cas_store::digest::DigestFunction;
use longshore_proto::bytestream::WriteRequest;
use longshore_tests::client::Client;
use longshore_tests::longshore::{Launch, Longshore};
use tonic::{Code, Status};

use crate::streams::{FLUSH_BYTES, OpenWrite, ask, committed, part, parts, write, write_whole};
use crate::support::{FEW_BYTES, files_in, refused, shared_client, unique};

/// How long a server may take to see what a client did.
const PATIENCE: Duration = Duration::from_mins(1);

/// Beginnings that are kept at once.
const KEPT_MAX: usize = 256;

/// Data that nobody has, and a name for their upload.
fn upload(client: &Client, size: usize) -> (Vec<u8>, String) {
    let data = unique(size);
    let name = client.write_name(&client.function().digest(&data));
    (data, name)
}

/// Checks that a write was refused, and that neither blob nor beginning is left of it.
async fn nothing_of(client: &Client, name: &str, outcome: Result<i64, Status>, words: &[&str]) -> Result<()> {
    refused(outcome, Code::InvalidArgument, words);
    refused(ask(client, name).await, Code::NotFound, &["not in the store"]);
    Ok(())
}

/// Later requests repeat the resource name or leave it out; another one is `INVALID_ARGUMENT`.
#[tokio::test]
async fn bsw_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (data, name) = upload(&client, 1000);
    let mut requests = parts(&name, &data, 0, 300);
    requests[1].resource_name.clear();
    requests[3].resource_name.clear();
    assert_eq!(write(&client, requests).await?, 1000);

    let (_, other) = upload(&client, 1000);
    for at in 1..4 {
        let (data, name) = upload(&client, 1000);
        for another in [&other, &format!("{name}/more"), &name[1..], "x"] {
            let mut requests = parts(&name, &data, 0, 300);
            another.clone_into(&mut requests[at].resource_name);
            nothing_of(&client, &name, write(&client, requests).await, &["resource_name"]).await?;
        }
    }
    // The first one has to have it.
    let mut requests = parts(&name, &data, 0, 300);
    requests[0].resource_name.clear();
    refused(write(&client, requests).await, Code::InvalidArgument, &["resource_name"]);
    Ok(())
}

/// Later requests go on where the one before them ended, or are `INVALID_ARGUMENT`.
#[tokio::test]
async fn bsw_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for at in 1..4 {
        for offset in [0, 300 * at - 1, 300 * at + 1, -1, i64::MAX, i64::MIN] {
            let (data, name) = upload(&client, 1000);
            let mut requests = parts(&name, &data, 0, 300);
            requests[usize::try_from(at)?].write_offset = offset;
            let words = ["write_offset", &offset.to_string()];
            nothing_of(&client, &name, write(&client, requests).await, &words).await?;
        }
    }
    Ok(())
}

/// The first offset is the size that is committed; a gap is never filled.
///
/// Deviation: an offset of 0 is always taken, and begins the upload anew: the remote-apis-sdks try again under the same
/// name without asking how far they came.
#[tokio::test]
async fn bsw_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for offset in [1, 500, 1000, 1001, i64::MAX, -1] {
        let (data, name) = upload(&client, 1000);
        let request = WriteRequest { write_offset: offset, ..part(&name, 0, &data[500..], true) };
        nothing_of(&client, &name, write(&client, vec![request]).await, &["write_offset"]).await?;
    }
    let (data, name) = upload(&client, 1000);
    assert_eq!(write(&client, vec![part(&name, 0, &data[..400], false)]).await?, 400);
    for offset in [1, 399, 401, 1000] {
        let outcome = write(&client, vec![part(&name, offset, &data[offset..], true)]).await;
        refused(outcome, Code::InvalidArgument, &["write_offset", &offset.to_string(), "400"]);
        assert_eq!(ask(&client, &name).await?, (400, false), "what was there stays");
    }
    assert_eq!(write(&client, vec![part(&name, 400, &data[400..], true)]).await?, 1000);

    let (data, name) = upload(&client, 1000);
    assert_eq!(write(&client, vec![part(&name, 0, &unique(700), false)]).await?, 700);
    assert_eq!(write(&client, vec![part(&name, 0, &data[..100], false)]).await?, 100);
    assert_eq!(ask(&client, &name).await?, (100, false));
    assert_eq!(write_whole(&client, &name, &data).await?, 1000);
    assert_eq!(client.read(&client.function().digest(&data)).await?, data);
    Ok(())
}

/// Nothing may follow `finish_write`: what does is `INVALID_ARGUMENT`.
#[tokio::test]
async fn bsw_04() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for more in [&b""[..], b"x"] {
        for is_finish in [false, true] {
            let (data, name) = upload(&client, 1000);
            let mut requests = parts(&name, &data, 0, 600);
            requests.push(part(&name, 1000, more, is_finish));
            nothing_of(&client, &name, write(&client, requests).await, &["finish_write"]).await?;
        }
    }
    // Clients that do not close their side are answered all the same.
    let (data, name) = upload(&client, 1000);
    let mut open = OpenWrite::begin(&client, part(&name, 0, &data, true));
    assert_eq!(open.answered().await?, 1000);
    Ok(())
}

/// A finished upload has its whole size committed, and everybody sees the blob.
#[tokio::test]
async fn bsw_05() -> Result<()> {
    let (longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        for (size, part_bytes) in [
            (FEW_BYTES, FEW_BYTES),
            (1000, 7),
            (FLUSH_BYTES, FLUSH_BYTES),
            (FLUSH_BYTES + 1, 1 << 14),
            (3 << 20, 1 << 20),
            (7 << 20, 7 << 20),
        ] {
            let (data, name) = upload(&client, size);
            let digest = function.digest(&data);
            assert_eq!(client.missing([&digest]).await?, [digest]);
            let committed = write(&client, parts(&name, &data, 0, part_bytes)).await?;
            assert_eq!(committed, i64::try_from(size)?, "{function} {size}");
            assert_eq!(client.missing([&digest]).await?, []);
            let other = longshore.client().await?.with_function(function);
            assert_eq!(other.read(&digest).await?, data);
        }
    }
    Ok(())
}

/// Another hash or length is `INVALID_ARGUMENT`, and nothing of it is kept.
#[tokio::test]
async fn bsw_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        for size in [1000, FLUSH_BYTES * 3] {
            let (data, name) = upload(&client, size);
            let digest = function.digest(&data);
            let mut changed = data.clone();
            changed[size / 2] ^= 1;
            for wrong in [changed, data[..size - 1].to_vec(), Vec::new(), unique(size)] {
                let outcome = write_whole(&client, &name, &wrong).await;
                nothing_of(&client, &name, outcome, &["does not match", &digest.hash_hex()]).await?;
                assert_eq!(client.missing([&digest]).await?, [digest]);
            }
            // The name is not spoilt.
            assert_eq!(write_whole(&client, &name, &data).await?, i64::try_from(size)?);
        }
    }
    Ok(())
}

/// More bytes than the digest says are `INVALID_ARGUMENT` as soon as they come.
#[tokio::test]
async fn bsw_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for size in [0, FEW_BYTES, 1000, FLUSH_BYTES * 3] {
        let (data, name) = upload(&client, size + 1);
        let digest = client.function().digest(&data[..size]);
        let name = name.replace(&client.function().digest(&data).to_string(), &digest.to_string());
        // The stream stays open: the answer does not wait for its end.
        let mut open = OpenWrite::begin(&client, part(&name, 0, &data[..size / 2], false));
        open.send(part(&name, size / 2, &data[size / 2..], false));
        let outcome = open.answered().await;
        if size == 0 {
            // Of the empty blob nothing is needed.
            assert_eq!(outcome?, 0);
        } else {
            nothing_of(&client, &name, outcome, &["more than", &size.to_string()]).await?;
        }
    }
    Ok(())
}

/// A stream that is closed without `finish_write` has committed what came, and the blob is not visible.
#[tokio::test]
async fn bsw_08() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for size in [FEW_BYTES, 1000, FLUSH_BYTES * 3] {
        for sent in [0, size / 2, size] {
            let (data, name) = upload(&client, size);
            let digest = client.function().digest(&data);
            let requests = vec![part(&name, 0, &data[..sent], false)];
            assert_eq!(write(&client, requests).await?, i64::try_from(sent)?);
            assert_eq!(client.missing([&digest]).await?, [digest]);
            if sent == 0 {
                refused(ask(&client, &name).await, Code::NotFound, &[]);
            } else {
                assert_eq!(ask(&client, &name).await?, (i64::try_from(sent)?, false));
            }
        }
    }
    Ok(())
}

/// An upload of a blob that is here ends at once with its whole size, also where it came here in the middle.
#[tokio::test]
async fn bsw_09() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let (data, name) = upload(&client, 1000);
        client.put(data.clone()).await?;
        for first in
            [part(&name, 0, &data[..1], false), part(&name, 0, b"", false), part(&name, 0, b"other", true)]
        {
            let mut open = OpenWrite::begin(&client, first);
            assert_eq!(open.answered().await?, 1000);
        }
        // Whatever the offset was.
        assert_eq!(write(&client, vec![part(&name, 999, &data[999..], true)]).await?, 1000);
    }
    let (data, name) = upload(&client, FLUSH_BYTES * 4);
    let mut open = OpenWrite::begin(&client, part(&name, 0, &data[..FLUSH_BYTES], false));
    committed(&client, &name, 1).await?;
    // Somebody else, who does not wait for this one for ever.
    let other = client.write_name(&client.function().digest(&data));
    let size = i64::try_from(data.len())?;
    assert_eq!(write_whole(&client, &other, &data).await?, size);
    open.send(part(&name, FLUSH_BYTES, b"x", false));
    assert_eq!(open.answered().await?, size);
    assert_eq!(ask(&client, &name).await?, (size, true));
    Ok(())
}

/// A client that goes on sending after such an early answer sees the answer, and no error.
#[tokio::test]
async fn bsw_10() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let size = 8 << 20;
    let (data, name) = upload(&client, size);
    client.put(data.clone()).await?;
    let uploads = (0..20).map(|_| write(&client, parts(&name, &data, 0, 1 << 16)));
    for outcome in futures::future::join_all(uploads).await {
        assert_eq!(outcome?, i64::try_from(size)?);
    }
    Ok(())
}

/// Requests without data are fine anywhere.
#[tokio::test]
async fn bsw_11() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (data, name) = upload(&client, 1000);
    let mut requests = vec![part(&name, 0, b"", false); 3];
    for request in parts(&name, &data, 0, 300) {
        let end = usize::try_from(request.write_offset)? + request.data.len();
        requests.push(WriteRequest { finish_write: false, ..request });
        requests.push(part("", end, b"", false));
    }
    requests.push(part(&name, 1000, b"", true));
    assert_eq!(write(&client, requests).await?, 1000);
    Ok(())
}

/// The empty blob is one request.
#[tokio::test]
async fn bsw_12() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let name = client.write_name(&function.digest(b""));
        assert_eq!(write(&client, vec![part(&name, 0, b"", true)]).await?, 0);
        assert_eq!(ask(&client, &name).await?, (0, true));
        // No bytes of another hash are another blob.
        let zeros = "0".repeat(2 * function.hash_len());
        let name = name.replace(&function.digest(b"").hash_hex(), &zeros);
        let outcome = write(&client, vec![part(&name, 0, b"", true)]).await;
        refused(outcome, Code::InvalidArgument, &["does not match"]);
    }
    Ok(())
}

/// What a client leaves behind is kept for a while, in bounded number and size, and leaves no file.
///
/// The while, ten minutes, passes in a test of the module.
#[tokio::test]
async fn bsw_13() -> Result<()> {
    let flags = vec!["--max-size".to_owned(), "64MiB".to_owned()];
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    // Cancelled, in the middle of a stream.
    let (data, name) = upload(&client, FLUSH_BYTES * 4);
    let open = OpenWrite::begin(&client, part(&name, 0, &data[..=FLUSH_BYTES], false));
    committed(&client, &name, 1).await?;
    drop(open);
    assert_eq!(committed(&client, &name, i64::try_from(FLUSH_BYTES + 1)?).await?, 262_145);
    // Too many: the oldest goes.
    let mut names = vec![name];
    while names.len() < KEPT_MAX + 2 {
        let (data, name) = upload(&client, 1000);
        write(&client, vec![part(&name, 0, &data[..500], false)]).await?;
        names.push(name);
    }
    for (index, name) in names.iter().enumerate() {
        if index < 2 {
            refused(ask(&client, name).await, Code::NotFound, &[]);
        } else {
            assert_eq!(ask(&client, name).await?, (500, false), "{index}");
        }
    }
    assert!(descriptors(&longshore)? < 2 * KEPT_MAX);
    // Too much: a quarter of the store.
    let mut large = Vec::new();
    for _ in 0..3 {
        let (data, name) = upload(&client, 8 << 20);
        let most = &parts(&name, &data, 0, 1 << 20)[..7];
        assert_eq!(write(&client, most.to_vec()).await?, 7 << 20);
        large.push(name);
    }
    refused(ask(&client, &large[0]).await, Code::NotFound, &[]);
    assert_eq!(ask(&client, &large[1]).await?, (7 << 20, false));
    assert_eq!(ask(&client, &large[2]).await?, (7 << 20, false));
    // The store needs the space.
    let (data, name) = upload(&client, 60 << 20);
    assert_eq!(write_whole(&client, &name, &data).await?, 60 << 20);
    refused(ask(&client, &large[2]).await, Code::NotFound, &[]);

    let home = longshore.home();
    longshore.stop().await?;
    assert_eq!(files_in(&home.path().join("root/scratch")), Vec::<std::path::PathBuf>::new());
    Ok(())
}

fn descriptors(longshore: &Longshore) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{}/fd", longshore.pid()))?.count())
}

/// Of two streams with one name the second takes over; the first is `ABORTED`, and nothing is mixed.
#[tokio::test]
async fn bsw_14() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (data, name) = upload(&client, FLUSH_BYTES * 4);
    let size = i64::try_from(data.len())?;
    let mut first = OpenWrite::begin(&client, part(&name, 0, &unique(FLUSH_BYTES), false));
    committed(&client, &name, 1).await?;
    assert_eq!(write_whole(&client, &name, &data).await?, size);
    refused(first.answered().await, Code::Aborted, &["another stream"]);
    assert_eq!(client.read(&client.function().digest(&data)).await?, data);

    // One that asked how far it came goes on there.
    let (data, name) = upload(&client, FLUSH_BYTES * 4);
    let mut first = OpenWrite::begin(&client, part(&name, 0, &data[..FLUSH_BYTES], false));
    let told = committed(&client, &name, 1).await?;
    first.send(part(&name, FLUSH_BYTES, &data[FLUSH_BYTES..FLUSH_BYTES * 2 + 5], false));
    let rest = parts(&name, &data, usize::try_from(told)?, 1 << 16);
    assert_eq!(write(&client, rest).await?, size);
    refused(first.answered().await, Code::Aborted, &["another stream"]);

    // Many at once: whoever wins, the blob is right.
    let (data, name) = upload(&client, FLUSH_BYTES * 4);
    let all =
        futures::future::join_all((0..16).map(|_| write(&client, parts(&name, &data, 0, 1 << 14)))).await;
    assert!(all.iter().any(|outcome| matches!(outcome, Ok(committed) if *committed == size)));
    for outcome in all {
        match outcome {
            Ok(committed) => assert_eq!(committed, size),
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status:?}"),
        }
    }
    assert_eq!(client.read(&client.function().digest(&data)).await?, data);
    Ok(())
}

/// A stream without a request is `INVALID_ARGUMENT`.
#[tokio::test]
async fn bsw_15() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    refused(write(&client, Vec::new()).await, Code::InvalidArgument, &["no request"]);
    Ok(())
}

/// A large upload takes no more memory than a small one.
#[tokio::test]
async fn bsw_16() -> Result<()> {
    const SIZE: usize = 512 << 20;
    const GROWTH_BYTES_MAX: u64 = 64 << 20;
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?.with_function(DigestFunction::Blake3);
    client.put(unique(1 << 20)).await?;
    let before = longshore.resident_bytes_max()?;
    let block = unique(1 << 20);
    let digest = DigestFunction::Blake3.digest(&block.repeat(SIZE >> 20));
    let name = client.write_name(&digest);
    let requests =
        (0..SIZE >> 20).map(move |index| part(&name, index << 20, &block, (index + 1) << 20 == SIZE));
    let response = client.byte_stream().write(stream::iter(requests)).await?;
    assert_eq!(response.get_ref().committed_size, i64::try_from(SIZE)?);
    let growth = longshore.resident_bytes_max()?.saturating_sub(before);
    assert!(growth < GROWTH_BYTES_MAX, "{growth}");
    // A client that does not read stops the sender: nothing is gathered for it.
    let request = longshore_proto::bytestream::ReadRequest {
        resource_name: client.read_name(&digest),
        ..Default::default()
    };
    let mut reading = client.byte_stream().read(request).await?.into_inner();
    tokio::time::timeout(PATIENCE, reading.message()).await??.context("a first message")?;
    let growth = longshore.resident_bytes_max()?.saturating_sub(before);
    assert!(growth < GROWTH_BYTES_MAX, "{growth}");
    Ok(())
}

/// Log streams are not written to: their names are `INVALID_ARGUMENT`.
///
/// Absent: the output of an action is in its result; nobody who uses longshore follows it while it runs.
#[tokio::test]
async fn bsw_17() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for name in ["logstreams/some-id", "main/logstreams/some-id", "main/logstreams/some-id/write-token"] {
        for request in [part(name, 0, b"text", true), part(name, 0, b"", false)] {
            refused(
                write(&client, vec![request]).await,
                Code::InvalidArgument,
                &["resource_name", "logstreams"],
            );
        }
        refused(ask(&client, name).await, Code::InvalidArgument, &["resource_name"]);
    }
    Ok(())
}
