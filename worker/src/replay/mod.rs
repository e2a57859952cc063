//! Actions that ran once, run again: `longshore record` and `longshore replay`.
//!
//! The rooms: [`recording`] is what is to be replayed, read from a log of Bazel's ([`log`]), a list of [`digests`], an
//! action directory ([`remotetool`]) or a [`bundle`]; [`outcome`] is what can be compared of how an action went, [`blobs`] are
//! what came along. [`closure`] is all that actions need, [`server`] is the other end, from which a [`download`] comes. [`record`] makes a bundle. [`again`]
//! is the other command: [`prepare`] makes actions ready, [`supply`] uploads, [`drive`] executes at the times that [`pace`] says, [`tally`] counts and
//! [`measure`] takes the time, [`compare`] finds what differs, [`look`] and [`trees`] where in a folder; [`report`], [`text`] and [`verdict`] say so, and [`print`] writes it.
//!
//! **Architecture Invariant:** nothing here knows a longshore at the other end: it speaks to any server of the API.

mod again;
mod blobs;
mod bundle;
mod closure;
mod compare;
mod digests;
mod download;
mod drive;
mod log;
mod look;
mod measure;
mod outcome;
mod pace;
mod prepare;
mod print;
mod record;
mod recording;
mod remotetool;
mod report;
mod server;
mod supply;
mod tally;
mod text;
mod trees;
mod verdict;

use std::borrow::Cow;
use std::path::Path;

pub use again::{ReplayArgs, replay};
pub use record::{RecordArgs, record};
pub use server::ServerArgs;

use recording::RecordedAction;
use server::{Server, is_mistake};
use verdict::Verdict;

use crate::status_line::say;

/// What an action is called in messages.
fn name_of(action: &RecordedAction) -> String {
    if action.name.is_empty() {
        format!("action {}", action.digest)
    } else {
        format!("{} (action {})", on_one_line(&action.name), action.digest)
    }
}

/// A client of the server; nothing if its options are wrong, which is said.
fn open(args: &ServerArgs, parent: &Path, size_bytes_max: u64) -> anyhow::Result<Option<Server>> {
    match Server::open(args, parent, size_bytes_max) {
        Err(error) if is_mistake(&error) => {
            tell(&format!("{error:#}"));
            Ok(None)
        }
        server => server.map(Some),
    }
}

/// Says something with words of a recording's or a server's to the person at the terminal.
fn tell(text: &str) {
    say(&on_one_line(text));
}

/// Words of a recording's or a server's for a terminal: on one line, and nothing that it would obey.
fn on_one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let escaped = |c: char| {
        if c.is_control() { c.escape_default().to_string() } else { c.to_string() }
    };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_spelled_out() {
        assert_eq!(on_one_line("a b \u{fc}"), "a b \u{fc}");
        assert_eq!(on_one_line("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
    }
}
