//! Operations that have ended and can still be asked for: the newest, within bounds of number and size.

use std::collections::VecDeque;

/// How many are kept.
const ENTRIES_MAX: usize = 10_000;
/// What they and their responses may take together, these encoded.
const SIZE_BYTES_MAX: usize = 64 << 20;

/// The names of operations in the order in which they ended.
#[derive(Debug, Default)]
pub(super) struct History {
    entries: VecDeque<Entry>,
    size_bytes: usize,
}

#[derive(Debug)]
struct Entry {
    name: String,
    size_bytes: usize,
}

impl History {
    /// Adds one, which with its response has that size; the names of those that are to be forgotten instead.
    pub(super) fn add(&mut self, name: String, size_bytes: usize) -> Vec<String> {
        self.entries.push_back(Entry { name, size_bytes });
        self.size_bytes += size_bytes;
        let mut forgotten = Vec::new();
        // The newest stays whatever its size: its client is about to ask.
        while self.entries.len() > 1
            && (self.entries.len() > ENTRIES_MAX || self.size_bytes > SIZE_BYTES_MAX)
            && let Some(oldest) = self.entries.pop_front()
        {
            self.size_bytes -= oldest.size_bytes;
            forgotten.push(oldest.name);
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // What finished operations take is bounded in both ways, oldest out first.
    #[test]
    fn the_oldest_are_forgotten() {
        let mut history = History::default();
        for index in 0..ENTRIES_MAX {
            assert_eq!(history.add(index.to_string(), 0), Vec::<String>::new());
        }
        assert_eq!(history.add("next".to_owned(), 0), ["0"]);
        assert_eq!(history.add("large".to_owned(), SIZE_BYTES_MAX), ["1"]);
        let forgotten = history.add("small".to_owned(), 1);
        assert_eq!(forgotten.len(), ENTRIES_MAX, "all but the newest");
        assert_eq!(forgotten.last().map(String::as_str), Some("large"));
    }

    #[test]
    fn the_newest_is_kept_whatever_its_size() {
        let mut history = History::default();
        assert_eq!(history.add("huge".to_owned(), SIZE_BYTES_MAX + 1), Vec::<String>::new());
        assert_eq!(history.add("next".to_owned(), 1), ["huge"]);
    }
}
