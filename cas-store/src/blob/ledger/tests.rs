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
    /// What all that leaves from now on was last used at.
    Rest,
    Leave(usize),
    LeaveReserved(u64),
    UnreserveLeft,
    Touch(u8),
    Lose(usize),
    /// Of all but one name, or of all.
    EvictBut(u8),
    /// If it was not used since the last rest.
    EvictOld,
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
        Just(Step::Rest),
        (0..8usize).prop_map(Step::Leave),
        (1..20u64).prop_map(Step::LeaveReserved),
        Just(Step::UnreserveLeft),
        name.clone().prop_map(Step::Touch),
        (0..8usize).prop_map(Step::Lose),
        (0..12u8).prop_map(Step::EvictBut),
        Just(Step::EvictOld),
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
    reserved_left: Vec<u64>,
    now: Moment,
    next_id: u64,
}

struct ModelSlot {
    name: u8,
    /// Among equals, the lower number is older.
    number: u32,
    bytes: u64,
    references: usize,
    leaving: usize,
    state: State,
    used_at: Moment,
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
        let victims: u64 = self.victims.iter().map(|victim| victim.bytes).sum();
        slots + victims + self.reserved_left.iter().sum::<u64>()
    }

    fn leaving_bytes(&self) -> u64 {
        let is_leaving = |slot: &&ModelSlot| slot.references > 0 && slot.references == slot.leaving;
        let slots: u64 = self.slots.values().filter(is_leaving).map(|slot| slot.bytes).sum();
        slots + self.reserved_left.iter().sum::<u64>()
    }

    fn oldest(&self, may_go: impl Fn(u8) -> bool) -> Option<u64> {
        let idle = self.slots.iter().filter(|(_, slot)| slot.references == 0 && may_go(slot.name));
        idle.min_by_key(|(_, slot)| (slot.used_at, slot.number)).map(|(&id, _)| id)
    }

    fn add(&mut self, name: u8, number: u32, bytes: u64, state: State) -> u64 {
        self.next_id += 1;
        let used_at = Moment::default();
        let slot = ModelSlot { name, number, bytes, references: 1, leaving: 0, state, used_at };
        self.slots.insert(self.next_id, slot);
        self.next_id
    }

    fn use_now(&mut self, id: u64, now: Moment) {
        assert!(now > self.now, "every use is a moment of its own");
        self.now = now;
        self.slots.get_mut(&id).unwrap().used_at = now;
    }

    /// Takes a reference back; one that was leaving was last used at `left`.
    fn release(&mut self, id: u64, left: Option<Moment>) {
        let slot = self.slots.get_mut(&id).unwrap();
        slot.references -= 1;
        if let Some(moment) = left {
            slot.leaving -= 1;
            slot.used_at = slot.used_at.max(moment);
        }
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
    held: Vec<Held>,
    rest: Moment,
}

struct Held {
    id: SlotId,
    model_id: u64,
    /// When it was last used, if it is leaving.
    left: Option<Moment>,
}

impl Pair {
    fn hold(&mut self, id: Option<SlotId>, model_id: Option<u64>) {
        assert_eq!(id.is_some(), model_id.is_some());
        if let (Some(id), Some(model_id)) = (id, model_id) {
            self.model.slots.get_mut(&model_id).unwrap().references += 1;
            self.held.push(Held { id, model_id, left: None });
        }
    }

    fn release(&mut self, Held { id, model_id, left }: Held) {
        if let Some(moment) = left {
            self.ledger.release_left(id, moment);
        } else {
            // What ends with its last reference is used no more.
            let slot = &self.model.slots[&model_id];
            let is_over = slot.references == 1 && slot.state != State::Ready;
            self.ledger.release(id);
            if !is_over {
                self.model.use_now(model_id, self.ledger.now());
            }
        }
        self.model.release(model_id, left);
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
                let held = self.held.swap_remove(n);
                self.release(held);
            }
            Step::Rest => self.rest = self.ledger.now(),
            Step::Leave(n) if n < self.held.len() && self.held[n].left.is_none() => {
                self.held[n].left = Some(self.rest);
                self.ledger.leave(self.held[n].id);
                self.model.slots.get_mut(&self.held[n].model_id).unwrap().leaving += 1;
            }
            Step::LeaveReserved(bytes) => {
                if self.ledger.reserve(bytes) {
                    self.ledger.leave_reserved(bytes);
                    self.model.reserved_left.push(bytes);
                }
            }
            Step::UnreserveLeft => {
                if let Some(bytes) = self.model.reserved_left.pop() {
                    self.ledger.unreserve_left(bytes);
                }
            }
            Step::Lose(n) if n < self.held.len() => {
                let Held { id, model_id, .. } = self.held[n];
                self.ledger.lose(id);
                let slot = self.model.slots.get_mut(&model_id).unwrap();
                if slot.state == State::Ready {
                    slot.state = State::Lost;
                }
            }
            // Not possible just now.
            Step::Plan(..) | Step::Release(_) | Step::Leave(_) | Step::Lose(_) => {}
            Step::Touch(name) => {
                let id = self.model.ready(name);
                assert_eq!(self.ledger.touch(&key(name)), id.is_some());
                if let Some(id) = id {
                    self.model.use_now(id, self.ledger.now());
                }
            }
            Step::EvictBut(name) => {
                let expected = self.model.oldest(|other| other != name).map(|id| self.model.evict(id));
                assert_eq!(self.ledger.take_victim(Moment::END, |other| *other != key(name)), expected);
            }
            Step::EvictOld => {
                let oldest = self.model.oldest(|_| true);
                let old = oldest.filter(|id| self.model.slots[id].used_at <= self.rest);
                let expected = old.map(|id| self.model.evict(id));
                assert_eq!(self.ledger.take_victim(self.rest, |_| true), expected);
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
                let model_id = self.model.add(name, id.0, bytes, state);
                self.held.push(Held { id, model_id, left: None });
            }
            (_, Some(id)) if self.model.slots[&id].state == State::Planned => {
                let slot = self.model.slots.get_mut(&id).unwrap();
                (slot.state, slot.bytes, slot.references) = (State::Ready, bytes, slot.references + 1);
                let held = Held { id: self.ledger.insert(key(name), bytes), model_id: id, left: None };
                self.held.push(held);
            }
            (_, Some(_)) => self.ledger.unreserve(bytes),
            (_, None) => {
                let id = self.ledger.insert(key(name), bytes);
                let model_id = self.model.add(name, id.0, bytes, State::Ready);
                self.held.push(Held { id, model_id, left: None });
            }
        }
    }

    fn made(&mut self, name: u8) {
        let planned = |held: &&Held| {
            let slot = &self.model.slots[&held.model_id];
            slot.name == name && slot.state == State::Planned
        };
        if let Some(&Held { id, model_id, .. }) = self.held.iter().find(planned) {
            self.ledger.made(id);
            self.model.slots.get_mut(&model_id).unwrap().state = State::Ready;
        }
    }

    fn check(&self) {
        assert_eq!(self.ledger.used_bytes(), self.model.used_bytes());
        assert!(self.ledger.used_bytes() <= self.ledger.limit_bytes());
        let victims: u64 = self.model.victims.iter().map(|victim| victim.bytes).sum();
        assert_eq!(self.ledger.victims_bytes(), victims);
        assert_eq!(self.ledger.leaving_bytes(), self.model.leaving_bytes());
        assert_eq!(self.ledger.has_victim(), self.model.oldest(|_| true).is_some());
        for &Held { id, model_id, .. } in &self.held {
            assert_eq!(self.ledger.is_ready(id), self.model.slots[&model_id].state == State::Ready);
        }
    }
}

proptest! {
    // The ledger counts, finds and chooses like a model that searches everything every time.
    #[test]
    fn the_ledger_behaves_like_a_naive_one(steps in prop::collection::vec(step(), 0..120)) {
        let ledger = Ledger::new(150);
        let mut pair = Pair { ledger, model: Model::default(), held: Vec::new(), rest: Moment::default() };
        for step in &steps {
            pair.apply(step);
            pair.check();
        }
        while let Some(held) = pair.held.pop() {
            pair.release(held);
        }
        while !pair.model.reserved_left.is_empty() {
            pair.apply(&Step::UnreserveLeft);
        }
        pair.check();
        prop_assert_eq!(pair.ledger.leaving_bytes(), 0);
        while let Some(victim) = pair.ledger.take_victim(Moment::END, |_| true) {
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
    assert!(ledger.take_victim(Moment::END, |_| true).is_some());
    assert_eq!(ledger.blobs(), 0);
}
