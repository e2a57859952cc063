//! What has passed so far, for those who wait for something to pass.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::{Event, Step, Transcript};

/// A transcript that is being written. Clones share it.
#[derive(Clone, Debug)]
pub struct Tape(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    /// Counts events.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    calls: usize,
    events: Vec<Event>,
}

impl Tape {
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared { inner: Mutex::default(), changed: watch::Sender::new(0) }))
    }

    /// Notes that a call begins, and returns its number.
    fn begin(&self, step: Step) -> usize {
        let call = {
            let mut inner = self.0.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.calls += 1;
            inner.calls
        };
        self.push(call, step);
        call
    }

    fn push(&self, call: usize, step: Step) {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner).events.push(Event { call, step });
        self.0.changed.send_modify(|count| *count += 1);
    }

    /// Everything so far.
    pub fn transcript(&self) -> Transcript {
        Transcript(self.0.inner.lock().unwrap_or_else(PoisonError::into_inner).events.clone())
    }

    /// Completes when what has passed `is_it`.
    pub async fn until(&self, is_it: impl Fn(&Transcript) -> bool) {
        let mut changed = self.0.changed.subscribe();
        while !is_it(&self.transcript()) {
            changed.changed().await.expect("the tape outlives this");
        }
    }
}

/// A call that is under way. If it is dropped before it has ended, it was abandoned.
#[derive(Debug)]
pub(super) struct Call {
    note: Note,
    is_over: bool,
}

/// Where to note what happens in a call.
#[derive(Clone, Debug)]
pub(super) struct Note {
    tape: Tape,
    call: usize,
}

impl Call {
    pub(super) fn begin(tape: &Tape, step: Step) -> Self {
        Self { note: Note { tape: tape.clone(), call: tape.begin(step) }, is_over: false }
    }

    pub(super) fn note(&self) -> Note {
        self.note.clone()
    }

    pub(super) fn push(&mut self, step: Step) {
        self.is_over |= matches!(step, Step::Ended { .. });
        self.note.push(step);
    }
}

impl Note {
    pub(super) fn push(&self, step: Step) {
        self.tape.push(self.call, step);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.is_over {
            self.note.push(Step::Abandoned);
        }
    }
}
