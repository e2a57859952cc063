//! The connection: where to, how trusted, and tuned for blobs.
//!
//! One HTTP/2 connection carries many calls: its window is what may be under way, and they share it as they need.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::TryFutureExt as _;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::Service as _;

use super::broken::causes;
use super::lookup::Lookup;
use super::pings::PONG_TIME_MAX;
use super::trust::tls;
use super::{ConnectError, Gathered, Pings, TlsOptions};

/// How long a connection attempt may take, with the lookup of the name and the handshake of TLS.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a connection is silent before the kernel asks the peer. Unlike HTTP/2's pings, which gRPC servers count, that
/// is answered by the other kernel, and no server hears of it.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How often it asks from then on.
const QUESTION_EVERY: Duration = Duration::from_secs(10);
/// How many questions without an answer are enough: a peer that is gone is known to be after a minute.
const QUESTIONS_MAX: u32 = 3;
/// How long a peer may leave unacknowledged what was sent, or take none of it, before the connection ends: while something
/// is unacknowledged, the kernel asks nothing, and would try for a quarter of an hour; for ever, where a peer is there and
/// takes nothing. Longer than a way is cut that comes back, and than a server is busy.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_mins(1);
/// What may be under way on one stream before we have taken it: a batch and a half.
const STREAM_WINDOW_BYTES: u32 = 6 << 20;
/// What may be under way on the connection: 50 ms at 10 Gbit/s.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// A channel that connects when it is first used, and again whenever it must. It counts when connections begin and end.
pub(super) fn open(
    address: &str,
    options: &TlsOptions,
    pings: Pings,
    turns: &Arc<AtomicU64>,
) -> Result<Channel, ConnectError> {
    let wrong = |reason: String| ConnectError { what: format!("endpoint {address:?}"), reason };
    let Target { uri, is_secure } = target(address).map_err(&wrong)?;
    let mut endpoint = Endpoint::from_shared(uri).map_err(|error| wrong(error.to_string()))?;
    if is_secure {
        endpoint = endpoint.tls_config(tls(options)?).map_err(|error| wrong(in_full(&error)))?;
    }
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIME_MAX)
        .http2_keep_alive_interval(pings.interval())
        .keep_alive_timeout(PONG_TIME_MAX)
        // Without calls, most servers take a ping amiss, and nothing is lost with the connection.
        .keep_alive_while_idle(false)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let turns = turns.clone();
    let counted = move || Turns::begin(turns.clone());
    if let Some(path) = address.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path).to_owned();
        let connect = tower::service_fn(move |_: Uri| {
            let counted = counted.clone();
            UnixStream::connect(path.clone())
                .map_ok(move |stream| TokioIo::new(Gathered::holding(counted(), stream)))
        });
        return Ok(endpoint.connect_with_connector_lazy(connect));
    }
    let mut connector = connector();
    let connect = tower::service_fn(move |uri| {
        let counted = counted.clone();
        connector
            .call(uri)
            .map_ok(move |stream| TokioIo::new(Gathered::holding(counted(), stream.into_inner())))
    });
    Ok(endpoint.connect_with_connector_lazy(connect))
}

/// Counts that a connection has begun and, when it is dropped, that it has ended.
struct Turns(Arc<AtomicU64>);

impl Turns {
    fn begin(turns: Arc<AtomicU64>) -> Self {
        turns.fetch_add(1, Ordering::Relaxed);
        Self(turns)
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What makes connections of TCP.
fn connector() -> HttpConnector<Lookup> {
    let mut connector = HttpConnector::new_with_resolver(Lookup::default());
    // TLS is put on top of it.
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_TIME_MAX));
    // Without TCP_NODELAY a small request waits for an acknowledgement that the server delays by 40 ms.
    connector.set_nodelay(true);
    connector.set_keepalive(Some(SILENCE_MAX));
    connector.set_keepalive_interval(Some(QUESTION_EVERY));
    connector.set_keepalive_retries(Some(QUESTIONS_MAX));
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
    connector
}

/// Where an endpoint leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// As tonic understands it; the same for all ways to write it.
    pub uri: String,
    /// Whether it means TLS.
    pub is_secure: bool,
}

/// Where that endpoint leads.
///
/// # Errors
/// What is wrong with it.
pub fn target(endpoint: &str) -> Result<Target, String> {
    let (scheme, rest) = endpoint.split_once(':').ok_or("it has no scheme")?;
    let (scheme, is_secure) = match scheme {
        "grpc" | "http" => ("http", false),
        "grpcs" | "https" => ("https", true),
        "unix" => return Ok(Target { uri: format!("unix:{}", socket(rest)?), is_secure: false }),
        _ => return Err("its scheme is none of grpc, grpcs, http, https and unix".to_owned()),
    };
    let rest = rest.strip_prefix("//").ok_or("it has no // before its host")?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#', '@']) {
        return Err("it has more than a host and a port".to_owned());
    }
    let uri = format!("{scheme}://{}", authority.to_ascii_lowercase());
    let parsed: Uri = uri.parse().map_err(|_| "it has no host that could be one")?;
    let host = parsed.host().filter(|host| !host.is_empty()).ok_or("it has no host")?;
    // `Uri` takes a port that is none for the host's end.
    let port = authority.get(host.len()..).unwrap_or_default();
    if port.is_empty() {
        return Err("it has no port".to_owned());
    }
    if parsed.port_u16().is_none_or(|port| port == 0) {
        return Err(format!("{port:?} is no port"));
    }
    Ok(Target { uri, is_secure })
}

/// The path of a socket, as it stands behind `unix:`; behind `unix://`, there would be a host before it.
fn socket(rest: &str) -> Result<&str, String> {
    if rest.trim_matches('/').is_empty() {
        return Err("it has no path".to_owned());
    }
    match rest.strip_prefix("//") {
        Some(path) if !path.starts_with('/') => Err("its path does not begin with /".to_owned()),
        Some(path) => Ok(path),
        None => Ok(rest),
    }
}

/// An error with all its causes.
fn in_full(error: &dyn Error) -> String {
    let causes = causes(error).map(ToString::to_string);
    std::iter::once(error.to_string()).chain(causes).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{getsockopt, sockopt};

    use super::*;

    #[test]
    fn schemes_say_whether_it_is_tls() {
        let cases = [
            ("grpc://a:1", "http://a:1", false),
            ("http://A:1/", "http://a:1", false),
            ("grpcs://a:1", "https://a:1", true),
            ("grpc://[::1]:65535", "http://[::1]:65535", false),
            ("unix:/a", "unix:/a", false),
            ("unix:a", "unix:a", false),
            ("unix:///a", "unix:/a", false),
        ];
        for (endpoint, uri, is_secure) in cases {
            assert_eq!(target(endpoint), Ok(Target { uri: uri.to_owned(), is_secure }), "{endpoint}");
        }
    }

    // What could never be reached is told when it is written, not by a server that does not answer.
    #[test]
    fn what_leads_nowhere_is_no_endpoint() {
        let cases = [
            ("a", "no scheme"),
            ("ftp://a", "its scheme"),
            ("a:1", "its scheme"),
            ("grpc:", "no //"),
            ("grpc:a:1", "no //"),
            ("grpc://", "no host"),
            ("grpc://:1", "no host"),
            ("grpc://a", "no port"),
            ("grpcs://a.example/", "no port"),
            ("grpc://[::1]", "no port"),
            ("grpc://a:0", "is no port"),
            ("grpc://a:65536", "is no port"),
            ("grpc://a:b", "is no port"),
            ("grpc://a:", "is no port"),
            ("grpc://::1:1", "no host"),
            ("grpc://a b:1", "no host"),
            ("grpc://a:1/b", "more than"),
            ("grpc://a:1?b", "more than"),
            ("grpc://u:p@a:1", "more than"),
            ("unix:", "no path"),
            ("unix:///", "no path"),
            ("unix://tmp/s.sock", "does not begin with /"),
        ];
        for (endpoint, reason) in cases {
            let error = target(endpoint).unwrap_err();
            assert!(error.contains(reason), "{endpoint}: {error}");
        }
    }

    // A peer that vanishes says nothing, not even an end: on a connection without pings only the kernel finds that out.
    #[tokio::test]
    async fn the_kernel_finds_out_within_a_minute_that_a_peer_has_vanished() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let stream = connector().call(uri).await.unwrap().into_inner();
        assert!(getsockopt(&stream, sockopt::KeepAlive).unwrap());
        let silence_s = getsockopt(&stream, sockopt::TcpKeepIdle).unwrap();
        let interval_s = getsockopt(&stream, sockopt::TcpKeepInterval).unwrap();
        let questions = getsockopt(&stream, sockopt::TcpKeepCount).unwrap();
        assert_eq!(silence_s + questions * interval_s, 60);
        assert_eq!(getsockopt(&stream, sockopt::TcpUserTimeout).unwrap(), 60_000);
    }

    #[test]
    fn a_certificate_that_cannot_be_read_is_named() {
        let options = TlsOptions { authorities: Some("/nowhere/ca.pem".into()), ..TlsOptions::default() };
        assert!(
            open("grpcs://localhost:1", &options, Pings::Free, &Arc::default())
                .unwrap_err()
                .to_string()
                .contains("/nowhere/ca.pem")
        );
    }
}
