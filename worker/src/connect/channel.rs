//! The connection: where to, how trusted, and tuned for blobs.
//!
//! One HTTP/2 connection carries everything: its window is what may be under way, and requests share it as they need.

use std::path::Path;
use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::pings::PONG_TIME_MAX;
use super::{ConnectError, Pings, TlsOptions};

/// How long a connection attempt may take.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// What may be under way on one stream before we have taken it: a batch and a half.
const STREAM_WINDOW_BYTES: u32 = 6 << 20;
/// What may be under way on the connection: 50 ms at 10 Gbit/s.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// A channel that connects when it is first used, and again whenever it must.
pub(super) fn open(address: &str, options: &TlsOptions, pings: Pings) -> Result<Channel, ConnectError> {
    let wrong = |reason: String| ConnectError { what: format!("endpoint {address:?}"), reason };
    let (uri, is_secure) = uri(address).map_err(&wrong)?;
    let mut endpoint = Endpoint::from_shared(uri).map_err(|error| wrong(error.to_string()))?;
    if is_secure {
        endpoint = endpoint.tls_config(tls(options)?).map_err(|error| wrong(error.to_string()))?;
    }
    // Without TCP_NODELAY a small request waits for an acknowledgement that the server delays by 40 ms.
    let endpoint = endpoint
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIME_MAX)
        .http2_keep_alive_interval(pings.interval())
        .keep_alive_timeout(PONG_TIME_MAX)
        // Without calls, most servers take a ping amiss, and nothing is lost with the connection.
        .keep_alive_while_idle(false)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    Ok(endpoint.connect_lazy())
}

/// Whether that is an endpoint, and whether it means TLS.
///
/// # Errors
/// What is wrong with it.
pub fn is_secure(endpoint: &str) -> Result<bool, String> {
    let (uri, is_secure) = uri(endpoint)?;
    Endpoint::from_shared(uri).map_err(|error| error.to_string())?;
    Ok(is_secure)
}

/// The URI that tonic understands, and whether it means TLS.
fn uri(endpoint: &str) -> Result<(String, bool), String> {
    let (scheme, rest) = endpoint.split_once(':').ok_or_else(|| "it has no scheme".to_owned())?;
    match scheme {
        "grpc" | "http" => Ok((format!("http:{rest}"), false)),
        "grpcs" | "https" => Ok((format!("https:{rest}"), true)),
        "unix" => Ok((endpoint.to_owned(), false)),
        _ => Err("its scheme is none of grpc, grpcs, http, https and unix".to_owned()),
    }
}

fn tls(options: &TlsOptions) -> Result<ClientTlsConfig, ConnectError> {
    let mut config = ClientTlsConfig::new();
    config = match &options.authorities {
        Some(path) => config.ca_certificate(Certificate::from_pem(read(path)?)),
        None => config.with_native_roots(),
    };
    if let Some((certificate, key)) = &options.identity {
        config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    if let Some(name) = &options.server_name {
        config = config.domain_name(name);
    }
    Ok(config)
}

fn read(path: &Path) -> Result<Vec<u8>, ConnectError> {
    std::fs::read(path)
        .map_err(|error| ConnectError { what: format!("file {}", path.display()), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_say_whether_it_is_tls() {
        assert_eq!(uri("grpc://a:1").unwrap(), ("http://a:1".to_owned(), false));
        assert_eq!(uri("grpcs://a:1").unwrap(), ("https://a:1".to_owned(), true));
        assert_eq!(uri("unix:/a").unwrap(), ("unix:/a".to_owned(), false));
        assert!(uri("ftp://a").is_err());
        assert!(uri("a").is_err());
    }

    #[test]
    fn a_certificate_that_cannot_be_read_is_named() {
        let options = TlsOptions { authorities: Some("/nowhere/ca.pem".into()), ..TlsOptions::default() };
        assert!(
            open("grpcs://localhost:1", &options, Pings::Free)
                .unwrap_err()
                .to_string()
                .contains("/nowhere/ca.pem")
        );
    }
}
