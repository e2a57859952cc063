//! Single flight: who waits for which build, and what a newcomer has to do. Pure state, no lock, no task.
//!
//! A flight belongs to the task that builds, not to the first caller. Its key is here from
//! [`Flights::board`] to [`Flights::land`], which is called when the last of its work has stopped; so no two
//! builders of one digest ever run at once, not even after a failure, a cancellation or a panic.
//!
//! What is built is given out by [`Flights::arrive`], as soon as it is there. A flight that has arrived can no longer be
//! joined, nor can one that everybody left: its build may already be half undone. Who comes then waits until it has
//! landed and starts afresh.

use std::collections::HashMap;

use futures::channel::oneshot;
use futures::future::{AbortHandle, AbortRegistration};

use crate::digest::Digest;

/// The builds under way, by what they build; `S` is what each is built from.
#[derive(Debug)]
pub(super) struct Flights<T, S> {
    flights: HashMap<Digest, Flight<T, S>>,
    seats: u64,
}

#[derive(Debug)]
struct Flight<T, S> {
    source: S,
    passengers: HashMap<Seat, oneshot::Sender<T>>,
    /// Who came too late to share, and waits for the end.
    standby: Vec<oneshot::Sender<()>>,
    abort: AbortHandle,
    has_arrived: bool,
}

/// A caller's place in a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Seat(u64);

/// What a caller got by [`Flights::board`].
#[derive(Debug)]
pub(super) enum Boarding<T, S> {
    /// The first seat of a new flight: the caller starts the task, which the registration can abort.
    Started(Seat, oneshot::Receiver<T>, AbortRegistration),
    /// A seat in a flight under way, which somebody else began, from that source.
    Shared(Seat, oneshot::Receiver<T>, S),
    /// The flight takes nobody any more: board again when this completes.
    Standby(oneshot::Receiver<()>),
}

/// Those who share a flight.
#[derive(Debug)]
#[must_use = "somebody waits"]
pub(super) struct Passengers<T>(Vec<oneshot::Sender<T>>);

/// Those who came too late to share a flight that has landed.
#[derive(Debug)]
#[must_use = "somebody waits"]
pub(super) struct Standby(Vec<oneshot::Sender<()>>);

impl<T, S> Default for Flights<T, S> {
    fn default() -> Self {
        Self { flights: HashMap::new(), seats: 0 }
    }
}

impl<T, S: Clone> Flights<T, S> {
    /// Joins the flight to `digest`, or opens one from `source`.
    pub(super) fn board(&mut self, digest: Digest, source: &S) -> Boarding<T, S> {
        self.seats += 1;
        let seat = Seat(self.seats);
        let Some(flight) = self.flights.get_mut(&digest) else {
            let (sender, receiver) = oneshot::channel();
            let (abort, registration) = AbortHandle::new_pair();
            let passengers = HashMap::from([(seat, sender)]);
            let (source, standby) = (source.clone(), Vec::new());
            self.flights.insert(digest, Flight { source, passengers, standby, abort, has_arrived: false });
            return Boarding::Started(seat, receiver, registration);
        };
        if flight.has_arrived || flight.abort.is_aborted() {
            let (sender, receiver) = oneshot::channel();
            flight.standby.push(sender);
            return Boarding::Standby(receiver);
        }
        let (sender, receiver) = oneshot::channel();
        flight.passengers.insert(seat, sender);
        Boarding::Shared(seat, receiver, flight.source.clone())
    }

    /// Gives a seat up. The last one to leave cancels the build.
    pub(super) fn leave(&mut self, digest: &Digest, seat: Seat) {
        // A seat is never given twice: a later flight to the same digest does not know it.
        if let Some(flight) = self.flights.get_mut(digest)
            && flight.passengers.remove(&seat).is_some()
            && flight.passengers.is_empty()
        {
            flight.abort.abort();
        }
    }

    /// What the flight is for is there: those who share it are to be given it.
    pub(super) fn arrive(&mut self, digest: &Digest) -> Passengers<T> {
        let Some(flight) = self.flights.get_mut(digest) else { return Passengers(Vec::new()) };
        flight.has_arrived = true;
        Passengers(flight.passengers.drain().map(|(_, passenger)| passenger).collect())
    }

    /// Ends a flight: whoever boards from now on opens a new one.
    pub(super) fn land(&mut self, digest: &Digest) -> (Passengers<T>, Standby) {
        let flight = self.flights.remove(digest);
        debug_assert!(flight.is_some(), "{digest} has no flight");
        let (passengers, standby) =
            flight.map(|flight| (flight.passengers, flight.standby)).unwrap_or_default();
        (Passengers(passengers.into_values().collect()), Standby(standby))
    }
}

impl<T: Clone> Passengers<T> {
    /// Gives `result` to each of them, and keeps nothing of it.
    pub(super) fn deliver(mut self, result: T) {
        // Who left in the meantime does not want it any more.
        let Some(last) = self.0.pop() else { return };
        for passenger in self.0 {
            let _ = passenger.send(result.clone());
        }
        let _ = last.send(result);
    }
}

impl Standby {
    /// Lets them go on.
    pub(super) fn release(self) {
        for caller in self.0 {
            // Or they have left.
            let _ = caller.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::digest::DigestFunction;

    fn digest() -> Digest {
        DigestFunction::Sha256.digest(b"tree")
    }

    fn started(
        flights: &mut Flights<u32, &'static str>,
    ) -> (Seat, oneshot::Receiver<u32>, AbortRegistration) {
        match flights.board(digest(), &"first") {
            Boarding::Started(seat, receiver, registration) => (seat, receiver, registration),
            other => panic!("{other:?}"),
        }
    }

    fn land(flights: &mut Flights<u32, &'static str>) {
        let (passengers, standby) = flights.land(&digest());
        passengers.deliver(0);
        standby.release();
    }

    #[test]
    fn everyone_who_shared_gets_the_result() {
        let mut flights = Flights::default();
        let (_, first, _) = started(&mut flights);
        let Boarding::Shared(_, second, from) = flights.board(digest(), &"second") else {
            panic!("not shared")
        };
        assert_eq!(from, "first", "whose build it is");
        flights.arrive(&digest()).deliver(7);
        assert_eq!((first.now_or_never(), second.now_or_never()), (Some(Ok(7)), Some(Ok(7))));
    }

    // The builder still has to stop.
    #[test]
    fn a_newcomer_to_a_flight_that_has_arrived_starts_afresh_only_after_it_landed() {
        let mut flights = Flights::default();
        let (seat, first, registration) = started(&mut flights);
        flights.arrive(&digest()).deliver(7);
        assert_eq!(first.now_or_never(), Some(Ok(7)));
        flights.leave(&digest(), seat);
        assert!(!registration.handle().is_aborted(), "it has its result");
        let Boarding::Standby(mut waiting) = flights.board(digest(), &"second") else {
            panic!("joined an old flight")
        };
        land(&mut flights);
        assert_eq!(waiting.try_recv(), Ok(Some(())));
        let _flight = started(&mut flights);
    }

    #[test]
    fn a_flight_goes_on_until_the_last_one_leaves() {
        let mut flights = Flights::default();
        let (first, _receiver, registration) = started(&mut flights);
        let Boarding::Shared(second, _other, _) = flights.board(digest(), &"second") else {
            panic!("not shared")
        };
        flights.leave(&digest(), first);
        assert!(!registration.handle().is_aborted());
        flights.leave(&digest(), second);
        assert!(registration.handle().is_aborted());
    }

    // A cancelled build is still there until its work has stopped.
    #[test]
    fn a_newcomer_to_a_stopping_flight_starts_afresh_only_after_it_landed() {
        let mut flights = Flights::default();
        let (seat, _receiver, _registration) = started(&mut flights);
        flights.leave(&digest(), seat);
        let Boarding::Standby(mut waiting) = flights.board(digest(), &"second") else {
            panic!("joined a stopping flight")
        };
        assert_eq!(waiting.try_recv(), Ok(None));
        land(&mut flights);
        assert_eq!(waiting.try_recv(), Ok(Some(())));
        let _flight = started(&mut flights);
    }

    #[test]
    fn a_seat_of_an_earlier_flight_does_not_count_in_a_later_one() {
        let mut flights = Flights::default();
        let (stale, _receiver, _registration) = started(&mut flights);
        land(&mut flights);
        let (_, _waiting, registration) = started(&mut flights);
        flights.leave(&digest(), stale);
        assert!(!registration.handle().is_aborted());
    }
}
