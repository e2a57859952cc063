//! What blocks a thread for as long as others please, and is wanted by many: there is one of it at a time.
//!
//! Whoever gives it up has not ended it. If the next one began it anew, a name server or a file system that does not
//! answer would take a thread for each attempt, and with the last one everybody would wait who needs one.
//!
//! *Locking*: the lock is held to look at what is under way, never while that goes on.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;

/// What is under way, for all who want it.
pub(super) type Joined<T> = Shared<BoxFuture<'static, T>>;

/// At most one piece of work at a time; clones share it.
#[derive(Clone)]
pub(super) struct Blocking<T> {
    under_way: Arc<Mutex<Option<Joined<T>>>>,
}

impl<T> Default for Blocking<T> {
    fn default() -> Self {
        Self { under_way: Arc::default() }
    }
}

impl<T: Clone + Send + Sync + 'static> Blocking<T> {
    /// What comes of what is under way; of `work`, which begins, if nothing is. And whether it begins.
    pub(super) fn join(&self, work: impl FnOnce() -> T + Send + 'static) -> (Joined<T>, bool) {
        let mut under_way = self.under_way.lock();
        if let Some(joined) = &*under_way {
            return (joined.clone(), false);
        }
        let end = scopeguard::guard(self.under_way.clone(), |under_way| *under_way.lock() = None);
        let thread = tokio::task::spawn_blocking(move || {
            let _end = end;
            work()
        });
        let joined =
            thread.map(|outcome| outcome.expect("it does not panic, and is not aborted")).boxed().shared();
        *under_way = Some(joined.clone());
        (joined, true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    // A name that nobody resolves takes one thread, however often it is asked for.
    #[tokio::test]
    async fn what_was_given_up_is_joined_and_not_begun_again() {
        let blocking = Blocking::default();
        let (release, released) = mpsc::channel();
        let (given_up, begins) = blocking.join(move || released.recv().unwrap());
        assert!(begins);
        drop(given_up);
        let (joined, begins) = blocking.join(|| "another");
        assert!(!begins);
        release.send("the first").unwrap();
        assert_eq!(joined.await, "the first");
        let (joined, begins) = blocking.join(|| "another");
        assert!(begins);
        assert_eq!(joined.await, "another");
    }
}
