//! TLS both ways, and tokens: who is trusted, and by whom.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use longshore_proto::bots::CreateBotSessionRequest;
use longshore_proto::bots::bots_client::BotsClient;
use longshore_tests::fake_bots::{FakeBots, Handshake};
use longshore_tests::source::source_root;
use longshore_worker::connect::{Link, TlsOptions};
use longshore_worker::environment::MachineClock;
use longshore_worker::frontend::bots::PINGS;
use tonic::Code;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::server::ServerTlsConfig;
use tonic::transport::{Certificate, Identity};

use super::{action, exit_code, join_by, no_mistakes, serve_one};

fn pem(name: &str) -> PathBuf {
    source_root().join("tests/it/bots/tls").join(name)
}

/// A server with a certificate, for bots that have one too.
async fn start() -> Result<FakeBots> {
    let own = std::fs::read(pem("server.pem"))?;
    let authority = Certificate::from_pem(std::fs::read(pem("ca.pem"))?);
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(&own, &own)).client_ca_root(authority);
    FakeBots::start_with_tls(Handshake::Given, tls).await
}

fn options() -> TlsOptions {
    let client = pem("client.pem");
    TlsOptions {
        authorities: Some(pem("ca.pem")),
        identity: Some((client.clone(), client)),
        server_name: Some("localhost".to_owned()),
    }
}

fn endpoint(server: &FakeBots) -> String {
    server.uri().replace("grpc://", "grpcs://")
}

#[tokio::test]
async fn both_sides_show_who_they_are() -> Result<()> {
    let server = start().await?;
    let link = Link::open(&endpoint(&server), &options(), None, PINGS, Arc::new(MachineClock))?;
    let source = join_by(link, 1);
    server.submit("a", &action(0));
    serve_one(&*source, 3).await?;
    assert_eq!(exit_code(&server.finished("a").await)?, 3);
    no_mistakes(&server)
}

// A bot without a certificate, one that does not know the authority, and one that expects another name: none of them
// gets as far as a call.
#[tokio::test]
async fn strangers_are_not_spoken_to() -> Result<()> {
    let server = start().await?;
    let strangers = [
        TlsOptions { identity: None, ..options() },
        TlsOptions { authorities: None, ..options() },
        TlsOptions { server_name: Some("example.org".to_owned()), ..options() },
    ];
    for stranger in strangers {
        let link = Link::open(&endpoint(&server), &stranger, None, PINGS, Arc::new(MachineClock))?;
        let mut client = BotsClient::new(link.channel());
        let refused =
            client.create_bot_session(link.request(CreateBotSessionRequest::default()).await?).await;
        let code = refused.map(drop).map_err(|status| status.code());
        assert!(
            matches!(code, Err(Code::Unavailable | Code::Unknown | Code::Internal)),
            "{stranger:?}: {code:?}"
        );
    }
    assert_eq!(server.calls().len(), 0);
    Ok(())
}

#[tokio::test]
async fn a_token_goes_with_every_call() -> Result<()> {
    let server = FakeBots::start(Handshake::Given).await?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), "secret\n")?;
    let clock = Arc::new(MachineClock);
    let link = Link::open(server.uri(), &TlsOptions::default(), Some(file.path()), PINGS, clock)?;
    let source = join_by(link, 1);
    server.submit("a", &action(0));
    serve_one(&*source, 3).await?;
    let calls = server.calls();
    assert!(calls.len() >= 2);
    for call in calls {
        assert_eq!(
            call.headers.get("authorization").map(AsciiMetadataValue::as_bytes),
            Some(&b"Bearer secret"[..])
        );
    }
    Ok(())
}

// What would end in a server that is trusted by nobody, or that trusts nobody, is told before the first call, and with the
// file that is to be mended.
#[test]
fn a_file_that_makes_no_tls_is_named() -> Result<()> {
    let section = |label: &str, base64: &str| {
        format!("-----BEGIN {label}-----\r\n{base64}\r\n-----END {label}-----\r\n")
    };
    let (certificate, key) = (section("CERTIFICATE", "AAAA"), section("PRIVATE KEY", "AAAA"));
    let authorities: [(&str, &str); 5] = [
        ("", "it has no CERTIFICATE"),
        (&key, "it has no CERTIFICATE"),
        (&section("TRUSTED CERTIFICATE", "AAAA"), "it has no CERTIFICATE"),
        ("-----BEGIN CERTIFICATE-----\n", "section end"),
        (&certificate, "a certificate cannot be used"),
    ];
    let file = tempfile::NamedTempFile::new()?;
    let path = file.path().to_owned();
    let error = |text: &str, tls: &TlsOptions| -> Result<String> {
        std::fs::write(&path, text)?;
        let link = Link::open("grpcs://localhost:1", tls, None, PINGS, Arc::new(MachineClock));
        let error = link.map(drop).expect_err(text).to_string();
        assert!(error.contains(&path.display().to_string()), "{text}: {error}");
        Ok(error)
    };
    for (text, reason) in authorities {
        let error = error(text, &TlsOptions { authorities: Some(path.clone()), ..options() })?;
        assert!(error.contains(reason), "{text}: {error}");
    }
    let certificates = [("", "it has no CERTIFICATE"), (&*certificate, "the certificate cannot be used")];
    for (text, reason) in certificates {
        let identity = Some((path.clone(), pem("client.pem")));
        let error = error(text, &TlsOptions { identity, ..options() })?;
        assert!(error.contains(reason), "{text}: {error}");
    }
    let (encrypted, another) =
        (section("ENCRYPTED PRIVATE KEY", "AAAA"), std::fs::read_to_string(pem("server.pem"))?);
    let keys = [
        ("", "it has no PRIVATE KEY"),
        (&*encrypted, "an encrypted one"),
        (&*key, "the key cannot be used"),
        (&*another, "it is not the key of the certificate in"),
    ];
    for (text, reason) in keys {
        let identity = Some((pem("client.pem"), path.clone()));
        let error = error(text, &TlsOptions { identity, ..options() })?;
        assert!(error.contains(reason), "{text}: {error}");
    }
    Ok(())
}
