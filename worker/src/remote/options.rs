//! How a remote CAS is reached, and how much is asked of it.

use std::path::PathBuf;
use std::time::Duration;

use crate::connect::{Pings, TlsOptions};

/// How long a server of blobs says nothing to any of the calls on a connection: those that take longer are given up, but
/// for writes, which have a connection of their own.
const SILENCE_MAX: Duration = Duration::from_mins(2);

/// Where a remote CAS is and how to behave towards it.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// `grpc://HOST:PORT`, `grpcs://HOST:PORT` (TLS) or `unix:PATH`; `http` and `https` mean the same as the first two.
    pub endpoint: String,
    /// The instance name of every request; empty for servers that have one instance.
    pub instance_name: String,
    /// Certificates, where the endpoint speaks TLS.
    pub tls: TlsOptions,
    /// A file with a bearer token, read again as it ages.
    pub token_file: Option<PathBuf>,
    /// How a server that has vanished is found out; where blobs are written, pings are rare in any case.
    pub pings: Pings,
    /// Whether blobs travel compressed where the server offers it.
    pub compression: bool,
    /// The most downloads in flight.
    pub requests_in_flight_max: usize,
    /// How long the server may be unavailable before that is an error.
    pub outage_max: Duration,
    /// How long it is believed that the server has a blob which it had.
    pub known_age_max: Duration,
}

impl RemoteOptions {
    /// The defaults for the server at `endpoint`.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            instance_name: String::new(),
            tls: TlsOptions::default(),
            token_file: None,
            pings: Pings::Counted { silence_max: SILENCE_MAX },
            compression: true,
            requests_in_flight_max: 64,
            outage_max: Duration::from_mins(10),
            known_age_max: Duration::from_secs(10),
        }
    }
}
