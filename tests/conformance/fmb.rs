//! `FindMissingBlobs`.

use std::collections::BTreeSet;

use anyhow::Result;
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::reapi;
use longshore_tests::client::Client;
use longshore_tests::longshore::{Launch, Longshore};
use tonic::Code;

use crate::support::{absent, refused, shared_client, unique, wire_of};

async fn find(
    client: &Client,
    blob_digests: Vec<reapi::Digest>,
) -> Result<Vec<reapi::Digest>, tonic::Status> {
    let request = reapi::FindMissingBlobsRequest {
        blob_digests,
        digest_function: client.wire_function(),
        ..Default::default()
    };
    Ok(client.cas().find_missing_blobs(request).await?.into_inner().missing_blob_digests)
}

/// What is not present is listed, and nothing else.
#[tokio::test]
async fn fmb_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let (present, lost) = (client.put(unique(10)).await?, absent(function));
        let large = client.put(unique(5 << 20)).await?;
        let empty = Digest::empty(function);
        let asked = [lost, present, empty, large].iter().map(Digest::to_wire).collect();
        assert_eq!(find(&client, asked).await?, [lost.to_wire()], "{function}");
        assert_eq!(find(&client, vec![present.to_wire()]).await?, []);
    }
    Ok(())
}

/// A digest that is asked for twice is listed once, in whatever order.
#[tokio::test]
async fn fmb_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let (first, second) = (absent(client.function()), absent(client.function()));
    let present = client.put(unique(10)).await?;
    let mut asked = Vec::new();
    for _ in 0..300 {
        asked.extend([first.to_wire(), present.to_wire(), second.to_wire(), first.to_wire()]);
    }
    let mut missing = find(&client, asked).await?;
    missing.sort_by(|a, b| a.hash.cmp(&b.hash));
    let mut expected = [first.to_wire(), second.to_wire()];
    expected.sort_by(|a, b| a.hash.cmp(&b.hash));
    assert_eq!(missing, expected);
    Ok(())
}

/// No digest, no answer, no error.
#[tokio::test]
async fn fmb_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let request = reapi::FindMissingBlobsRequest::default();
    assert_eq!(client.cas().find_missing_blobs(request).await?.into_inner().missing_blob_digests, []);
    for function in DigestFunction::ALL {
        assert_eq!(find(&client.with_function(function), Vec::new()).await?, []);
    }
    Ok(())
}

/// A blob that is asked for is used: it outlives others that came later.
#[tokio::test]
async fn fmb_04() -> Result<()> {
    let flags = vec!["--max-size".to_owned(), "4MiB".to_owned()];
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    let (kept, forgotten) = (client.put(unique(1000)).await?, client.put(unique(1000)).await?);
    for _ in 0..40 {
        client.put(unique(256 << 10)).await?;
        assert_eq!(client.missing([&kept]).await?, [], "it was asked for a moment ago");
    }
    assert_eq!(client.missing([&forgotten]).await?, [forgotten], "ten times its store went by");
    client.read(&kept).await?;
    Ok(())
}

/// One malformed digest is `INVALID_ARGUMENT` for the whole call, which says where it is.
#[tokio::test]
async fn fmb_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let good = absent(client.function()).to_wire();
    for (bad, word) in [
        (reapi::Digest { hash: "xyz".to_owned(), size_bytes: 1 }, "xyz"),
        (reapi::Digest { size_bytes: -7, ..good.clone() }, "-7"),
        (reapi::Digest::default(), "\"\""),
        (reapi::Digest { hash: good.hash.to_uppercase(), size_bytes: 1 }, "lowercase"),
    ] {
        let outcome = find(&client, vec![good.clone(), good.clone(), bad]).await;
        refused(outcome, Code::InvalidArgument, &["blob_digests[2]", word]);
    }
    Ok(())
}

/// Fifty thousand digests in one call.
#[tokio::test]
async fn fmb_06() -> Result<()> {
    const COUNT: usize = 50_000;
    let (_longshore, client) = shared_client().await?;
    for function in [DigestFunction::Sha256, DigestFunction::Sha512] {
        let client = client.with_function(function);
        let present = client.put(unique(10)).await?;
        let seed = unique(8);
        let lost = (1..COUNT).map(|index| function.digest(&[&seed[..], &index.to_le_bytes()].concat()));
        let mut asked: Vec<_> = lost.map(|digest| digest.to_wire()).collect();
        asked.push(present.to_wire());
        let request = reapi::FindMissingBlobsRequest {
            blob_digests: asked.clone(),
            digest_function: wire_of(function),
            ..Default::default()
        };
        // The answer is as long as the question, which some functions make longer than a client takes by default.
        let mut cas = client.cas().max_decoding_message_size(16 << 20);
        let missing = cas.find_missing_blobs(request).await?.into_inner().missing_blob_digests;
        assert_eq!(missing.len(), COUNT - 1, "{function}");
        let hashes = |digests: &[reapi::Digest]| -> BTreeSet<String> {
            digests.iter().map(|digest| digest.hash.clone()).collect()
        };
        asked.pop();
        assert_eq!(hashes(&missing), hashes(&asked));
    }
    Ok(())
}

/// What is reported as present can be read in every way that is announced.
#[tokio::test]
async fn fmb_07() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let request = reapi::GetCapabilitiesRequest::default();
    let capabilities = client.capabilities().get_capabilities(request).await?.into_inner();
    let cache = capabilities.cache_capabilities.unwrap_or_default();
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        for size in [0, 1, 100_000, 3 << 20] {
            let data = unique(size);
            let digest = client.put(data.clone()).await?;
            assert_eq!(client.missing([&digest]).await?, []);
            assert_eq!(client.read(&digest).await?, data);
            let mut compressors = vec![0];
            compressors.extend(&cache.supported_batch_update_compressors);
            for compressor in compressors {
                let request = reapi::BatchReadBlobsRequest {
                    digests: vec![digest.to_wire()],
                    acceptable_compressors: vec![compressor],
                    digest_function: wire_of(function),
                    ..Default::default()
                };
                let response = client.cas().batch_read_blobs(request).await?.into_inner().responses.remove(0);
                assert_eq!(response.status.unwrap_or_default().code, 0);
                let read = match reapi::compressor::Value::try_from(response.compressor)? {
                    reapi::compressor::Value::Identity => response.data,
                    reapi::compressor::Value::Zstd => zstd::decode_all(&response.data[..])?,
                    other => panic!("{other:?} is not one that this test can read"),
                };
                assert!(read == data, "{function}: {size} bytes");
            }
        }
    }
    Ok(())
}
