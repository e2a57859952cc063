//! Connections that are silent, half closed, or speak something else.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use longshore_tests::longshore::Launch;
use longshore_tests::process::Footprint;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

use super::wire::{self, BATCH_UPDATE, WRITE, Wire, tcp};
use super::{CONNECTION_BYTES, OWN_BYTES, Target};
use crate::http2::{
    CONTINUATION, END_HEADERS, END_STREAM, FRAME_HEAD_BYTES, GOAWAY, HEADERS, PING, PREFACE, SETTINGS, frame,
};

/// A limit of open files that leaves a longshore with one job 64 connections and 64 uploads.
const OPEN_FILES: u64 = 400;
/// More connections than it takes at once.
const SILENT: usize = 200;
fn few_files() -> Launch {
    let flags = vec!["--jobs".to_owned(), "1".to_owned()];
    Launch { open_files: Some(OPEN_FILES), flags, ..Launch::default() }
}

// Those who say nothing keep nobody out, however many they are.
#[tokio::test]
async fn silent_connections_give_way() -> Result<()> {
    let target = Target::launch(few_files()).await?;
    let mut silent = Vec::new();
    for number in 0..SILENT {
        let mut connection = tcp(&target.longshore).await?;
        // Some are silent from the start, and some after the first words.
        if number % 2 == 0 {
            connection.write_all(PREFACE).await?;
        }
        silent.push(connection);
    }
    target.serves_another().await?;
    let held = Footprint::of(target.longshore.pid())?;
    ensure!(held.descriptors < OPEN_FILES, "{held:?}");
    drop(silent);
    target.holds_at_most(OWN_BYTES).await?;
    target.leaves_nothing().await
}

// What is no HTTP/2 at all is closed.
#[tokio::test]
async fn another_protocol_is_closed() -> Result<()> {
    let target = Target::start().await?;
    let (endless, zeros) = (b"x".repeat(1 << 20), vec![0; 64 << 10]);
    for words in [&b"GET / HTTP/1.1\r\nHost: longshore\r\n\r\n"[..], &zeros, &endless] {
        let mut connection = tcp(&target.longshore).await?;
        // It may be closed before all is written.
        let _ = connection.write_all(words).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_mins(1), connection.read_to_end(&mut answer));
        // An end or a reset: both close it.
        let _ = read.await.context("it is still open")?;
        ensure!(answer.len() < 64 << 10, "{} bytes", answer.len());
    }
    target.leaves_nothing().await
}

// Headers that never end are cut off before they are many.
#[tokio::test]
async fn endless_headers_are_cut_off() -> Result<()> {
    const FRAMES_MAX: usize = 4096;
    const FRAME_BYTES: usize = 16 << 10;
    let target = Target::start().await?;
    let mut connection = tcp(&target.longshore).await?;
    connection.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await?;
    // A literal without an index, of which the value goes on and on.
    let mut block = b"\x00\x01a\x7f\xff\xff\xff\x7f".to_vec();
    block.resize(FRAME_BYTES, b'b');
    let mut kind = HEADERS;
    let mut written = 0;
    while written < FRAMES_MAX && connection.write_all(&frame(kind, 0, 1, &block)).await.is_ok() {
        kind = CONTINUATION;
        written += 1;
    }
    ensure!(written < FRAMES_MAX, "{} MiB of headers were taken", (FRAMES_MAX * FRAME_BYTES) >> 20);
    target.serves_another().await?;
    drop(connection);
    target.holds_at_most(OWN_BYTES).await?;
    target.leaves_nothing().await
}

/// A connection on which HPACK makes much of little: one header for its table, and references to it.
async fn unpacking(target: &Target, references: usize) -> Result<TcpStream> {
    /// The newest entry of the dynamic table: the 62nd of all (RFC 7541, 6.1).
    const INDEXED: u8 = 0xbe;
    let mut connection = tcp(&target.longshore).await?;
    // POST, http, a path and an authority; then a header with a value of 2048 bytes.
    let mut block = b"\x83\x86\x44\x01/\x41\x01l\x40\x01a\x7f\x81\x0f".to_vec();
    block.resize(block.len() + 2048, b'b');
    block.resize(block.len() + references, INDEXED);
    let words = [
        PREFACE,
        &frame(SETTINGS, 0, 0, &[]),
        &frame(HEADERS, END_HEADERS | END_STREAM, 1, &block),
        &frame(PING, 0, 0, b"are you?"),
    ];
    connection.write_all(&words.concat()).await?;
    Ok(connection)
}

/// The next frame: its kind and flags, and its content.
async fn next_frame(connection: &mut TcpStream) -> Result<(u8, u8, Vec<u8>)> {
    let mut head = [0; FRAME_HEAD_BYTES];
    connection.read_exact(&mut head).await.context("the connection has ended")?;
    let [high, middle, low, kind, flags, ..] = head;
    let mut content = vec![0; usize::try_from(u32::from_be_bytes([0, high, middle, low]))?];
    connection.read_exact(&mut content).await.context("the connection has ended")?;
    Ok((kind, flags, content))
}

// Headers are counted as they are unpacked: what goes beyond the bound ends its call, and far beyond, its connection.
#[tokio::test]
async fn headers_that_unpack_without_end_are_refused() -> Result<()> {
    const ENHANCE_YOUR_CALM: u8 = 11;
    let target = Target::start().await?;
    let mut connection = unpacking(&target, 40).await?;
    let (mut is_refused, mut is_alive) = (false, false);
    while !is_refused || !is_alive {
        let (kind, flags, content) = next_frame(&mut connection).await?;
        is_refused |= kind == HEADERS && flags & END_STREAM != 0;
        is_alive |= kind == PING && content == b"are you?";
    }
    drop(connection);
    let mut connection = unpacking(&target, 8192).await?;
    let reason = loop {
        let (kind, _, content) = next_frame(&mut connection).await?;
        if kind == GOAWAY {
            break content[7];
        }
    };
    ensure!(reason == ENHANCE_YOUR_CALM, "{reason}");
    target.serves_another().await?;
    drop(connection);
    target.holds_at_most(OWN_BYTES).await?;
    target.leaves_nothing().await
}

// A call whose client has said its last word for the connection, but not for the call, is over.
#[tokio::test]
async fn half_closed_connections_are_given_up() -> Result<()> {
    const CALLS: usize = 100;
    let target = Target::start().await?;
    let mut connections = Vec::new();
    for method in [BATCH_UPDATE, WRITE] {
        let mut wire = Wire::connect(&target.longshore).await?;
        let mut calls = Vec::new();
        for _ in 0..CALLS {
            let mut call = wire.begin(method).await?;
            call.stream.send_data(wire::announced(1 << 20), false)?;
            calls.push(call);
        }
        connections.push((wire, calls));
    }
    // Open streams that nobody ends: they hold their own connection's share only.
    target.serves_another().await?;
    for (wire, calls) in connections {
        wire.close_writing()?;
        for call in calls {
            let status = call.status().await;
            ensure!(status.as_ref().map_or(true, |status| status.code() != Code::Ok), "{status:?}");
        }
    }
    target.holds_at_most(OWN_BYTES + 2 * CONNECTION_BYTES).await?;
    target.leaves_nothing().await
}
