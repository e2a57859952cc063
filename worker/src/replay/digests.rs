//! A digest a line, as `hash/size` or `function/hash/size`. Blank lines and what follows a `#` are skipped, and so is the
//! mark that editors elsewhere put before the first line.

use std::collections::HashSet;
use std::io::BufRead;
use std::path::Path;

use longshore_cas_store::digest::{Digest, DigestFunction};

use super::recording::{InputError, RecordedAction, Recording};

/// What some editors begin a file of UTF-8 with.
const BYTE_ORDER_MARK: char = '\u{feff}';
/// Lines that are named, of those that are wrong.
const PROBLEMS_MAX: usize = 10;

/// Reads a list of action digests; `path` is what it is called in errors. A digest that comes again is the same action.
pub(crate) fn read(path: &Path, lines: impl BufRead) -> Result<Recording, InputError> {
    let mut recording = Recording::default();
    let mut seen = HashSet::new();
    let mut wrong = 0;
    for (number, line) in lines.split(b'\n').enumerate() {
        let line = line.map_err(InputError::read(path))?;
        // What is not UTF-8 is no digest either, unless it is a remark.
        let line = String::from_utf8_lossy(&line);
        let line = if number == 0 { line.trim_start_matches(BYTE_ORDER_MARK) } else { &*line };
        let text = line.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        match parse(text) {
            Ok(digest) if seen.insert(digest) => recording.actions.push(RecordedAction::new(digest)),
            Ok(_) => {}
            Err(reason) => {
                wrong += 1;
                if wrong <= PROBLEMS_MAX {
                    recording.problems.push(format!("line {}: {reason}", number + 1));
                }
            }
        }
    }
    if wrong > PROBLEMS_MAX {
        recording.problems.push(format!("{} more lines are no digests", wrong - PROBLEMS_MAX));
    }
    Ok(recording)
}

/// Parses `hash/size` or `function/hash/size`. Without a function it is the one that the hash's length implies.
pub(crate) fn parse(text: &str) -> Result<Digest, String> {
    let wrong = || format!("expected hash/size, not {:?}", text.chars().take(80).collect::<String>());
    let (rest, size) = text.rsplit_once('/').ok_or_else(wrong)?;
    let size = size.parse().map_err(|_| wrong())?;
    let (function, hash) = match rest.split_once('/') {
        Some((name, hash)) => (DigestFunction::from_name(name), hash),
        None => (DigestFunction::implied_by(rest.len()), rest),
    };
    Digest::parse(function.ok_or_else(wrong)?, hash, size).map_err(|error| error.to_string())
}

/// The form that says everything: `function/hash/size`.
pub(crate) fn format(digest: &Digest) -> String {
    format!("{}/{digest}", digest.function())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_that_are_no_digests_are_named_and_the_rest_is_there() {
        let good = DigestFunction::Sha256.digest(b"a");
        let blake3 = DigestFunction::Blake3.digest(b"b");
        let text = format!("# list\n\n{good}\n  {good} # again\nnonsense\n{}\nabc/1\n", format(&blake3));
        let recording = read(Path::new("-"), text.as_bytes()).unwrap();
        assert_eq!(recording.actions.iter().map(|action| action.digest).collect::<Vec<_>>(), [good, blake3]);
        assert_eq!(recording.problems.len(), 2);
        assert!(recording.problems[0].starts_with("line 5: expected hash/size"), "{:?}", recording.problems);
    }

    // Lists come from editors on every system.
    #[test]
    fn a_remark_in_another_encoding_and_a_mark_before_the_first_line_cost_nothing() {
        let digests = [b"a", b"b"].map(|data| DigestFunction::Sha256.digest(data));
        let mut text = format!("\u{feff}{}\r\n", digests[0]).into_bytes();
        text.extend(b"# caf\xe9\r\n");
        text.extend(digests[1].to_string().into_bytes());
        text.extend(b"\r\n\xff\n");
        let recording = read(Path::new("-"), text.as_slice()).unwrap();
        assert_eq!(recording.actions.iter().map(|action| action.digest).collect::<Vec<_>>(), digests);
        assert_eq!(recording.problems, ["line 4: expected hash/size, not \"\u{fffd}\""]);
    }

    #[test]
    fn a_list_of_nonsense_does_not_fill_the_screen() {
        let recording = read(Path::new("-"), "x\n".repeat(1000).as_bytes()).unwrap();
        assert_eq!(recording.problems.len(), PROBLEMS_MAX + 1);
        assert_eq!(recording.problems[PROBLEMS_MAX], "990 more lines are no digests");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(data: Vec<u8>, function in 0..DigestFunction::ALL.len()) {
            let digest = DigestFunction::ALL[function].digest(&data);
            prop_assert_eq!(parse(&format(&digest)), Ok(digest));
        }

        #[test]
        fn nothing_makes_it_panic(text: String) {
            let _ = parse(&text);
        }
    }
}
