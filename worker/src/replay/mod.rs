//! Actions that ran once, run again: `longshore record` and `longshore replay`.
//!
//! The rooms: [`recording`] is what is to be replayed, read from a log of Bazel's ([`log`]), a list of [`digests`], an
//! action directory ([`remotetool`]) or a [`bundle`]; [`outcome`] is what can be compared of how an action went, [`blobs`] are
//! what came along. [`closure`] is all that actions need, [`server`] is the other end. [`record`] makes a bundle. [`again`]
//! is the other command: [`prepare`] uploads, [`drive`] executes at the times that [`pace`] says, [`tally`] counts and
//! [`measure`] takes the time, [`compare`] finds what differs, [`trees`] where in a folder; [`report`], [`text`] and [`verdict`] say so.
//!
//! **Architecture Invariant:** nothing here knows a longshore at the other end: it speaks to any server of the API.

mod again;
mod blobs;
mod bundle;
mod closure;
mod compare;
mod digests;
mod drive;
mod log;
mod measure;
mod outcome;
mod pace;
mod prepare;
mod record;
mod recording;
mod remotetool;
mod report;
mod server;
mod tally;
mod text;
mod trees;
mod verdict;

pub use again::{ReplayArgs, replay};
pub use record::{RecordArgs, record};
pub use server::ServerArgs;

use recording::RecordedAction;
use verdict::Verdict;

/// What an action is called in messages.
fn name_of(action: &RecordedAction) -> String {
    if action.name.is_empty() {
        format!("action {}", action.digest)
    } else {
        format!("{} (action {})", action.name, action.digest)
    }
}
