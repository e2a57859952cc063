//! Who is trusted, and who we are, as files say: each is looked through by itself, so that what is wrong is told with its
//! file. What a file lacks would be told by no server: nobody would be trusted, and nobody told why.

use std::path::Path;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::{ConnectError, TlsOptions};

/// What connections take.
pub(super) fn tls(options: &TlsOptions) -> Result<ClientTlsConfig, ConnectError> {
    let mut config = ClientTlsConfig::new();
    config = match &options.authorities {
        Some(path) => config.ca_certificate(authorities(path)?),
        None => config.with_native_roots(),
    };
    if let Some((certificate, key)) = &options.identity {
        config = config.identity(identity(certificate, key)?);
    }
    if let Some(name) = &options.server_name {
        config = config.domain_name(name);
    }
    Ok(config)
}

fn authorities(path: &Path) -> Result<Certificate, ConnectError> {
    let pem = read(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, &pem)? {
        roots
            .add(certificate)
            .map_err(|error| wrong(path, format!("a certificate cannot be used: {error}")))?;
    }
    Ok(Certificate::from_pem(pem))
}

fn identity(certificate: &Path, key: &Path) -> Result<Identity, ConnectError> {
    let (chain_pem, key_pem) = (read(certificate)?, read(key)?);
    let chain = certificates(certificate, &chain_pem)?;
    let der = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| match error {
        pem::Error::NoItemsFound => wrong(key, "it has no PRIVATE KEY in PEM form, or an encrypted one"),
        error => wrong(key, error.to_string()),
    })?;
    let signing_key = ring::default_provider().key_provider.load_private_key(der);
    let signing_key = signing_key.map_err(|error| wrong(key, format!("the key cannot be used: {error}")))?;
    match CertifiedKey::new(chain, signing_key).keys_match() {
        // Of a key that does not say what its public half is, the server finds it out.
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {
            Ok(Identity::from_pem(chain_pem, key_pem))
        }
        Err(Error::InconsistentKeys(_)) => {
            Err(wrong(key, format!("it is not the key of the certificate in {}", certificate.display())))
        }
        Err(error) => Err(wrong(certificate, format!("the certificate cannot be used: {error}"))),
    }
}

/// The certificates in a file, of which there has to be one.
fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|error| wrong(path, error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong(path, "it has no CERTIFICATE in PEM form"));
    }
    Ok(certificates)
}

fn read(path: &Path) -> Result<Vec<u8>, ConnectError> {
    std::fs::read(path).map_err(|error| wrong(path, error.to_string()))
}

fn wrong(path: &Path, reason: impl Into<String>) -> ConnectError {
    ConnectError { what: format!("file {}", path.display()), reason: reason.into() }
}
