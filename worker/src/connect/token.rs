//! A bearer token in a file that somebody else keeps fresh.
//!
//! One that cannot be read, or not now, is used as it was: requests are not held up by the file.
//!
//! *Locking*: the lock is held to look at what was read last, never while the file is read.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use longshore_cas_store::io::Clock;
use parking_lot::Mutex;
use tokio::time::timeout;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};

use super::blocking::Blocking;

/// How old a token may be before the file is read again, and how long one that could not be read is left alone.
const TOKEN_AGE_MAX: Duration = Duration::from_secs(5);
/// How long a request waits for a newer token where there is one already.
const READ_WAIT_MAX: Duration = Duration::from_secs(1);

/// The value of the `authorization` header.
type Header = MetadataValue<Ascii>;

/// The token, as it was a moment ago.
pub(super) struct Token {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    last: Mutex<Last>,
    reading: Blocking<Result<Header, String>>,
}

/// What was read last.
#[derive(Clone, Default)]
struct Last {
    header: Option<Header>,
    /// When; nothing if it was refused since.
    read: Option<SystemTime>,
    /// When it could not be read, if not since.
    failed: Option<SystemTime>,
}

impl Last {
    /// Whether the file is to be left alone.
    fn is_recent(&self, now: SystemTime) -> bool {
        let is_recent = |at| now.duration_since(at).is_ok_and(|age| age < TOKEN_AGE_MAX);
        self.read.is_some_and(is_recent) || self.failed.is_some_and(is_recent)
    }
}

impl Token {
    pub(super) fn new(path: &Path, clock: Arc<dyn Clock>) -> Self {
        Self { path: path.to_owned(), clock, last: Mutex::default(), reading: Blocking::default() }
    }

    /// The value of the `authorization` header. A file that cannot be read leaves the token as it was.
    pub(super) async fn header(self: &Arc<Self>) -> Result<Header, Status> {
        let Last { header, read, .. } = {
            let last = self.last.lock();
            match &last.header {
                Some(header) if last.is_recent(self.clock.now()) => return Ok(header.clone()),
                _ => last.clone(),
            }
        };
        let token = self.clone();
        let (reading, begins) = self.reading.join(move || token.read());
        let Some(header) = header else {
            return reading.await.map_err(|reason| {
                let path = self.path.display();
                Status::unauthenticated(format!("there is no token to send: token file {path}: {reason}"))
            });
        };
        if read.is_none() {
            // One that was refused is of no use.
            return Ok(reading.await.unwrap_or(header));
        }
        if !begins {
            return Ok(header);
        }
        match timeout(READ_WAIT_MAX, reading).await {
            Ok(Ok(newer)) => Ok(newer),
            _ => Ok(header),
        }
    }

    /// The server did not take it: whatever its age, the file may have another one by now.
    pub(super) fn refused(&self) {
        self.last.lock().read = None;
    }

    /// Reads the file, and notes what came of it.
    fn read(&self) -> Result<Header, String> {
        let now = self.clock.now();
        let outcome = header_in(&self.path);
        let mut last = self.last.lock();
        match &outcome {
            Ok(header) => *last = Last { header: Some(header.clone()), read: Some(now), failed: None },
            Err(reason) => {
                last.failed = Some(now);
                if last.header.is_some() {
                    drop(last);
                    tracing::warn!("token file {}: {reason}; the last token is used", self.path.display());
                }
            }
        }
        outcome
    }
}

/// What the token in a file makes.
fn header_in(path: &Path) -> Result<Header, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let token = text.trim();
    if token.is_empty() {
        return Err("is empty".to_owned());
    }
    let mut header: Header =
        format!("Bearer {token}").parse().map_err(|_| "is no header value".to_owned())?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use futures::future::{BoxFuture, pending};
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    /// A time that stands still until it is moved.
    struct Hand(Mutex<SystemTime>);

    impl Hand {
        fn new() -> Arc<Self> {
            Arc::new(Self(Mutex::new(SystemTime::UNIX_EPOCH)))
        }

        fn a_token_ages(&self) {
            *self.0.lock() += TOKEN_AGE_MAX;
        }
    }

    impl Clock for Hand {
        fn now(&self) -> SystemTime {
            *self.0.lock()
        }

        fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
            Box::pin(pending())
        }
    }

    // A rotated token is used without a restart, and one that is being rotated does not stop us.
    #[tokio::test]
    async fn a_token_is_read_again_and_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let hand = Hand::new();
        let token = Arc::new(Token::new(&path, hand.clone()));
        assert!(token.header().await.unwrap_err().message().contains("there is no token to send"));
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(token.header().await.unwrap(), "Bearer one");
        std::fs::write(&path, "two\n").unwrap();
        assert_eq!(token.header().await.unwrap(), "Bearer one");
        hand.a_token_ages();
        assert_eq!(token.header().await.unwrap(), "Bearer two");
        std::fs::write(&path, "three\n").unwrap();
        assert_eq!(token.header().await.unwrap(), "Bearer two");
        token.refused();
        assert_eq!(token.header().await.unwrap(), "Bearer three");
        std::fs::remove_file(&path).unwrap();
        hand.a_token_ages();
        assert_eq!(token.header().await.unwrap(), "Bearer three");
    }

    /// A token that was read once, and its file.
    async fn one() -> (tempfile::TempDir, PathBuf, Arc<Hand>, Arc<Token>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "one").unwrap();
        let hand = Hand::new();
        let token = Arc::new(Token::new(&path, hand.clone()));
        assert_eq!(token.header().await.unwrap(), "Bearer one");
        (folder, path, hand, token)
    }

    // Every read that fails is a line in the log.
    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_left_alone_for_a_while() {
        let (_folder, path, hand, token) = one().await;
        std::fs::write(&path, "").unwrap();
        hand.a_token_ages();
        assert_eq!(token.header().await.unwrap(), "Bearer one");
        std::fs::write(&path, "two").unwrap();
        for _ in 0..3 {
            assert_eq!(token.header().await.unwrap(), "Bearer one");
            token.refused();
        }
        hand.a_token_ages();
        assert_eq!(token.header().await.unwrap(), "Bearer two");
    }

    // A file system that does not answer is not to be felt by schedulers that do.
    #[tokio::test]
    async fn no_request_waits_for_a_file_that_is_not_read_in_time() {
        let (_folder, path, hand, token) = one().await;
        // Whoever opens it waits for a writer.
        std::fs::remove_file(&path).unwrap();
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        hand.a_token_ages();
        for _ in 0..3 {
            assert_eq!(token.header().await.unwrap(), "Bearer one");
        }
        let (reading, begins) = token.reading.join(|| Err("it is not under way".to_owned()));
        std::fs::write(&path, "two").unwrap();
        assert!(!begins);
        assert_eq!(reading.await.unwrap(), "Bearer two");
        assert_eq!(token.header().await.unwrap(), "Bearer two");
    }
}
