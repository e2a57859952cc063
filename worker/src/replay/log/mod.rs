//! Bazel's log of its gRPC calls (`--remote_grpc_log`, or `--experimental_remote_grpc_log` in older versions).
//!
//! The log has no header and no end: entries, each behind its length. A log that was cut off ends within an entry, and a
//! file of another program shows itself by a first entry that is none. What came before either can be replayed, and what
//! comes after a single entry that is none.

mod fold;

use std::io::{self, BufRead, Read};
use std::path::Path;

use longshore_proto::Message as _;
use longshore_proto::remote_logging::LogEntry;

use super::recording::{InputError, Recording};
use fold::Fold;

/// The longest entry that is believed, in bytes: a call's messages are a few MiB each.
const ENTRY_BYTES_MAX: u64 = 256 << 20;
/// The longest varint.
const VARINT_BYTES_MAX: u32 = 10;
/// The services of before REAPI 2.0: their actions are other messages.
const OLD_PACKAGE: &str = "google.devtools.remoteexecution.v1test.";

/// Reads a log; `path` is what it is called in errors.
pub(crate) fn read(path: &Path, log: impl BufRead) -> Result<Recording, InputError> {
    let mut entries = Entries { log, offset: 0 };
    let mut fold = Fold::default();
    let mut calls = 0_u64;
    let mut is_old = false;
    let mut skipped = Vec::new();
    let mut is_skipping = false;
    let problem = loop {
        match entries.next() {
            Ok(Some(entry)) => {
                calls += 1;
                is_skipping = false;
                is_old |= entry.method_name.starts_with(OLD_PACKAGE);
                fold.add(entry);
            }
            Ok(None) => break None,
            Err(Fault::Read(source)) => return Err(InputError::read(path)(source)),
            Err(Fault::Wrong(reason) | Fault::Foreign(reason)) if calls == 0 => {
                let reason = format!("it is no gRPC log of Bazel's: {reason}");
                return Err(InputError::unsuitable(path, reason));
            }
            Err(Fault::CutOff(_)) if calls == 0 => {
                let reason = "its first entry is longer than the file: it is no gRPC log of Bazel's, or one that is cut off";
                break Some(reason.to_owned());
            }
            Err(Fault::CutOff(offset)) => {
                break Some(format!("the log is cut off: the call at byte {offset} is not whole"));
            }
            // One that is not of Bazel's ends where its length says. After two, it is the lengths that are not believed.
            Err(Fault::Foreign(reason)) if !is_skipping => {
                is_skipping = true;
                skipped.push(format!("an entry of the log is no call, and left out: {reason}"));
            }
            Err(Fault::Wrong(reason) | Fault::Foreign(reason)) => {
                break Some(format!("the log is damaged, and ends here for us: {reason}"));
            }
        }
    };
    let mut recording = fold.finish();
    recording.problems.extend(skipped.into_iter().chain(problem));
    if recording.actions.is_empty() && recording.problems.is_empty() {
        let reason = match calls {
            0 => "it is empty".to_owned(),
            _ if is_old => "it is of a Bazel that speaks the Remote Execution API of before 2.0".to_owned(),
            _ => format!("none of its {calls} calls executes an action (was everything cached?)"),
        };
        return Err(InputError::unsuitable(path, reason));
    }
    Ok(recording)
}

/// Why there is no next entry.
#[derive(Debug)]
enum Fault {
    Read(io::Error),
    /// The file ends within the entry that begins at that byte.
    CutOff(u64),
    /// It is as long as it says, and no entry.
    Foreign(String),
    /// It is no entry.
    Wrong(String),
}

/// The entries of a log.
struct Entries<R> {
    log: R,
    offset: u64,
}

impl<R: BufRead> Entries<R> {
    fn next(&mut self) -> Result<Option<LogEntry>, Fault> {
        let start = self.offset;
        let Some(len) = self.varint()? else { return Ok(None) };
        let wrong = |reason: String| Fault::Wrong(format!("at byte {start}, {reason}"));
        if len > ENTRY_BYTES_MAX {
            return Err(wrong(format!("an entry claims {len} bytes")));
        }
        let mut entry = Vec::new();
        let read = (&mut self.log).take(len).read_to_end(&mut entry).map_err(Fault::Read)? as u64;
        self.offset += read;
        let decoded = LogEntry::decode(entry.as_slice());
        if read < len {
            return Err(Fault::CutOff(start));
        }
        let foreign = |reason: String| Fault::Foreign(format!("at byte {start}, {reason}"));
        let entry = decoded.map_err(|error| foreign(error.to_string()))?;
        // What every call has, and few other messages have in this field.
        match entry.method_name.split_once('/') {
            Some((service, method)) if !service.is_empty() && !method.is_empty() => Ok(Some(entry)),
            _ => Err(foreign(format!(
                "{:?} is no method",
                entry.method_name.chars().take(40).collect::<String>()
            ))),
        }
    }

    /// Reads a length; nothing at the end of the file.
    fn varint(&mut self) -> Result<Option<u64>, Fault> {
        let start = self.offset;
        let mut value = 0_u64;
        for index in 0..VARINT_BYTES_MAX {
            let mut byte = [0];
            if self.log.read(&mut byte).map_err(Fault::Read)? == 0 {
                return if index == 0 { Ok(None) } else { Err(Fault::CutOff(start)) };
            }
            self.offset += 1;
            value |= u64::from(byte[0] & 0x7f).checked_shl(7 * index).unwrap_or_default();
            if byte[0] < 0x80 {
                return Ok(Some(value));
            }
        }
        Err(Fault::Wrong(format!("at byte {start}, a length has more than {VARINT_BYTES_MAX} bytes")))
    }
}

#[cfg(test)]
mod tests;
