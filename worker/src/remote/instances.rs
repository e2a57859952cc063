//! The instances below the one that is configured, as far as somebody wants them.
//!
//! To its clients each is a CAS of its own: the client of one has limits, a queue, a window, a budget and a memory of its
//! own, and shares nothing but the connections. Their names come from clients, who can invent any number: only those that
//! were used last are kept, and what they remember together is bounded. One that is in use lives on without being kept.
//!
//! *Locking*: the lock is held for changes in memory, and that of a memory within it.

use std::fmt;

use parking_lot::Mutex;

use super::{Remote, known};

/// The most instances that are kept.
const INSTANCES_MAX: usize = 64;
/// The most blobs that those remember together.
const BLOBS_MAX: usize = 2 * known::BLOBS_MAX;

/// The instances of one server, from the configured one down.
pub struct Instances {
    prefix: Remote,
    /// By what comes after the prefix; what was used last comes last.
    below: Mutex<Vec<(String, Remote)>>,
}

impl Instances {
    /// Those of `prefix` and below.
    pub fn new(prefix: Remote) -> Self {
        Self { prefix, below: Mutex::default() }
    }

    /// The configured one.
    pub fn prefix(&self) -> &Remote {
        &self.prefix
    }

    /// The one called `suffix` below it; it itself, if that is empty.
    pub fn get(&self, suffix: &str) -> Remote {
        if suffix.is_empty() {
            return self.prefix.clone();
        }
        let mut below = self.below.lock();
        let entry = match below.iter().position(|(known, _)| known == suffix) {
            Some(at) => below.remove(at),
            None => (suffix.to_owned(), self.prefix.below(suffix)),
        };
        let remote = entry.1.clone();
        below.push(entry);
        let mut forgotten = Vec::new();
        while below.len() > 1 && !fits(&below) {
            forgotten.push(below.remove(0));
        }
        drop(below);
        // What one remembers takes its time to free.
        drop(forgotten);
        remote
    }
}

fn fits(kept: &[(String, Remote)]) -> bool {
    let blobs: usize = kept.iter().map(|(_, remote)| remote.shared.known.len()).sum();
    kept.len() <= INSTANCES_MAX && blobs <= BLOBS_MAX
}

impl fmt::Debug for Instances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.below.lock().len();
        f.debug_struct("Instances").field("prefix", &self.prefix).field("kept", &kept).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use longshore_cas_store::blob::{BlobStore, StoreOptions};
    use longshore_cas_store::digest::DigestFunction;
    use longshore_cas_store::io::{Environment, IoPool};
    use longshore_cas_store::root::StoreRoot;

    use super::*;
    use crate::environment::{MachineClock, TokioExecutor};
    use crate::remote::RemoteOptions;

    /// The instances below `team` of a server that nobody speaks to, and what goes away with them.
    fn instances() -> (Instances, StoreRoot, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let root = StoreRoot::claim(&folder.path().join("root")).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let environment = Environment {
            io: IoPool::new(Arc::new(pool)),
            executor: Arc::new(TokioExecutor::current()),
            clock: Arc::new(MachineClock),
        };
        let options = StoreOptions { size_bytes_max: 64 << 20 };
        let (store, _) = BlobStore::open(&root, options, environment.clone()).unwrap();
        let options =
            RemoteOptions { instance_name: "team".to_owned(), ..RemoteOptions::new("grpc://127.0.0.1:1") };
        (Instances::new(Remote::new(&options, store, environment).unwrap()), root, folder)
    }

    fn is_same(one: &Remote, other: &Remote) -> bool {
        Arc::ptr_eq(&one.shared, &other.shared)
    }

    #[tokio::test]
    async fn an_instance_shares_the_way_to_the_server_and_nothing_else() {
        let (instances, ..) = instances();
        let (prefix, below) = (instances.get(""), instances.get("a/b"));
        assert!(is_same(&prefix, instances.prefix()));
        assert_eq!(
            (prefix.caller.instance_name(), below.caller.instance_name()),
            ("team".into(), "team/a/b".into())
        );
        assert!(!is_same(&prefix, &below) && is_same(&below, &instances.get("a/b")));
        assert!(prefix.caller.shares_way_with(&below.caller));
    }

    // Clients invent names.
    #[tokio::test]
    async fn those_that_were_used_last_are_kept() {
        let (instances, ..) = instances();
        let first = instances.get("0");
        let second = instances.get("1");
        for number in 2..INSTANCES_MAX {
            instances.get(&number.to_string());
        }
        assert!(is_same(&first, &instances.get("0")));
        instances.get("one more");
        assert!(is_same(&first, &instances.get("0")), "it was used again");
        assert!(!is_same(&second, &instances.get("1")), "it was used longest ago");
        for number in 0..10 * INSTANCES_MAX {
            instances.get(&format!("invented {number}"));
        }
        assert_eq!(instances.below.lock().len(), INSTANCES_MAX);
    }

    #[tokio::test]
    async fn what_they_remember_together_is_bounded() {
        let (instances, ..) = instances();
        let blobs: Vec<_> = (0..known::BLOBS_MAX)
            .map(|number| DigestFunction::Sha256.digest(&number.to_le_bytes()))
            .collect();
        let names = ["a", "b", "c"];
        for name in names {
            instances.get(name).learn(&blobs);
        }
        instances.get("d");
        let kept: Vec<_> = instances.below.lock().iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(kept, ["b", "c", "d"]);
    }
}
