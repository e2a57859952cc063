use longshore_cas_store::digest::DigestFunction;
use proptest::prelude::*;

use super::*;

fn blob(number: u64) -> Digest {
    DigestFunction::Sha256.digest(&number.to_le_bytes())
}

fn item(number: u64, urgency: Urgency) -> Item {
    Item { digest: blob(number), urgency, is_small: true, cost_bytes: 10 }
}

/// Room for everything.
fn room(batch_bytes_max: u64) -> Room {
    Room { batch_bytes_max, large: true, speculative: true }
}

fn take<W>(queue: &mut Queue<W>, batch_bytes_max: u64) -> Option<Job> {
    queue.take(room(batch_bytes_max)).map(|(job, _)| job)
}

#[test]
fn what_is_urgent_overtakes_and_lifts_what_is_queued() {
    let mut queue = Queue::default();
    for number in 0..4 {
        assert!(!queue.want(item(number, Urgency::Speculative), WaiterId(1), ()));
    }
    assert!(!queue.want(item(9, Urgency::Urgent), WaiterId(2), ()));
    assert!(queue.want(item(2, Urgency::Urgent), WaiterId(2), ()), "joined");
    assert_eq!(take(&mut queue, 100), Some(Job::Batch(vec![blob(9), blob(2)])));
    assert_eq!(take(&mut queue, 20), Some(Job::Batch(vec![blob(0), blob(1)])));
    assert_eq!(queue.landed(&blob(2)).len(), 2);
    assert_eq!(take(&mut queue, 100), Some(Job::Batch(vec![blob(3)])));
    assert_eq!(take(&mut queue, 100), None);
}

// A blob under way is not started again for a second action.
#[test]
fn what_is_under_way_is_joined() {
    let mut queue = Queue::default();
    queue.want(item(1, Urgency::Urgent), WaiterId(1), "one");
    assert!(take(&mut queue, 100).is_some());
    assert!(queue.want(item(1, Urgency::Urgent), WaiterId(2), "two"));
    assert_eq!(take(&mut queue, 100), None);
    assert_eq!(queue.landed(&blob(1)), ["one", "two"]);
}

#[test]
fn a_large_blob_goes_alone_and_first() {
    let mut queue = Queue::default();
    queue.want(item(1, Urgency::Urgent), WaiterId(1), ());
    let large = Item { is_small: false, ..item(2, Urgency::Urgent) };
    queue.want(large, WaiterId(1), ());
    assert_eq!(take(&mut queue, 100), Some(Job::Large(blob(2))));
    assert_eq!(take(&mut queue, 100), Some(Job::Batch(vec![blob(1)])));
}

// An action with many large inputs would let all others wait that have not even begun.
#[test]
fn large_blobs_leave_room_for_small_ones() {
    let mut queue = Queue::default();
    for number in [1, 2] {
        queue.want(Item { is_small: false, ..item(number, Urgency::Urgent) }, WaiterId(1), ());
    }
    queue.want(item(3, Urgency::Urgent), WaiterId(2), ());
    queue.want(item(4, Urgency::Speculative), WaiterId(3), ());
    let no_large = Room { large: false, ..room(100) };
    assert_eq!(queue.take(no_large), Some((Job::Batch(vec![blob(3)]), Urgency::Urgent)));
    assert_eq!(
        queue.take(no_large),
        Some((Job::Large(blob(1)), Urgency::Urgent)),
        "what waits is less urgent"
    );
    assert_eq!(take(&mut queue, 100), Some(Job::Large(blob(2))));
}

#[test]
fn speculation_goes_when_there_is_room_for_it() {
    let mut queue = Queue::default();
    queue.want(item(1, Urgency::Speculative), WaiterId(1), ());
    queue.want(Item { is_small: false, ..item(2, Urgency::Speculative) }, WaiterId(1), ());
    let only_urgent = Room { speculative: false, ..room(100) };
    assert_eq!(queue.take(only_urgent), None);
    queue.want(item(3, Urgency::Urgent), WaiterId(2), ());
    assert_eq!(queue.take(only_urgent), Some((Job::Batch(vec![blob(3)]), Urgency::Urgent)));
    assert_eq!(queue.take(room(100)), Some((Job::Large(blob(2)), Urgency::Speculative)));
}

#[derive(Clone, Debug)]
enum Event {
    Want(u64, bool, u64),
    Take,
    Land,
    Leave(u64),
    GiveUp(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..12u64, any::<bool>(), 0..4u64).prop_map(|(blob, urgent, who)| Event::Want(blob, urgent, who)),
        2 => Just(Event::Take),
        1 => Just(Event::Land),
        1 => (0..4u64).prop_map(Event::Leave),
        1 => (0..12u64).prop_map(Event::GiveUp),
    ]
}

/// A naive model: a list of what waits, and a list of what is under way.
#[derive(Default)]
struct Model {
    queued: Vec<(u64, Urgency, Vec<u64>)>,
    under_way: Vec<(u64, Vec<u64>)>,
}

impl Model {
    fn want(&mut self, number: u64, urgency: Urgency, who: u64) {
        if let Some((_, waiters)) = self.under_way.iter_mut().find(|(other, _)| *other == number) {
            waiters.push(who);
        } else if let Some(at) = self.queued.iter().position(|(other, ..)| *other == number) {
            self.queued[at].2.push(who);
            if urgency < self.queued[at].1 {
                let (_, _, waiters) = self.queued.remove(at);
                self.queued.push((number, urgency, waiters));
            }
        } else {
            self.queued.push((number, urgency, vec![who]));
        }
    }

    fn take(&mut self) -> Vec<u64> {
        let Some(urgency) = self.queued.iter().map(|(_, urgency, _)| *urgency).min() else {
            return Vec::new();
        };
        let mut batch = Vec::new();
        while batch.len() < 3 {
            let Some(at) = self.queued.iter().position(|(_, other, _)| *other == urgency) else { break };
            let (number, _, waiters) = self.queued.remove(at);
            self.under_way.push((number, waiters));
            batch.push(number);
        }
        batch
    }

    fn give_up(&mut self, number: u64) -> bool {
        self.under_way.retain(|(other, waiters)| *other != number || !waiters.is_empty());
        let queued = self.queued.iter().map(|(number, ..)| number);
        !queued.chain(self.under_way.iter().map(|(number, _)| number)).any(|other| *other == number)
    }

    fn leave(&mut self, who: u64) {
        self.queued.iter_mut().for_each(|(.., waiters)| waiters.retain(|other| *other != who));
        self.queued.retain(|(.., waiters)| !waiters.is_empty());
        self.under_way.iter_mut().for_each(|(_, waiters)| waiters.retain(|other| *other != who));
    }
}

proptest! {
    #[test]
    fn the_queue_is_its_model(events in prop::collection::vec(event(), 0..200)) {
        let mut queue: Queue<u64> = Queue::default();
        let mut model = Model::default();
        for event in events {
            match event {
                Event::Want(number, is_urgent, who) => {
                    let urgency = if is_urgent { Urgency::Urgent } else { Urgency::Speculative };
                    queue.want(item(number, urgency), WaiterId(who), who);
                    model.want(number, urgency, who);
                }
                Event::Take => {
                    let batch: Vec<_> = model.take().into_iter().map(blob).collect();
                    let job = (!batch.is_empty()).then_some(Job::Batch(batch));
                    prop_assert_eq!(take(&mut queue, 30), job);
                }
                Event::Land => {
                    if let Some((number, waiters)) = model.under_way.pop() {
                        prop_assert_eq!(queue.landed(&blob(number)), waiters);
                    }
                }
                Event::Leave(who) => {
                    let all: HashSet<_> = (0..12).map(blob).collect();
                    queue.abandon(WaiterId(who), &all);
                    model.leave(who);
                }
                Event::GiveUp(number) => {
                    prop_assert_eq!(queue.give_up(&blob(number)), model.give_up(number));
                }
            }
            prop_assert_eq!(queue.small_bytes(), model.queued.len() as u64 * 10);
        }
    }
}
