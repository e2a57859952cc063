use longshore_cas_store::digest::DigestFunction;
use proptest::prelude::*;

use super::*;

fn blob(number: u64) -> Digest {
    DigestFunction::Sha256.digest(&number.to_le_bytes())
}

fn item(number: u64, urgency: Urgency) -> Item {
    Item { digest: blob(number), urgency, is_small: true, cost_bytes: 10 }
}

#[test]
fn what_is_urgent_overtakes_and_lifts_what_is_queued() {
    let mut queue = Queue::default();
    for number in 0..4 {
        assert!(!queue.want(item(number, Urgency::Speculative), WaiterId(1), ()));
    }
    assert!(!queue.want(item(9, Urgency::Urgent), WaiterId(2), ()));
    assert!(queue.want(item(2, Urgency::Urgent), WaiterId(2), ()), "joined");
    assert_eq!(queue.take(100), Some(Job::Batch(vec![blob(9), blob(2)])));
    assert_eq!(queue.take(20), Some(Job::Batch(vec![blob(0), blob(1)])));
    assert_eq!(queue.landed(&blob(2)).len(), 2);
    assert_eq!(queue.take(100), Some(Job::Batch(vec![blob(3)])));
    assert_eq!(queue.take(100), None);
}

// A blob under way is not started again for a second action.
#[test]
fn what_is_under_way_is_joined() {
    let mut queue = Queue::default();
    queue.want(item(1, Urgency::Urgent), WaiterId(1), "one");
    assert!(queue.take(100).is_some());
    assert!(queue.want(item(1, Urgency::Urgent), WaiterId(2), "two"));
    assert_eq!(queue.take(100), None);
    assert_eq!(queue.landed(&blob(1)), ["one", "two"]);
}

#[test]
fn a_large_blob_goes_alone_and_first() {
    let mut queue = Queue::default();
    queue.want(item(1, Urgency::Urgent), WaiterId(1), ());
    let large = Item { is_small: false, ..item(2, Urgency::Urgent) };
    queue.want(large, WaiterId(1), ());
    assert_eq!(queue.take(100), Some(Job::Large(blob(2))));
    assert_eq!(queue.take(100), Some(Job::Batch(vec![blob(1)])));
}

#[derive(Clone, Debug)]
enum Event {
    Want(u64, bool, u64),
    Take,
    Land,
    Leave(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..12u64, any::<bool>(), 0..4u64).prop_map(|(blob, urgent, who)| Event::Want(blob, urgent, who)),
        2 => Just(Event::Take),
        1 => Just(Event::Land),
        1 => (0..4u64).prop_map(Event::Leave),
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
                    prop_assert_eq!(queue.take(30), job);
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
            }
            prop_assert_eq!(queue.small_bytes(), model.queued.len() as u64 * 10);
            for (number, waiters) in &model.under_way {
                prop_assert_eq!(queue.is_wanted(&blob(*number)), !waiters.is_empty());
            }
        }
    }
}
