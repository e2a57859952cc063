//! The server that is recorded from or replayed against, and a store of our own for what passes through.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use futures::stream::BoxStream;
use longshore_cas_store::blob::{BlobPin, BlobStore, Ingest, StoreError, StoreOptions};
use longshore_cas_store::digest::{Digest, FileKey};
use longshore_cas_store::dir::OsDir;
use longshore_cas_store::io::Environment;
use longshore_cas_store::root::StoreRoot;
use longshore_cas_store::source::{BlobSource as _, FetchError, Fetched};
use tempfile::TempDir;
use tonic::Code;

use super::blobs::LocalBlobs;
use super::download::Download;
use crate::config::{Address, Span};
use crate::connect::{Pings, TlsOptions};
use crate::environment::{Threads, environment};
use crate::remote::{Remote, RemoteError, RemoteOptions};

/// How long a server may take for its first answer, beside the time for which it may be gone.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// What is read from a file at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Where the server is, and who we are to it.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// The server: grpc://HOST:PORT, grpcs://HOST:PORT (TLS) or unix:PATH.
    #[arg(long, value_name = "URL")]
    pub server: Address,

    /// The instance name of every request.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub instance: String,

    /// A PEM file with the authorities that the server's certificate is checked against [default: the system's].
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// A PEM file with our certificate, for servers that ask for one.
    #[arg(long, value_name = "FILE", requires = "key")]
    pub certificate: Option<PathBuf>,

    /// A PEM file with the key of our certificate.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub key: Option<PathBuf>,

    /// A file with a bearer token.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// How long the server may be gone before that is an error, such as 30s or 5m.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub outage: Span,
}

impl ServerArgs {
    fn options(&self) -> RemoteOptions {
        RemoteOptions {
            instance_name: self.instance.clone(),
            tls: TlsOptions {
                authorities: self.ca.clone(),
                identity: self.certificate.clone().zip(self.key.clone()),
                server_name: None,
            },
            token_file: self.token_file.clone(),
            outage_max: self.outage.0,
            // A server may say nothing of an action for as long as that runs.
            pings: Pings::RARE,
            ..RemoteOptions::new(&self.server.uri)
        }
    }

    /// What is wrong with the options, if something is: they contradict each other, or name files that are of no use.
    pub(crate) fn mistake(&self) -> Option<String> {
        let says_whom_to_trust = self.ca.is_some() || self.certificate.is_some();
        if says_whom_to_trust && !self.server.is_secure {
            let reason =
                "--ca, --certificate and --key are for servers that speak TLS: say grpcs://HOST:PORT";
            return Some(reason.to_owned());
        }
        let files = [
            ("--ca", &self.ca),
            ("--certificate", &self.certificate),
            ("--key", &self.key),
            ("--token-file", &self.token_file),
        ];
        let mut named = files.into_iter().filter_map(|(option, path)| Some((option, path.as_deref()?)));
        named.find_map(|(option, path)| Some(format!("{option}: {}: {}", path.display(), fault_of(path)?)))
    }
}

/// The server. What is fetched or uploaded passes through a store in a folder that is removed in the end.
pub(crate) struct Server {
    pub(crate) remote: Remote,
    store: Arc<BlobStore>,
    environment: Environment,
    uri: String,
    outage_max: Duration,
    /// Held for its lock.
    _root: StoreRoot,
    /// Dropped last: the folder is gone then.
    _folder: TempDir,
}

/// A server takes questions, and that is all.
#[derive(Debug, thiserror::Error)]
#[error("{uri} does not answer: nothing came for {answer_time_max:?}")]
struct Silent {
    uri: String,
    answer_time_max: Duration,
}

impl Server {
    /// A client of the server, with a store below `parent` that takes about `size_bytes_max` on the disk. Blocks.
    pub(crate) fn open(args: &ServerArgs, parent: &Path, size_bytes_max: u64) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix(".longshore-").tempdir_in(parent);
        let folder = folder.with_context(|| format!("cannot make a folder in {}", parent.display()))?;
        let environment = environment(Threads::of_this_machine()).context("cannot start threads")?;
        let root = StoreRoot::claim(folder.path())?;
        let (store, _) = BlobStore::open(&root, StoreOptions { size_bytes_max }, environment.clone())?;
        let remote = Remote::new(&args.options(), store.clone(), environment.clone())?;
        let (uri, outage_max) = (args.server.uri.clone(), args.outage.0);
        Ok(Self { remote, store, environment, uri, outage_max, _root: root, _folder: folder })
    }

    /// Asks whether the server is there; one that takes the question and never answers it is not.
    pub(crate) async fn reach(&self) -> anyhow::Result<()> {
        let answer_time_max = self.outage_max.saturating_add(ANSWER_TIME);
        match tokio::time::timeout(answer_time_max, self.remote.reach()).await {
            Ok(reached) => Ok(reached?),
            Err(_) => Err(Silent { uri: self.uri.clone(), answer_time_max }.into()),
        }
    }

    /// Fetches blobs, each of which is verified.
    pub(crate) fn fetch(&self, wanted: Vec<Digest>) -> BoxStream<'static, Fetched> {
        self.remote.fetch(wanted, self.store.clone())
    }

    /// Fetches blobs, of which those that cannot be had cost no others.
    pub(crate) fn download(&self, wanted: Vec<Digest>) -> Download<'_> {
        Download::new(self, wanted)
    }

    /// Whether the server has an answer to another question about that blob: then what it failed to do lies with the blob.
    pub(crate) async fn answers(&self, digest: &Digest) -> bool {
        match self.remote.find_missing(&[*digest]).await {
            Ok(_) => true,
            Err(RemoteError::Refused { code, .. }) => !is_about_us(code),
            Err(_) => false,
        }
    }

    /// Reads a blob that is held.
    pub(crate) async fn read(&self, pin: &BlobPin) -> Result<Bytes, StoreError> {
        self.store.read(pin, 0..pin.digest().size_bytes()).await
    }

    /// Reads messages of the recording's, and verifies them.
    pub(crate) async fn read_local(
        &self,
        blobs: &Arc<LocalBlobs>,
        wanted: Vec<Digest>,
    ) -> Vec<(Digest, std::io::Result<Bytes>)> {
        let blobs = blobs.clone();
        let read = move || wanted.into_iter().map(|digest| (digest, blobs.read(&digest))).collect();
        self.environment.io.run(read).await
    }

    /// Takes in bytes, to be uploaded.
    pub(crate) async fn put(&self, digest: Digest, data: Bytes) -> Result<BlobPin, StoreError> {
        self.store.put(digest, data).await
    }

    /// Gives a blob that is held a second name, outside of the store.
    pub(crate) async fn link(&self, pin: &BlobPin, path: PathBuf) -> anyhow::Result<()> {
        let (store, digest) = (self.store.clone(), *pin.digest());
        let link = move || -> anyhow::Result<()> {
            if digest.is_empty() {
                fs::write(&path, b"")?;
                return Ok(());
            }
            let (parent, name) = path.parent().zip(path.file_name()).context("a path without a name")?;
            let key = FileKey { digest, executable: false };
            store.link(&key, &OsDir::open(parent)?, Path::new(name))?;
            Ok(())
        };
        self.environment.io.run(link).await
    }

    /// Takes in a blob of the recording's, and verifies it: what is wrong with it, if something is.
    pub(crate) async fn take_in(&self, blobs: &Arc<LocalBlobs>, digest: Digest) -> Result<BlobPin, String> {
        let mut writer = match self.store.ingest(digest).await.map_err(|error| error.to_string())? {
            Ingest::Present(pin) => return Ok(pin),
            Ingest::Write(writer) => writer,
        };
        let blobs = blobs.clone();
        let io = &self.environment.io;
        let mut file = io.run(move || blobs.open(&digest)).await.map_err(|error| error.to_string())?;
        loop {
            let read = move || {
                let mut chunk = vec![0; CHUNK_BYTES];
                let read = file.read(&mut chunk)?;
                chunk.truncate(read);
                Ok::<_, std::io::Error>((file, Bytes::from(chunk)))
            };
            let chunk;
            (file, chunk) = io.run(read).await.map_err(|error| error.to_string())?;
            if chunk.is_empty() {
                break;
            }
            writer.write(chunk).await.map_err(|error| error.to_string())?;
        }
        writer.finish().await.map_err(|error| error.to_string())
    }
}

/// What is wrong with a file that an option names, if something is. What comes by a pipe can be read only once, and is not
/// looked at.
fn fault_of(path: &Path) -> Option<String> {
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        return None;
    }
    match fs::read(path) {
        Ok(content) if content.trim_ascii().is_empty() => Some("is empty".to_owned()),
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    }
}

/// Whether an error is of the command line: its options make no client.
pub(crate) fn is_mistake(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(RemoteError::Configuration(_)))
}

/// Whether an error is of the server, and not of our own disk.
pub(crate) fn is_of_the_server(error: &anyhow::Error) -> bool {
    error.is::<Silent>()
        || matches!(error.downcast_ref(), Some(FetchError::Unavailable { .. }))
        || matches!(error.downcast_ref(), Some(RemoteError::Unavailable { .. } | RemoteError::Refused { .. }))
}

/// Whether a refusal is of whoever asks, or of the whole method, whatever blob it is about.
pub(crate) fn is_about_us(code: Code) -> bool {
    matches!(code, Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented)
}
