//! A bearer token in a file that somebody else keeps fresh.
//!
//! *Locking*: the lock is held to look at what was read last, never while the file is read.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use longshore_cas_store::io::Clock;
use parking_lot::Mutex;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};

/// How old a token may be before the file is read again.
const TOKEN_AGE_MAX: Duration = Duration::from_secs(5);

/// The token, as it was a moment ago.
pub(super) struct Token {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    last: Mutex<Option<Last>>,
}

/// What was read last.
#[derive(Clone)]
struct Last {
    /// When; nothing if it was refused since.
    read: Option<SystemTime>,
    value: MetadataValue<Ascii>,
}

impl Token {
    pub(super) fn new(path: &Path, clock: Arc<dyn Clock>) -> Self {
        Self { path: path.to_owned(), clock, last: Mutex::new(None) }
    }

    /// The value of the `authorization` header. A file that cannot be read leaves the token as it was.
    pub(super) async fn header(&self) -> Result<MetadataValue<Ascii>, Status> {
        let now = self.clock.now();
        let last = self.last.lock().clone();
        if let Some(Last { read: Some(read), value }) = &last
            && now.duration_since(*read).is_ok_and(|age| age < TOKEN_AGE_MAX)
        {
            return Ok(value.clone());
        }
        match (self.read().await, last) {
            (Ok(value), _) => {
                *self.last.lock() = Some(Last { read: Some(now), value: value.clone() });
                Ok(value)
            }
            (Err(reason), Some(Last { value, .. })) => {
                tracing::warn!("token file {}: {reason}; the last token is used", self.path.display());
                Ok(value)
            }
            (Err(reason), None) => {
                let path = self.path.display();
                Err(Status::unauthenticated(format!("token file {path}: {reason}")))
            }
        }
    }

    /// The server did not take it: whatever its age, the file may have another one by now.
    pub(super) fn refused(&self) {
        if let Some(last) = &mut *self.last.lock() {
            last.read = None;
        }
    }

    async fn read(&self) -> Result<MetadataValue<Ascii>, String> {
        let text = tokio::fs::read_to_string(&self.path).await.map_err(|error| error.to_string())?;
        let token = text.trim();
        if token.is_empty() {
            return Err("is empty".to_owned());
        }
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {token}").parse().map_err(|_| "is no header value".to_owned())?;
        value.set_sensitive(true);
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;

    use super::*;

    struct Hand(Mutex<SystemTime>);

    impl Clock for Hand {
        fn now(&self) -> SystemTime {
            *self.0.lock()
        }

        fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
            Box::pin(std::future::pending())
        }
    }

    // A rotated token is used without a restart, and one that is being rotated does not stop us.
    #[tokio::test]
    async fn a_token_is_read_again_and_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let hand = Arc::new(Hand(Mutex::new(SystemTime::UNIX_EPOCH)));
        let token = Token::new(&path, hand.clone());
        assert!(token.header().await.unwrap_err().message().contains("token file"));
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(token.header().await.unwrap(), "Bearer one");
        std::fs::write(&path, "two\n").unwrap();
        assert_eq!(token.header().await.unwrap(), "Bearer one");
        *hand.0.lock() += TOKEN_AGE_MAX;
        assert_eq!(token.header().await.unwrap(), "Bearer two");
        std::fs::write(&path, "three\n").unwrap();
        assert_eq!(token.header().await.unwrap(), "Bearer two");
        token.refused();
        assert_eq!(token.header().await.unwrap(), "Bearer three");
        std::fs::remove_file(&path).unwrap();
        *hand.0.lock() += TOKEN_AGE_MAX;
        assert_eq!(token.header().await.unwrap(), "Bearer three");
    }
}
