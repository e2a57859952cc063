//! Unix sockets, as clients in other languages use them: byte by byte, because ours would not send such headers.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result, bail};
use longshore_tests::longshore::{Launch, Longshore};
use tokio::task::spawn_blocking;

use crate::http2::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame};

/// An empty message as gRPC frames it.
const NO_MESSAGE: &[u8] = &[0; 5];

/// The headers of `Capabilities.GetCapabilities`, with a field that says what the authority is.
fn headers(authority: &[u8]) -> Vec<u8> {
    let path = b"/build.bazel.remote.execution.v2.Capabilities/GetCapabilities";
    let text = |text: &[u8]| [&[u8::try_from(text.len()).expect("a short text")], text].concat();
    // POST and http by the static table, and three fields that are not kept.
    [
        &b"\x83\x86\x04"[..],
        &text(path),
        authority,
        b"\x00",
        &text(b"content-type"),
        &text(b"application/grpc"),
        b"\x00",
        &text(b"te"),
        &text(b"trailers"),
    ]
    .concat()
}

/// Waits for the first frame that answers a call.
fn answered(stream: &mut UnixStream, call: u8) -> Result<()> {
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).context("the connection ended")?;
        let [high, middle, low, kind, _, .., of_call] = header;
        let mut payload = vec![0; usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low)];
        stream.read_exact(&mut payload)?;
        match kind {
            HEADERS if of_call == call => return Ok(()),
            RST_STREAM | GOAWAY => bail!("the call was reset: frame {kind} with {payload:?}"),
            _ => {}
        }
    }
}

// Where there is no host, clients send the socket's path, as it is (Bazel) or percent-encoded (C++, Python).
#[tokio::test]
async fn whatever_clients_call_a_socket_they_are_served() -> Result<()> {
    let longshore = Longshore::launch(Launch { unix: true, ..Launch::default() }).await?;
    let path = longshore.uri().strip_prefix("unix:").context("a unix URI")?.to_owned();
    spawn_blocking(move || {
        let mut stream = UnixStream::connect(path)?;
        stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat())?;
        // The last one is the first again, from the table of fields that both ends keep.
        let authorities: [&[u8]; 4] =
            [b"\x40\x0a:authority\x12tmp%2Frv%2Fau.sock", b"\x41\x08/run/a/b", b"\x01\x09localhost", b"\xbf"];
        for (call, authority) in [1, 3, 5, 7].into_iter().zip(authorities) {
            let headers = frame(HEADERS, END_HEADERS, call, &headers(authority));
            stream.write_all(&[headers, frame(DATA, END_STREAM, call, NO_MESSAGE)].concat())?;
            answered(&mut stream, call).with_context(|| format!("authority {}", authority.escape_ascii()))?;
        }
        Ok(())
    })
    .await?
}
