use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn key(name: u8) -> SlotKey {
    let mut record = [0; 32];
    record[0] = name;
    SlotKey::Record(record)
}

#[derive(Clone, Debug)]
enum Step {
    Reserve(u8, u64),
    Plan(u8, u64),
    Made(u8),
    Pin(u8),
    PinPlanned(u8),
    Release(usize),
    Touch(u8),
    Lose(usize),
    /// Of all but one name, or of all.
    EvictBut(u8),
    EvictKey(u8),
    Unlink,
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..6u8;
    prop_oneof![
        (name.clone(), 1..40u64).prop_map(|(name, bytes)| Step::Reserve(name, bytes)),
        (name.clone(), 1..40u64).prop_map(|(name, bytes)| Step::Plan(name, bytes)),
        name.clone().prop_map(Step::Made),
        name.clone().prop_map(Step::Pin),
        name.clone().prop_map(Step::PinPlanned),
        (0..8usize).prop_map(Step::Release),
        name.clone().prop_map(Step::Touch),
        (0..8usize).prop_map(Step::Lose),
        (0..12u8).prop_map(Step::EvictBut),
        name.prop_map(Step::EvictKey),
        Just(Step::Unlink),
    ]
}

/// What the ledger promises, the slow way.
#[derive(Default)]
struct Model {
    /// Everything with a number, by an id of our own.
    slots: HashMap<u64, ModelSlot>,
    victims: Vec<Victim>,
    time: u64,
}

struct ModelSlot {
    name: u8,
    bytes: u64,
    references: usize,
    state: State,
    used_at: u64,
}

impl Model {
    fn named(&self, name: u8) -> Option<u64> {
        let found = |(_, slot): &(&u64, &ModelSlot)| slot.name == name && slot.state != State::Lost;
        self.slots.iter().find(found).map(|(&id, _)| id)
    }

    fn ready(&self, name: u8) -> Option<u64> {
        self.named(name).filter(|id| self.slots[id].state == State::Ready)
    }

    fn used_bytes(&self) -> u64 {
        let slots: u64 = self.slots.values().map(|slot| slot.bytes).sum();
        slots + self.victims.iter().map(|victim| victim.bytes).sum::<u64>()
    }

    fn oldest(&self, may_go: impl Fn(u8) -> bool) -> Option<u64> {
        let idle = self.slots.iter().filter(|(_, slot)| slot.references == 0 && may_go(slot.name));
        idle.min_by_key(|(_, slot)| slot.used_at).map(|(&id, _)| id)
    }

    fn add(&mut self, name: u8, bytes: u64, state: State) -> u64 {
        self.time += 1;
        let slot = ModelSlot { name, bytes, references: 1, state, used_at: 0 };
        self.slots.insert(self.time, slot);
        self.time
    }

    fn release(&mut self, id: u64) {
        self.time += 1;
        let slot = self.slots.get_mut(&id).unwrap();
        slot.references -= 1;
        slot.used_at = self.time;
        if slot.references == 0 && slot.state != State::Ready {
            self.slots.remove(&id);
        }
    }

    fn evict(&mut self, id: u64) -> Victim {
        let slot = self.slots.remove(&id).unwrap();
        let victim = Victim { key: key(slot.name), bytes: slot.bytes };
        self.victims.push(victim);
        victim
    }
}

/// The ledger, the model, and the references held in both.
struct Pair {
    ledger: Ledger,
    model: Model,
    held: Vec<(SlotId, u64)>,
}

impl Pair {
    fn hold(&mut self, id: Option<SlotId>, model_id: Option<u64>) {
        assert_eq!(id.is_some(), model_id.is_some());
        if let (Some(id), Some(model_id)) = (id, model_id) {
            self.model.slots.get_mut(&model_id).unwrap().references += 1;
            self.held.push((id, model_id));
        }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Reserve(name, bytes) => self.insert(name, bytes, State::Ready),
            Step::Plan(name, bytes) if self.model.named(name).is_none() => {
                self.insert(name, bytes, State::Planned);
            }
            Step::Made(name) => self.made(name),
            Step::Pin(name) => {
                let (id, model_id) = (self.ledger.pin(&key(name)), self.model.ready(name));
                self.hold(id, model_id);
            }
            Step::PinPlanned(name) => {
                let (id, model_id) = (self.ledger.pin_planned(&key(name)), self.model.named(name));
                self.hold(id, model_id);
            }
            Step::Release(n) if n < self.held.len() => {
                let (id, model_id) = self.held.swap_remove(n);
                self.ledger.release(id);
                self.model.release(model_id);
            }
            Step::Lose(n) if n < self.held.len() => {
                let (id, model_id) = self.held[n];
                self.ledger.lose(id);
                let slot = self.model.slots.get_mut(&model_id).unwrap();
                if slot.state == State::Ready {
                    slot.state = State::Lost;
                }
            }
            // Not possible just now.
            Step::Plan(..) | Step::Release(_) | Step::Lose(_) => {}
            Step::Touch(name) => {
                self.model.time += 1;
                let (time, id) = (self.model.time, self.model.ready(name));
                assert_eq!(self.ledger.touch(&key(name)), id.is_some());
                if let Some(slot) = id.and_then(|id| self.model.slots.get_mut(&id)) {
                    slot.used_at = time;
                }
            }
            Step::EvictBut(name) => {
                let expected = self.model.oldest(|other| other != name).map(|id| self.model.evict(id));
                assert_eq!(self.ledger.take_victim(|other| *other != key(name)), expected);
            }
            Step::EvictKey(name) => {
                let id = self.model.ready(name).filter(|id| self.model.slots[id].references == 0);
                let expected = id.map(|id| self.model.evict(id));
                assert_eq!(self.ledger.take_key(&key(name)), expected);
            }
            Step::Unlink => {
                if let Some(victim) = self.model.victims.pop() {
                    self.ledger.unlinked(victim.bytes);
                }
            }
        }
    }

    fn insert(&mut self, name: u8, bytes: u64, state: State) {
        let fits = self.model.used_bytes() + bytes <= self.ledger.limit_bytes();
        assert_eq!(self.ledger.reserve(bytes), fits);
        if !fits {
            return;
        }
        match (state, self.model.named(name)) {
            (State::Planned, _) => {
                let id = self.ledger.plan(key(name), bytes);
                self.held.push((id, self.model.add(name, bytes, state)));
            }
            (_, Some(id)) if self.model.slots[&id].state == State::Planned => {
                let slot = self.model.slots.get_mut(&id).unwrap();
                (slot.state, slot.bytes, slot.references) = (State::Ready, bytes, slot.references + 1);
                self.held.push((self.ledger.insert(key(name), bytes), id));
            }
            (_, Some(_)) => self.ledger.unreserve(bytes),
            (_, None) => {
                let id = self.ledger.insert(key(name), bytes);
                self.held.push((id, self.model.add(name, bytes, State::Ready)));
            }
        }
    }

    fn made(&mut self, name: u8) {
        let planned = |(_, id): &&(SlotId, u64)| {
            let slot = &self.model.slots[id];
            slot.name == name && slot.state == State::Planned
        };
        if let Some(&(id, model_id)) = self.held.iter().find(planned) {
            self.ledger.made(id);
            self.model.slots.get_mut(&model_id).unwrap().state = State::Ready;
        }
    }

    fn check(&self) {
        assert_eq!(self.ledger.used_bytes(), self.model.used_bytes());
        assert!(self.ledger.used_bytes() <= self.ledger.limit_bytes());
        let victims: u64 = self.model.victims.iter().map(|victim| victim.bytes).sum();
        assert_eq!(self.ledger.victims_bytes(), victims);
        assert_eq!(self.ledger.has_victim(), self.model.oldest(|_| true).is_some());
        for &(id, model_id) in &self.held {
            assert_eq!(self.ledger.is_ready(id), self.model.slots[&model_id].state == State::Ready);
        }
    }
}

proptest! {
    // The ledger counts, finds and chooses like a model that searches everything every time.
    #[test]
    fn the_ledger_behaves_like_a_naive_one(steps in prop::collection::vec(step(), 0..120)) {
        let mut pair = Pair { ledger: Ledger::new(150), model: Model::default(), held: Vec::new() };
        for step in &steps {
            pair.apply(step);
            pair.check();
        }
        while let Some((id, model_id)) = pair.held.pop() {
            pair.ledger.release(id);
            pair.model.release(model_id);
        }
        pair.check();
        while let Some(victim) = pair.ledger.take_victim(|_| true) {
            pair.ledger.unlinked(victim.bytes);
        }
        let unlinked: u64 = pair.model.victims.iter().map(|victim| victim.bytes).sum();
        prop_assert_eq!(pair.ledger.used_bytes(), unlinked, "what is left is being unlinked");
    }
}

#[test]
fn blobs_are_counted_while_their_key_finds_them() {
    let digest = |text: &[u8]| SlotKey::Blob(crate::digest::DigestFunction::Sha256.digest(text));
    let mut ledger = Ledger::new(100);
    assert!(ledger.reserve(20));
    let first = ledger.insert(digest(b"a"), 10);
    let second = ledger.insert(digest(b"b"), 10);
    assert_eq!(ledger.blobs(), 2);
    ledger.lose(first);
    assert_eq!(ledger.blobs(), 1);
    ledger.release(second);
    assert!(ledger.take_victim(|_| true).is_some());
    assert_eq!(ledger.blobs(), 0);
}
