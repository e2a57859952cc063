//! The way through a tree that is being written out: fork-join by directory, on the threads of a pool.
//!
//! Each directory is one job, which opens what it needs when it starts. What a visitor keeps open for a
//! directory is held until each child has started. The heaviest child is started last by the thread that
//! visited the parent, and by then nothing else needs the parent; so a thread holds at most as many places open
//! as the logarithm of the number of nodes, however deep the tree is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rayon::Scope;

use super::{Directory, DirectoryEntry};

/// What is done in each directory.
pub trait Visitor: Sync {
    /// An open directory, in which children are entered.
    type Place: Send + Sync;
    /// Why a directory cannot be written out.
    type Error: Send;

    /// Makes the directory `child` in `parent`, with all that is in it but its own subdirectories.
    fn enter(&self, parent: &Self::Place, child: &DirectoryEntry) -> Result<Self::Place, Self::Error>;
}

struct Visit<'v, V: Visitor> {
    visitor: &'v V,
    is_stopped: &'v AtomicBool,
    first_error: Mutex<Option<V::Error>>,
}

/// Visits every directory below `root`, whose own place was made already. Blocks; call on the pool.
///
/// The first error ends it, and so does `is_stopped`, which is not an error.
pub fn visit<V: Visitor>(
    visitor: &V,
    root: &Directory,
    place: V::Place,
    is_stopped: &AtomicBool,
) -> Result<(), V::Error> {
    let visit = Visit { visitor, is_stopped, first_error: Mutex::new(None) };
    rayon::scope(|scope| visit.fork(scope, root, place));
    visit.first_error.into_inner().map_or(Ok(()), Err)
}

impl<V: Visitor> Visit<'_, V> {
    fn fork<'scope>(&'scope self, scope: &Scope<'scope>, directory: &'scope Directory, place: V::Place) {
        let children = &directory.directories;
        let heaviest = (0..children.len()).max_by_key(|&at| children[at].directory.totals.nodes());
        let Some(heaviest) = heaviest else { return };
        let place = Arc::new(place);
        // A thread takes its own jobs in the reverse order of their start.
        let others = (0..children.len()).filter(|&at| at != heaviest);
        for at in std::iter::once(heaviest).chain(others) {
            let (child, place) = (&children[at], place.clone());
            scope.spawn(move |scope| self.enter(scope, child, &place));
        }
    }

    fn enter<'scope>(&'scope self, scope: &Scope<'scope>, child: &'scope DirectoryEntry, place: &V::Place) {
        if self.is_stopped.load(Ordering::Relaxed) {
            return;
        }
        match self.visitor.enter(place, child) {
            Ok(place) => self.fork(scope, &child.directory, place),
            Err(error) => {
                self.is_stopped.store(true, Ordering::Relaxed);
                self.first_error.lock().get_or_insert(error);
            }
        }
    }
}
