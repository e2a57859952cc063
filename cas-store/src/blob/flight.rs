//! Who is writing which blob: one writer a digest, the others wait for it.
//!
//! Pure memory, under its owner's lock. A flight ends when its [`Ticket`] is dropped, whatever came of it;
//! those who waited look again, and the first of them that finds no blob leads the next flight. Who cannot wait, or has
//! waited in vain, writes beside the flight.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::{Either, select};

use super::BlobPin;
use super::ledger::SlotKey;
use super::space::Space;
use crate::digest::Digest;

/// A writer without progress for this long is no longer waited for.
pub(crate) const STALL: Duration = Duration::from_secs(10);

/// Every flight.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    by_digest: HashMap<Digest, Flight>,
}

#[derive(Debug)]
struct Flight {
    progress: Arc<AtomicU64>,
    waiting: Vec<oneshot::Sender<()>>,
}

/// The right to write a blob; its drop lets those who waited go on.
#[derive(Debug)]
pub(crate) struct Ticket {
    space: Arc<Space>,
    digest: Digest,
    progress: Arc<AtomicU64>,
}

impl Ticket {
    /// Says that the writing goes on.
    pub(crate) fn progressed(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.space.lock();
        let flights = &mut state.flights.by_digest;
        // One that was overtaken has no flight, or it is another's by now.
        let is_ours =
            flights.get(&self.digest).is_some_and(|flight| Arc::ptr_eq(&flight.progress, &self.progress));
        let waiting = if is_ours {
            flights.remove(&self.digest).map(|flight| flight.waiting)
        } else {
            // Who wrote beside the flight may have made the blob visible.
            flights.get_mut(&self.digest).map(|flight| std::mem::take(&mut flight.waiting))
        };
        drop(state);
        for waiting in waiting.into_iter().flatten() {
            let _ = waiting.send(());
        }
    }
}

/// How a writer is admitted.
pub(crate) enum Admission {
    /// The blob is here.
    Present(BlobPin),
    /// The caller writes it.
    Lead(Ticket),
}

enum Look {
    Admitted(Admission),
    Wait(oneshot::Receiver<()>, Arc<AtomicU64>),
}

impl Space {
    /// Admits a writer unless another one is at work.
    pub(crate) fn try_admit(self: &Arc<Self>, digest: Digest) -> Option<Admission> {
        match self.look(digest) {
            Look::Admitted(admission) => Some(admission),
            Look::Wait(..) => None,
        }
    }

    /// Admits a writer that cannot wait: beside another one, if there is one.
    pub(crate) fn admit_beside(self: &Arc<Self>, digest: Digest) -> Admission {
        self.try_admit(digest).unwrap_or_else(|| Admission::Lead(self.ticket(digest)))
    }

    /// Admits a writer, waiting for another one while that makes progress.
    pub(crate) async fn admit(self: &Arc<Self>, digest: Digest) -> Admission {
        loop {
            let (mut ended, progress) = match self.look(digest) {
                Look::Admitted(admission) => return admission,
                Look::Wait(ended, progress) => (ended, progress),
            };
            loop {
                let seen = progress.load(Ordering::Relaxed);
                match select(ended, self.environment.clock.sleep(STALL)).await {
                    Either::Left(_) => break,
                    Either::Right(((), unended)) => ended = unended,
                }
                if progress.load(Ordering::Relaxed) == seen {
                    // It may be stuck behind a client that sends nothing: write our own, without a flight.
                    return Admission::Lead(self.ticket(digest));
                }
            }
        }
    }

    fn look(self: &Arc<Self>, digest: Digest) -> Look {
        let mut state = self.lock();
        if let Some(id) = state.ledger.pin(&SlotKey::Blob(digest)) {
            return Look::Admitted(Admission::Present(BlobPin::of_slot(self.clone(), digest, id)));
        }
        if let Some(flight) = state.flights.by_digest.get_mut(&digest) {
            let (sender, receiver) = oneshot::channel();
            flight.waiting.retain(|waiting| !waiting.is_canceled());
            flight.waiting.push(sender);
            return Look::Wait(receiver, flight.progress.clone());
        }
        let ticket = self.ticket(digest);
        let flight = Flight { progress: ticket.progress.clone(), waiting: Vec::new() };
        state.flights.by_digest.insert(digest, flight);
        Look::Admitted(Admission::Lead(ticket))
    }

    fn ticket(self: &Arc<Self>, digest: Digest) -> Ticket {
        Ticket { space: self.clone(), digest, progress: Arc::default() }
    }
}
