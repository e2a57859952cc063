//! gRPC hygiene.

use std::time::Duration;

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::Digest;
use longshore_proto::bytestream::byte_stream_client::ByteStreamClient;
use longshore_proto::error_details::{Detail as _, RetryInfo};
use longshore_proto::{Message, bytestream, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::client::{Client, finished};
use longshore_tests::longshore::{Launch, Longshore};
use longshore_tests::process::fifo;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::codegen::http;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{
    answer_to, batch_limit, details, refused, refused_inside, shared_client, succeeded, unique,
};

fn first_chunk(client: &Client, digest: &Digest, data: &[u8]) -> bytestream::WriteRequest {
    bytestream::WriteRequest {
        resource_name: client.write_name(digest),
        data: data.to_vec(),
        ..Default::default()
    }
}

/// A message may be larger than a batch by 1 MiB and more, and answers are below what clients take by default.
#[tokio::test]
async fn grp_01() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let limit = batch_limit(&client).await?;
    let data = unique(limit + (1 << 20));
    let entry = reapi::batch_update_blobs_request::Request {
        digest: Some(client.function().digest(&data).to_wire()),
        data,
        ..Default::default()
    };
    let request = reapi::BatchUpdateBlobsRequest { requests: vec![entry], ..Default::default() };
    let outcome = client.cas().batch_update_blobs(request).await;
    refused(outcome, Code::InvalidArgument, &[&limit.to_string()]);
    // A client that takes 4 MiB reads a full batch.
    let digest = client.put(unique(limit)).await?;
    let request = reapi::BatchReadBlobsRequest { digests: vec![digest.to_wire()], ..Default::default() };
    let mut cas = client.cas().max_decoding_message_size(4 << 20);
    assert_eq!(cas.batch_read_blobs(request).await?.into_inner().responses[0].data.len(), limit);
    Ok(())
}

/// The health service says that longshore serves; reflection is not there, and says so.
///
/// Absent: the crate that the REAPI types come from has no descriptors to reflect.
#[tokio::test]
async fn grp_02() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let mut health = HealthClient::new(client.channel());
    let answer = health.check(HealthCheckRequest::default()).await?.into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    let unknown = HealthCheckRequest { service: "no.such.Service".to_owned() };
    refused(health.check(unknown).await, Code::NotFound, &[]);
    for service in ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"] {
        let code = answer_to(&client, &format!("/{service}/ServerReflectionInfo")).await?;
        assert_eq!(code, Code::Unimplemented, "{service}");
    }
    Ok(())
}

/// Pings of a client are no reason to hang up, and hundreds of calls share one connection.
#[tokio::test]
async fn grp_03() -> Result<()> {
    const STREAMS: usize = 500;
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let endpoint = Endpoint::from_shared(longshore.uri().to_owned())?
        .http2_keep_alive_interval(Duration::from_millis(5))
        .keep_alive_while_idle(true);
    let pinging = endpoint.connect().await?;
    let action = TestAction::shell("sleep 0.5; echo out").salt(unique(8)).build(client.function());
    client.upload(&action.blobs).await?;
    let request =
        reapi::ExecuteRequest { action_digest: Some(action.digest.to_wire()), ..Default::default() };
    let mut execution = reapi::execution_client::ExecutionClient::new(pinging.clone());
    succeeded(&finished(execution.execute(request).await?.into_inner()).await?);

    // Uploads that have all begun, and only then go on.
    let mut uploads = Vec::new();
    for _ in 0..STREAMS {
        let data = unique(100);
        let digest = client.function().digest(&data);
        let (sender, receiver) = mpsc::channel(1);
        sender.send(first_chunk(&client, &digest, &data[..50])).await?;
        let mut byte_stream = ByteStreamClient::new(pinging.clone());
        let upload = tokio::spawn(async move { byte_stream.write(ReceiverStream::new(receiver)).await });
        uploads.push((data, sender, upload));
    }
    for (data, sender, _) in &uploads {
        let rest = bytestream::WriteRequest {
            write_offset: 50,
            finish_write: true,
            data: data[50..].to_vec(),
            ..Default::default()
        };
        sender.send(rest).await?;
    }
    for (_, sender, upload) in uploads {
        drop(sender);
        assert_eq!(upload.await??.into_inner().committed_size, 100);
    }
    Ok(())
}

/// A call whose deadline passes is `DEADLINE_EXCEEDED`, and what it did is given up.
#[tokio::test]
async fn grp_04() -> Result<()> {
    let (longshore, client) = shared_client().await?;
    let data = unique(100);
    let digest = client.function().digest(&data);
    let begun = first_chunk(&client, &digest, &data[..50]);
    let (code, message) = unfinished(&longshore, "200m", "ByteStream/Write", &begun).await?;
    assert_eq!((code, message.contains("deadline")), (Code::DeadlineExceeded, true), "{message}");
    // The upload that never ended stands in nobody's way.
    assert_eq!(client.missing([&digest]).await?, [digest]);
    client.put(data.clone()).await?;
    assert_eq!(client.read(&digest).await?, data);
    // A deadline that is not one is none; one that is far off does not matter.
    for timeout in ["", "soon", "10", "-1S", "99999999H"] {
        let complete = bytestream::WriteRequest { finish_write: true, data: data.clone(), ..begun.clone() };
        let (code, message) = unfinished(&longshore, timeout, "ByteStream/Write", &complete).await?;
        assert_eq!(code, Code::Ok, "{timeout:?}: {message}");
    }
    Ok(())
}

/// Sends one message and leaves the call open, with a deadline that nobody but the server watches; the answer.
async fn unfinished(
    longshore: &Longshore,
    timeout: &str,
    method: &str,
    message: &impl Message,
) -> Result<(Code, String)> {
    let address = longshore.uri().strip_prefix("http://").context("an address")?.to_owned();
    let (mut requests, connection) =
        h2::client::handshake(tokio::net::TcpStream::connect(&address).await?).await?;
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://{address}/google.bytestream.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        .body(())?;
    let (response, mut body) = requests.send_request(request, false)?;
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len())?;
    body.send_data([&[0][..], &length.to_be_bytes(), &message].concat().into(), false)?;
    let response = response.await?;
    let mut headers = response.headers().clone();
    if !headers.contains_key("grpc-status") {
        let mut body = response.into_body();
        while let Some(data) = body.data().await {
            data?;
        }
        headers = body.trailers().await?.context("no trailers")?;
    }
    connection.abort();
    let status = headers.get("grpc-status").context("no grpc-status")?;
    let text = headers.get("grpc-message").map_or("", |text| text.to_str().unwrap_or_default());
    Ok((Code::from_bytes(status.as_bytes()), text.to_owned()))
}

/// Before it stops, longshore takes no more actions, says so, and lets the running ones end.
#[tokio::test]
async fn grp_05() -> Result<()> {
    let flags = vec!["--jobs".to_owned(), "1".to_owned()];
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    let home = longshore.home();
    let (started, go_on) = (home.path().join("started"), home.path().join("go-on"));
    fifo(&started)?;
    fifo(&go_on)?;
    let script = format!("echo > {}; read line < {}; echo done", started.display(), go_on.display());
    let running = TestAction::shell(&script).build(client.function());
    client.upload(&running.blobs).await?;
    let stream = client.start(&running.digest, false).await?;
    // The action runs once it has opened its side.
    tokio::task::spawn_blocking(move || std::fs::read(started)).await??;
    let queued = TestAction::shell("true").salt(unique(8)).build(client.function());
    let refused_later = TestAction::shell("true").salt(unique(8)).build(client.function());
    client.upload(&[queued.blobs, refused_later.blobs].concat()).await?;
    let waiting = client.start(&queued.digest, false).await?;

    longshore.signal(Signal::SIGTERM)?;
    longshore.prints(&["stopping"]).await?;
    let status =
        refused(client.start(&refused_later.digest, false).await, Code::Unavailable, &["shutting down"]);
    assert!(details(&status)?.iter().any(|detail| RetryInfo::from_any(detail).is_some()), "{status:?}");
    let response = finished(waiting).await?;
    refused_inside(response.status.as_ref(), Code::Unavailable, &["shutting down"]);
    let mut health = HealthClient::new(client.channel());
    let answer = health.check(HealthCheckRequest::default()).await?.into_inner();
    assert_eq!(answer.status(), ServingStatus::NotServing);

    tokio::task::spawn_blocking(move || std::fs::write(go_on, "\n")).await??;
    succeeded(&finished(stream).await?);
    let status = longshore.ended().await?;
    assert!(status.success(), "{status}");
    Ok(())
}

/// Flow-control windows are at least 1 MiB a stream, as the first frame of the server says.
///
/// Deviation: they are of one size, which holds what a fast network has under way; adaptive ones begin at 64 KiB.
#[tokio::test]
async fn grp_06() -> Result<()> {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let (longshore, _client) = shared_client().await?;
    let address = longshore.uri().strip_prefix("http://").context("an address")?.to_owned();
    let mut socket = tokio::net::TcpStream::connect(address).await?;
    // The preface of a client and an empty SETTINGS frame.
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    let mut header = [0; 9];
    socket.read_exact(&mut header).await?;
    assert_eq!(header[3], 4, "the first frame is SETTINGS");
    let mut settings = vec![0; usize::from(u16::from_be_bytes([header[1], header[2]]))];
    socket.read_exact(&mut settings).await?;
    let setting = |id: u16| {
        let found = settings.chunks_exact(6).find(|setting| setting[..2] == id.to_be_bytes());
        found.map(|setting| u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]))
    };
    assert!(setting(INITIAL_WINDOW_SIZE).context("a window")? >= 1 << 20);
    assert!(setting(MAX_CONCURRENT_STREAMS).is_none_or(|streams| streams >= 100));
    Ok(())
}
