//! `BatchReadBlobs`.

use anyhow::Result;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::reapi::batch_read_blobs_response::Response;
use longshore_proto::reapi::compressor::Value;
use longshore_proto::{Message as _, reapi};
use longshore_tests::client::Client;
use tonic::{Code, Status};

use crate::support::{absent, batch_limit, refused, refused_inside, shared_client, unique};

const MESSAGE_BYTES_MAX: usize = 4 << 20;

async fn read_with(
    client: &Client,
    digests: &[Digest],
    acceptable_compressors: &[i32],
) -> Result<Vec<Response>, Status> {
    let request = reapi::BatchReadBlobsRequest {
        digests: digests.iter().map(Digest::to_wire).collect(),
        acceptable_compressors: acceptable_compressors.to_vec(),
        digest_function: client.wire_function(),
        ..Default::default()
    };
    let response = client.cas().batch_read_blobs(request).await?.into_inner();
    assert!(response.encoded_len() <= MESSAGE_BYTES_MAX);
    Ok(response.responses)
}

async fn read(client: &Client, digests: &[Digest]) -> Result<Vec<Response>, Status> {
    read_with(client, digests, &[]).await
}

fn code(response: &Response) -> Code {
    Code::from(response.status.as_ref().map_or(0, |status| status.code))
}

/// Every digest is answered; a blob that is absent is `NOT_FOUND` for itself alone, without data.
#[tokio::test]
async fn brd_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let data = unique(500);
        let present = client.put(data.clone()).await?;
        let asked = [absent(function), present, absent(function)];
        let responses = read(&client, &asked).await?;
        let answered: Vec<_> = responses.iter().map(|response| response.digest.clone()).collect();
        assert_eq!(answered, asked.map(|digest| Some(digest.to_wire())));
        for lost in [&responses[0], &responses[2]] {
            refused_inside(lost.status.as_ref(), Code::NotFound, &["not in the store"]);
            assert!(lost.data.is_empty());
        }
        assert_eq!((code(&responses[1]), &responses[1].data), (Code::Ok, &data));
    }
    assert_eq!(read(&client, &[]).await?, []);
    Ok(())
}

/// Blobs above the announced limit together are `INVALID_ARGUMENT`, present or not; at the limit they are served.
#[tokio::test]
async fn brd_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let limit = batch_limit(&client).await?;
    let (half, rest, over) = (unique(limit / 2), unique(limit - limit / 2), unique(limit - limit / 2 + 1));
    let half_digest = client.put(half.clone()).await?;
    let (rest_digest, over_digest) = (client.put(rest.clone()).await?, client.put(over).await?);
    let responses = read(&client, &[half_digest, rest_digest]).await?;
    assert!(responses[0].data == half && responses[1].data == rest);
    let words = ["digests", &limit.to_string(), &(limit + 1).to_string()];
    refused(read(&client, &[half_digest, over_digest]).await, Code::InvalidArgument, &words);
    // The sizes that are asked for count, whatever is there, and their sum does not wrap around.
    let hash = absent(client.function()).hash_hex();
    let lost = |size| Digest::parse(client.function(), &hash, size).expect("well formed");
    for digests in [vec![lost(i64::try_from(limit)? + 1)], vec![lost(i64::MAX); 3]] {
        refused(read(&client, &digests).await, Code::InvalidArgument, &["digests", &limit.to_string()]);
    }
    Ok(())
}

/// What comes is uncompressed, or compressed as the client accepts; without a list never compressed.
#[tokio::test]
async fn brd_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (identity, zstd): (i32, i32) = (Value::Identity.into(), Value::Zstd.into());
    let others = [Value::Deflate.into(), Value::Brotli.into(), 4711];
    let compressible = b"over and over ".repeat(5000);
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let digest = client.put(compressible.clone()).await?;
        for acceptable in [&[][..], &[identity], &others] {
            let response = read_with(&client, &[digest], acceptable).await?.remove(0);
            assert_eq!((code(&response), response.compressor), (Code::Ok, identity), "{acceptable:?}");
            assert_eq!(response.data, compressible);
        }
        for acceptable in [&[zstd][..], &[identity, zstd], &[others[0], zstd]] {
            let response = read_with(&client, &[digest], acceptable).await?.remove(0);
            assert_eq!((code(&response), response.compressor), (Code::Ok, zstd), "{acceptable:?}");
            assert!(response.data.len() < compressible.len() / 10);
            assert_eq!(zstd::decode_all(&response.data[..])?, compressible);
        }
        // What compression would only make larger.
        let noise = unique(1000);
        let digests = [client.put(noise.clone()).await?, Digest::empty(function), absent(function)];
        let responses = read_with(&client, &digests, &[zstd]).await?;
        assert_eq!((responses[0].compressor, &responses[0].data), (identity, &noise));
        assert_eq!((code(&responses[1]), responses[1].compressor), (Code::Ok, identity));
        assert_eq!((code(&responses[2]), responses[2].data.len()), (Code::NotFound, 0));
    }
    Ok(())
}

/// The empty blob is OK, and empty.
#[tokio::test]
async fn brd_04() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        for acceptable in [&[][..], &[Value::Zstd.into()]] {
            let responses = read_with(&client, &[Digest::empty(function); 2], acceptable).await?;
            assert_eq!(responses.len(), 2);
            for response in responses {
                assert_eq!(code(&response), Code::Ok, "{function}");
                assert!(response.data.is_empty());
            }
        }
    }
    Ok(())
}

/// A response is below 4 MiB, digests and statuses included; what does not fit is `RESOURCE_EXHAUSTED` for itself.
#[tokio::test]
async fn brd_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let limit = batch_limit(&client).await?;
    // The client refuses larger messages, and so does `read`.
    let full = client.put(unique(limit)).await?;
    assert_eq!(read(&client, &[full]).await?[0].data.len(), limit);
    // Thousands of small blobs that have the limit together, all of which are served.
    let small = client.put(unique(limit / 4000)).await?;
    let responses = read(&client, &vec![small; 4000]).await?;
    assert!(responses.iter().all(|response| code(response) == Code::Ok && response.digest.is_some()));
    // So many, and with such long hashes, that the digests leave no room for all.
    let client = client.with_function(DigestFunction::Sha512);
    let small = client.put(unique(limit / 15_000)).await?;
    let responses = read(&client, &vec![small; 15_000]).await?;
    assert_eq!(responses.len(), 15_000);
    let served = responses.iter().filter(|response| code(response) == Code::Ok).count();
    assert!(served > 0 && served < 15_000);
    for response in responses.iter().filter(|response| code(response) != Code::Ok) {
        refused_inside(response.status.as_ref(), Code::ResourceExhausted, &["fit"]);
        assert!(response.data.is_empty() && response.digest == Some(small.to_wire()));
    }
    // And so many that not even their answers fit.
    let outcome = read(&client, &vec![Digest::empty(DigestFunction::Sha512); 40_000]).await;
    refused(outcome, Code::InvalidArgument, &["digests", "40000"]);
    Ok(())
}

/// A digest that comes twice is answered twice.
#[tokio::test]
async fn brd_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let data = unique(100);
    let (present, lost) = (client.put(data.clone()).await?, absent(client.function()));
    let responses = read(&client, &[present, lost, present, present, lost]).await?;
    let codes: Vec<_> = responses.iter().map(code).collect();
    assert_eq!(codes, [Code::Ok, Code::NotFound, Code::Ok, Code::Ok, Code::NotFound]);
    assert!([0, 2, 3].iter().all(|index| responses[*index].data == data));
    Ok(())
}

/// A malformed digest is `INVALID_ARGUMENT` for the call, which says where it is.
#[tokio::test]
async fn brd_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let good = client.put(unique(10)).await?.to_wire();
    for (bad, word) in [
        (reapi::Digest { hash: "xyz".to_owned(), size_bytes: 1 }, "xyz"),
        (reapi::Digest { size_bytes: -7, ..good.clone() }, "-7"),
        (reapi::Digest::default(), "\"\""),
        (reapi::Digest { hash: good.hash.to_uppercase(), size_bytes: 10 }, "lowercase"),
    ] {
        let request = reapi::BatchReadBlobsRequest {
            digests: vec![good.clone(), bad],
            digest_function: client.wire_function(),
            ..Default::default()
        };
        let outcome = client.cas().batch_read_blobs(request).await;
        refused(outcome, Code::InvalidArgument, &["digests[1]", word]);
    }
    Ok(())
}
