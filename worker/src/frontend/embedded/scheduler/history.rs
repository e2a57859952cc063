//! Operations that have ended and can still be asked for: the newest, within bounds of number and size.
//!
//! Each is packed: its response as it goes over the wire, and what its client wants inline. Most are never asked for.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use longshore_cas_store::digest::Digest;
use longshore_proto::{Message as _, reapi};

use super::super::operation::Operation;
use crate::action::Inline;

/// How many are kept.
const ENTRIES_MAX: usize = 10_000;
/// What they may take together.
const SIZE_BYTES_MAX: usize = 64 << 20;
/// What one takes beside its response and the paths that its client wants inline, about.
const ENTRY_BYTES: usize = 512;

/// How an execution ended, for everybody who asked for it.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    pub(super) response: Arc<reapi::ExecuteResponse>,
    packed: Bytes,
}

impl From<reapi::ExecuteResponse> for Ending {
    fn from(response: reapi::ExecuteResponse) -> Self {
        let packed = response.encode_to_vec().into();
        Self { response: Arc::new(response), packed }
    }
}

/// Operations by name, in the order in which they ended.
#[derive(Debug, Default)]
pub(super) struct History {
    entries: HashMap<Arc<str>, Entry>,
    order: VecDeque<Arc<str>>,
    size_bytes: usize,
}

#[derive(Debug)]
struct Entry {
    action_digest: Digest,
    inline: Inline,
    response: Bytes,
}

impl Entry {
    fn size_bytes(&self) -> usize {
        ENTRY_BYTES + self.response.len() + self.inline.paths_bytes()
    }
}

impl History {
    /// Adds one; the oldest give way.
    pub(super) fn add(&mut self, operation: &Operation, ending: &Ending) {
        let entry = Entry {
            action_digest: operation.execution.action_digest,
            inline: operation.inline.clone(),
            response: ending.packed.clone(),
        };
        let name: Arc<str> = operation.name.as_str().into();
        self.size_bytes += entry.size_bytes();
        self.order.push_back(name.clone());
        self.entries.insert(name, entry);
        // The newest stays whatever its size: its client is about to ask.
        while self.order.len() > 1
            && (self.order.len() > ENTRIES_MAX || self.size_bytes > SIZE_BYTES_MAX)
            && let Some(oldest) = self.order.pop_front()
            && let Some(entry) = self.entries.remove(&oldest)
        {
            self.size_bytes -= entry.size_bytes();
        }
    }

    /// The operation of that name, as it ended.
    pub(super) fn find(&self, name: &str) -> Option<Arc<Operation>> {
        let Entry { action_digest, inline, response } = self.entries.get(name)?;
        let response = reapi::ExecuteResponse::decode(response.clone()).ok()?;
        Some(Operation::ended(name, *action_digest, inline.clone(), response))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use longshore_proto::rpc;

    use super::super::super::operation::Request;
    use super::super::super::testing::request;
    use super::*;

    fn operation() -> Arc<Operation> {
        let inline = Inline { stdout: true, stderr: false, output_files: vec!["out".to_owned()] };
        let request = Request { inline, ..request("an action") };
        Operation::new(request, SystemTime::UNIX_EPOCH)
    }

    fn ending(size_bytes: usize) -> Ending {
        let message = "x".repeat(size_bytes);
        let status = Some(rpc::Status { message, ..Default::default() });
        reapi::ExecuteResponse { status, ..Default::default() }.into()
    }

    fn add(history: &mut History, ending: &Ending) -> String {
        let operation = operation();
        history.add(&operation, ending);
        operation.name.clone()
    }

    #[test]
    fn what_has_ended_is_found_as_it_was() {
        let (mut history, ended, ending) = (History::default(), operation(), ending(3));
        history.add(&ended, &ending);
        let found = history.find(&ended.name).unwrap();
        assert_eq!(found.response.borrow().as_ref(), Some(&ending.response));
        assert_eq!(found.name, ended.name);
        assert!(found.inline.stdout && !found.inline.stderr);
        assert_eq!(found.inline.output_files, ended.inline.output_files);
        assert_eq!(found.execution.action_digest, ended.execution.action_digest);
        assert!(found.is_done() && history.find("operations/another").is_none());
    }

    // What finished operations take is bounded in both ways, oldest out first.
    #[test]
    fn the_oldest_are_forgotten() {
        let mut history = History::default();
        let small = ending(0);
        let names: Vec<_> = (0..ENTRIES_MAX).map(|_| add(&mut history, &small)).collect();
        assert!(names.iter().all(|name| history.find(name).is_some()));
        add(&mut history, &small);
        assert!(history.find(&names[0]).is_none() && history.find(&names[1]).is_some());
        let large = add(&mut history, &ending(SIZE_BYTES_MAX));
        assert!(history.find(&large).is_some(), "the newest is kept whatever its size");
        assert_eq!(history.order.len(), 1);
        let next = add(&mut history, &small);
        assert!(history.find(&large).is_none() && history.find(&next).is_some());
        assert_eq!(history.size_bytes, history.entries.values().map(Entry::size_bytes).sum::<usize>());
    }
}
