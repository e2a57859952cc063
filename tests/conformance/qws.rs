//! `ByteStream.QueryWriteStatus`.

use anyhow::Result;
use longshore_cas_store::digest::DigestFunction;
use tonic::Code;

use crate::streams::{
    FLUSH_BYTES, OpenWrite, ask, committed, part, parts, write, write_whole, zstd_write_name,
};
use crate::support::{absent, refused, shared_client, unique};

/// A blob that is here is complete, under any name.
#[tokio::test]
async fn qws_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        for size in [0, 1, 100_000] {
            let digest = client.put(unique(size)).await?;
            let complete = (i64::try_from(size)?, true);
            assert_eq!(ask(&client, &client.write_name(&digest)).await?, complete);
            assert_eq!(ask(&client, &format!("main/{}/meta", client.write_name(&digest))).await?, complete);
        }
    }
    Ok(())
}

/// An upload under way has committed what is in a file, which never becomes less.
#[tokio::test]
async fn qws_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let data = unique(FLUSH_BYTES * 8);
    let name = client.write_name(&client.function().digest(&data));
    let mut open = OpenWrite::begin(&client, part(&name, 0, b"", false));
    let mut last = 0;
    for (index, chunk) in data.chunks(FLUSH_BYTES / 2).enumerate() {
        open.send(part(&name, index * FLUSH_BYTES / 2, chunk, false));
        let sent = (index + 1) * FLUSH_BYTES / 2;
        // Less than a flush may be in memory yet.
        let now = committed(&client, &name, i64::try_from(sent.saturating_sub(FLUSH_BYTES))?).await?;
        assert!(last <= now && now <= i64::try_from(sent)?, "{last} {now} {sent}");
        assert!(!ask(&client, &name).await?.1);
        last = now;
    }
    open.send(part(&name, data.len(), b"", true));
    assert_eq!(open.answered().await?, i64::try_from(data.len())?);
    assert_eq!(ask(&client, &name).await?, (i64::try_from(data.len())?, true));
    Ok(())
}

/// What nobody has begun is `NOT_FOUND`, and so is what was begun under another name.
#[tokio::test]
async fn qws_03() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let digest = absent(function);
        refused(ask(&client, &client.write_name(&digest)).await, Code::NotFound, &[&digest.hash_hex()]);
    }
    let data = unique(1000);
    let digest = client.function().digest(&data);
    let name = client.write_name(&digest);
    assert_eq!(write(&client, vec![part(&name, 0, &data[..10], false)]).await?, 10);
    for other in [client.write_name(&digest), format!("main/{name}")] {
        refused(ask(&client, &other).await, Code::NotFound, &[]);
    }
    Ok(())
}

/// A write that begins at the committed size completes the blob, and all of it is verified.
#[tokio::test]
async fn qws_04() -> Result<()> {
    let (longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        for (size, stops) in [
            (1000, vec![1, 500, 999, 1000]),
            (FLUSH_BYTES * 3, vec![FLUSH_BYTES - 1, FLUSH_BYTES, FLUSH_BYTES * 2 + 7]),
        ] {
            let data = unique(size);
            let digest = function.digest(&data);
            let name = client.write_name(&digest);
            let mut sent = 0;
            for stop in stops {
                // Each part on a connection of its own, as after a failure.
                let client = longshore.client().await?.with_function(function);
                let committed = write(&client, vec![part(&name, sent, &data[sent..stop], false)]).await?;
                assert_eq!(committed, i64::try_from(stop)?);
                assert_eq!(ask(&client, &name).await?, (committed, false));
                sent = stop;
            }
            assert_eq!(write(&client, parts(&name, &data, sent, 1 << 16)).await?, i64::try_from(size)?);
            assert_eq!(client.read(&digest).await?, data);

            // A beginning that was wrong is found at the end, and is not kept.
            let data = unique(size);
            let name = client.write_name(&function.digest(&data));
            write(&client, vec![part(&name, 0, &unique(500), false)]).await?;
            let outcome = write(&client, parts(&name, &data, 500, 1 << 16)).await;
            refused(outcome, Code::InvalidArgument, &["does not match"]);
            refused(ask(&client, &name).await, Code::NotFound, &[]);
            assert_eq!(write_whole(&client, &name, &data).await?, i64::try_from(size)?);
        }
    }
    Ok(())
}

/// The method is never `UNIMPLEMENTED`: resumption is offered, for names of any instance.
#[tokio::test]
async fn qws_05() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for instance in ["", "main/", "a/b/"] {
        let data = unique(1000);
        let name = format!("{instance}{}/with/metadata", client.write_name(&client.function().digest(&data)));
        refused(ask(&client, &name).await, Code::NotFound, &[]);
        assert_eq!(write(&client, vec![part(&name, 0, &data[..10], false)]).await?, 10);
        assert_eq!(ask(&client, &name).await?, (10, false));
        assert_eq!(write(&client, vec![part(&name, 10, &data[10..], true)]).await?, 1000);
    }
    Ok(())
}

/// A compressed upload is complete where the blob is here, and otherwise `NOT_FOUND`: it cannot be gone on with.
#[tokio::test]
async fn qws_06() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    for function in DigestFunction::ALL {
        let client = client.with_function(function);
        let data = unique(FLUSH_BYTES * 3);
        let digest = function.digest(&data);
        let name = zstd_write_name(&digest);
        refused(ask(&client, &name).await, Code::NotFound, &[]);
        let compressed = zstd::encode_all(&data[..], 3)?;
        let half = compressed.len() / 2;
        let outcome = write(&client, vec![part(&name, 0, &compressed[..half], false)]).await;
        refused(outcome, Code::InvalidArgument, &["finish_write"]);
        refused(ask(&client, &name).await, Code::NotFound, &[]);
        write_whole(&client, &name, &compressed).await?;
        assert_eq!(ask(&client, &name).await?, (i64::try_from(data.len())?, true));
    }
    Ok(())
}
