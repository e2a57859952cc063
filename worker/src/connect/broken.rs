//! What a connection says when it ends, told from what a server says; and both, for people.

use std::error::Error;

use tonic::{Status, TimeoutExpired};

/// Whether no server said so: the connection broke, or there was none. Whatever code tonic gives it, the request may have
/// arrived or not, and nothing is wrong with it.
pub fn is_broken(status: &Status) -> bool {
    let mut causes = causes(status).peekable();
    if causes.peek().is_none() {
        return false;
    }
    // A stream that was reset, and a time that we set ourselves, say nothing about the connection.
    causes.all(|cause| match cause.downcast_ref::<h2::Error>() {
        Some(error) => error.is_io() || error.is_go_away(),
        None => !cause.is::<TimeoutExpired>(),
    })
}

/// What an error was caused by, one thing by another.
pub fn causes(error: &dyn Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |cause| (*cause).source())
}

/// What a status says, and what was behind it: of a handshake that failed, the status itself says nothing.
pub fn reason(status: &Status) -> String {
    let mut reason = format!("{:?}: {}", status.code(), status.message());
    for cause in causes(status) {
        let text = cause.to_string();
        if !reason.contains(&text) {
            reason = format!("{reason}: {text}");
        }
    }
    reason
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn caused_by(cause: impl Error + Send + Sync + 'static) -> Status {
        Status::from_error(Box::new(cause))
    }

    #[test]
    fn a_connection_is_told_from_a_server() {
        assert!(is_broken(&caused_by(io::Error::from(io::ErrorKind::ConnectionReset))));
        assert!(!is_broken(&caused_by(h2::Error::from(h2::Reason::INTERNAL_ERROR))));
        assert!(!is_broken(&caused_by(TimeoutExpired(()))));
        assert!(!is_broken(&Status::unknown("it does not know either")));
    }
    #[test]
    fn a_reason_has_its_causes_once() {
        let status = caused_by(io::Error::other(io::Error::other("no such certificate")));
        assert_eq!(reason(&status).matches("no such certificate").count(), 1);
        assert_eq!(reason(&Status::not_found("a blob")), "NotFound: a blob");
    }
}
