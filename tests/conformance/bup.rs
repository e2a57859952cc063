//! `BatchUpdateBlobs`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::error_details::{Detail as _, RetryInfo};
use longshore_proto::reapi::batch_update_blobs_request::Request;
use longshore_proto::reapi::batch_update_blobs_response::Response;
use longshore_proto::reapi::compressor::Value;
use longshore_proto::{Message as _, bytestream, reapi};
use longshore_tests::client::Client;
use longshore_tests::longshore::{Launch, Longshore};
use tonic::{Code, Status};

use crate::support::{absent, batch_limit, refused, refused_inside, shared_client, unique};

/// How long a server may take to notice that a reader has gone.
const PATIENCE: Duration = Duration::from_mins(1);

fn entry(digest: &Digest, data: impl Into<Vec<u8>>) -> Request {
    Request { digest: Some(digest.to_wire()), data: data.into(), ..Default::default() }
}

fn zstd_entry(digest: &Digest, data: Vec<u8>) -> Request {
    Request { compressor: Value::Zstd.into(), ..entry(digest, data) }
}

async fn update(client: &Client, requests: Vec<Request>) -> Result<Vec<Response>, Status> {
    let request = reapi::BatchUpdateBlobsRequest {
        requests,
        digest_function: client.wire_function(),
        ..Default::default()
    };
    Ok(client.cas().batch_update_blobs(request).await?.into_inner().responses)
}

fn code(response: &Response) -> Code {
    Code::from(response.status.as_ref().map_or(0, |status| status.code))
}

/// Every request is answered, with its digest, in its own right; one that comes twice too.
#[tokio::test]
async fn bup_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let (one, two) = (unique(10), unique(1000));
        let (one_digest, two_digest) = (function.digest(&one), function.digest(&two));
        let requests = vec![
            entry(&one_digest, one.clone()),
            entry(&two_digest, two.clone()),
            entry(&one_digest, one.clone()),
            entry(&one_digest, one.clone()),
            entry(&Digest::empty(function), Vec::new()),
        ];
        let asked: Vec<_> = requests.iter().map(|entry| entry.digest.clone()).collect();
        let responses = update(&client, requests).await?;
        let answered: Vec<_> = responses.iter().map(|response| response.digest.clone()).collect();
        assert_eq!(answered, asked, "{function}");
        assert!(responses.iter().all(|response| code(response) == Code::Ok), "{responses:?}");
        assert_eq!(client.read(&one_digest).await?, one);
        assert_eq!(client.read(&two_digest).await?, two);
    }
    Ok(())
}

/// Data that are not those of the digest are `INVALID_ARGUMENT` for their entry; the others are stored.
#[tokio::test]
async fn bup_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let good = unique(100);
        let wrong = [&good[..99], &[&good[..], b"x"].concat(), b"", &unique(100)].map(<[u8]>::to_vec);
        let mut requests = vec![entry(&function.digest(&good), good.clone())];
        let bad = function.digest(&unique(100));
        requests.extend(wrong.into_iter().map(|data| entry(&bad, data)));
        requests.push(entry(&Digest::empty(function), b"not empty".to_vec()));
        // A digest that came wrong may come right in the same batch.
        let late = unique(50);
        requests.push(entry(&function.digest(&late), b"early".to_vec()));
        requests.push(entry(&function.digest(&late), late.clone()));
        let responses = update(&client, requests).await?;
        assert_eq!(code(&responses[0]), Code::Ok);
        for (index, response) in responses.iter().enumerate().skip(1).take(6) {
            let at = format!("requests[{index}]");
            refused_inside(response.status.as_ref(), Code::InvalidArgument, &[&at, "does not match"]);
        }
        assert_eq!(code(&responses[7]), Code::Ok);
        assert_eq!(client.missing([&function.digest(&good), &bad, &function.digest(&late)]).await?, [bad]);
    }
    Ok(())
}

/// A batch above the announced limit is `INVALID_ARGUMENT`, and nothing of it is stored; one at the limit is taken.
#[tokio::test]
async fn bup_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let limit = batch_limit(&client).await?;
    for parts in [1, 2, 1000] {
        for excess in [0, 1] {
            let mut contents: Vec<_> = (0..parts - 1).map(|_| unique(limit / parts)).collect();
            contents.push(unique(limit + excess - contents.len() * (limit / parts)));
            let digests: Vec<_> = contents.iter().map(|data| client.function().digest(data)).collect();
            let requests = digests.iter().zip(contents).map(|(digest, data)| entry(digest, data)).collect();
            let outcome = update(&client, requests).await;
            if excess == 0 {
                assert!(outcome?.iter().all(|response| code(response) == Code::Ok));
                assert_eq!(client.missing(&digests).await?, []);
            } else {
                let words = [limit.to_string(), (limit + 1).to_string()];
                refused(outcome, Code::InvalidArgument, &["requests", &words[0], &words[1]]);
                assert_eq!(client.missing(&digests).await?.len(), parts);
            }
        }
    }
    Ok(())
}

/// A batch that is too large is answered by the service, not by the transport; a message beyond all bounds is
/// refused, and the connection goes on.
#[tokio::test]
async fn bup_04() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let limit = batch_limit(&client).await?;
    for excess in [64 << 10, 1 << 20, 2 << 20] {
        let data = unique(limit + excess);
        let outcome = update(&client, vec![entry(&client.function().digest(&data), data)]).await;
        refused(outcome, Code::InvalidArgument, &["requests", &limit.to_string()]);
    }
    let huge = vec![7; 30 << 20];
    let outcome = update(&client, vec![entry(&client.function().digest(&huge), huge)]).await;
    let status = refused(outcome, Code::OutOfRange, &["message"]);
    assert!(status.message().contains("limit"), "{status:?}");
    client.read(&client.put(unique(10)).await?).await?;
    Ok(())
}

/// A compressor that is not announced is `INVALID_ARGUMENT` for its entry, and nothing is stored.
#[tokio::test]
async fn bup_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let data = unique(100);
    let digest = client.function().digest(&data);
    for compressor in [Value::Deflate.into(), Value::Brotli.into(), 4711, -1] {
        let other = unique(100);
        let requests = vec![
            Request { compressor, ..entry(&digest, data.clone()) },
            entry(&client.function().digest(&other), other.clone()),
        ];
        let responses = update(&client, requests).await?;
        let name = Value::try_from(compressor)
            .map_or_else(|_| compressor.to_string(), |value| value.as_str_name().to_owned());
        let words = ["requests[0].compressor", &name];
        refused_inside(responses[0].status.as_ref(), Code::InvalidArgument, &words);
        assert_eq!(code(&responses[1]), Code::Ok);
        assert_eq!(client.missing([&digest]).await?, [digest]);
    }
    Ok(())
}

/// A zstd entry is the blob of its uncompressed data, of which no more are taken than the digest says.
#[tokio::test]
async fn bup_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        for data in [Vec::new(), unique(1), unique(100_000), b"again and ".repeat(100_000)] {
            let digest = function.digest(&data);
            let responses =
                update(&client, vec![zstd_entry(&digest, zstd::encode_all(&data[..], 3)?)]).await?;
            assert_eq!(code(&responses[0]), Code::Ok, "{:?}", responses[0].status);
            assert_eq!(client.read(&digest).await?, data);
        }
    }
    // A bomb: thousands of times what the digest says.
    let zeros = vec![0; 64 << 20];
    let bomb = zstd::encode_all(&zeros[..], 3)?;
    let small = client.function().digest(&zeros[..1000]);
    let text = client.function().digest(b"text");
    let good = unique(1000);
    let good_digest = client.function().digest(&good);
    let requests = vec![
        zstd_entry(&small, bomb.clone()),
        // Not compressed at all, cut off, and of another content.
        zstd_entry(&text, b"text".to_vec()),
        zstd_entry(&good_digest, zstd::encode_all(&good[..], 3)?[..500].to_vec()),
        zstd_entry(&text, zstd::encode_all(&b"next"[..], 3)?),
        // Compressed data that are said not to be.
        entry(&good_digest, zstd::encode_all(&good[..], 3)?),
        zstd_entry(&good_digest, zstd::encode_all(&good[..], 3)?),
    ];
    let responses = update(&client, requests).await?;
    for (index, response) in responses.iter().enumerate().take(5) {
        let at = format!("requests[{index}]");
        refused_inside(response.status.as_ref(), Code::InvalidArgument, &[&at]);
    }
    assert_eq!(code(&responses[5]), Code::Ok);
    assert_eq!(client.missing([&small, &text]).await?.len(), 2);
    // One that says how large it is counts as that large.
    let outcome = update(&client, vec![zstd_entry(&client.function().digest(&zeros), bomb)]).await;
    refused(outcome, Code::InvalidArgument, &["requests", &zeros.len().to_string()]);
    Ok(())
}

/// A blob that is present already is OK.
#[tokio::test]
async fn bup_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let data = unique(3000);
    let digest = client.put(data.clone()).await?;
    for _ in 0..3 {
        assert_eq!(code(&update(&client, vec![entry(&digest, data.clone())]).await?[0]), Code::Ok);
    }
    assert_eq!(client.read(&digest).await?, data);
    Ok(())
}

/// A blob for which there is no space is refused for itself alone.
///
/// One that can never fit, above `max_cas_blob_size_bytes`, is `INVALID_ARGUMENT`, which is not retried.
#[tokio::test]
async fn bup_08() -> Result<()> {
    let flags = vec!["--max-size".to_owned(), "1MiB".to_owned()];
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    let (large, small) = (unique(2 << 20), unique(1000));
    let (large_digest, small_digest) = (client.function().digest(&large), client.function().digest(&small));
    let responses = update(&client, vec![entry(&large_digest, large), entry(&small_digest, small)]).await?;
    let words = ["requests[0]", &large_digest.hash_hex(), "1048576"];
    refused_inside(responses[0].status.as_ref(), Code::InvalidArgument, &words);
    assert_eq!(code(&responses[1]), Code::Ok);

    // A store that is in use for the most part, by a reader that does not go on.
    let flags = vec!["--max-size".to_owned(), "16MiB".to_owned()];
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    let held = client.put(unique(14 << 20)).await?;
    let request = bytestream::ReadRequest { resource_name: client.read_name(&held), ..Default::default() };
    let mut reading = client.byte_stream().read(request).await?.into_inner();
    reading.message().await?.context("a first chunk")?;
    let (more, tiny) = (unique(3 << 20), unique(10));
    let (more_digest, tiny_digest) = (client.function().digest(&more), client.function().digest(&tiny));
    let requests = vec![entry(&more_digest, more.clone()), entry(&tiny_digest, tiny)];
    let responses = update(&client, requests).await?;
    refused_inside(responses[0].status.as_ref(), Code::ResourceExhausted, &["requests[0]", "space"]);
    // That will pass, which the client is told.
    let details = responses[0].status.clone().unwrap_or_default().details;
    assert!(details.iter().any(|detail| RetryInfo::from_any(detail).is_some()), "{details:?}");
    assert_eq!(code(&responses[1]), Code::Ok);
    drop(reading);
    let until_there_is_space = async {
        while code(&update(&client, vec![entry(&more_digest, more.clone())]).await?[0]) != Code::Ok {}
        Ok(())
    };
    tokio::time::timeout(PATIENCE, until_there_is_space).await?
}

/// No request, no answer, no error.
#[tokio::test]
async fn bup_09() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    assert_eq!(update(&client, Vec::new()).await?, []);
    let request = reapi::BatchUpdateBlobsRequest::default();
    assert_eq!(client.cas().batch_update_blobs(request).await?.into_inner().encoded_len(), 0);
    Ok(())
}

/// An entry without a digest, or with one that is malformed, is `INVALID_ARGUMENT` for itself alone.
#[tokio::test]
async fn bup_10() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let data = unique(10);
    let good = client.function().digest(&data);
    let negative = reapi::Digest { size_bytes: -1, ..absent(client.function()).to_wire() };
    let upper = reapi::Digest { hash: good.hash_hex().to_uppercase(), size_bytes: 10 };
    let mut requests = vec![Request { data: data.clone(), ..Default::default() }, Request::default()];
    for digest in [negative.clone(), upper.clone(), reapi::Digest::default()] {
        requests.push(Request { digest: Some(digest), data: data.clone(), ..Default::default() });
    }
    requests.push(entry(&good, data));
    let responses = update(&client, requests).await?;
    let words = ["absent", "absent", "-1", "lowercase", "\"\""];
    for (index, (response, word)) in responses.iter().zip(words).enumerate() {
        let at = format!("requests[{index}].digest");
        refused_inside(response.status.as_ref(), Code::InvalidArgument, &[&at, word]);
    }
    assert_eq!(responses[2].digest, Some(negative), "each answer has the digest that was sent");
    assert_eq!(code(&responses[5]), Code::Ok);
    Ok(())
}
