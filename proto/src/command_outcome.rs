//! The messages of `longshore/v1/command_outcome.proto`, where their fields are explained.

use prost::Message;

use crate::error_details::Detail;
use crate::protobuf;

/// How the command of an action ended, and what it used.
#[derive(Clone, PartialEq, Message)]
pub struct CommandOutcome {
    /// How it ended.
    #[prost(enumeration = "Verdict", tag = "1")]
    pub verdict: i32,
    /// What it returned, if it exited.
    #[prost(int32, tag = "2")]
    pub exit_code: i32,
    /// What killed it, if a signal did.
    #[prost(int32, tag = "3")]
    pub signal: i32,
    /// Processor time in user mode.
    #[prost(message, optional, tag = "4")]
    pub user_time: Option<protobuf::Duration>,
    /// Processor time in the kernel.
    #[prost(message, optional, tag = "5")]
    pub system_time: Option<protobuf::Duration>,
    /// The largest resident set of one process, in bytes.
    #[prost(uint64, tag = "6")]
    pub resident_bytes_max: u64,
}

/// `CommandOutcome.Verdict`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Verdict {
    /// Something that only a later version knows.
    Unspecified = 0,
    /// It exited by itself.
    Exited = 1,
    /// A signal killed it.
    Signaled = 2,
    /// The timeout passed and it was killed.
    TimedOut = 3,
    /// Nobody wanted the result any more and it was killed.
    Cancelled = 4,
    /// It wrote too much to its standard output or error and was killed.
    OutputLimit = 5,
}

impl Detail for CommandOutcome {
    const TYPE_URL: &'static str = "type.googleapis.com/longshore.v1.CommandOutcome";
}

#[cfg(test)]
mod tests {
    use super::*;

    // What clients compile from the .proto file reads what this crate writes.
    #[test]
    fn the_published_definition_is_the_one_that_is_used() {
        let published = include_str!("../longshore/v1/command_outcome.proto");
        let lines: Vec<_> = published.lines().map(str::trim).collect();
        let verdicts = [
            (Verdict::Unspecified, "VERDICT_UNSPECIFIED"),
            (Verdict::Exited, "EXITED"),
            (Verdict::Signaled, "SIGNALED"),
            (Verdict::TimedOut, "TIMED_OUT"),
            (Verdict::Cancelled, "CANCELLED"),
            (Verdict::OutputLimit, "OUTPUT_LIMIT"),
        ];
        for (verdict, name) in verdicts {
            assert!(lines.contains(&format!("{name} = {};", verdict as i32).as_str()), "{name}");
        }
        let fields = [
            ("Verdict verdict = 1;", CommandOutcome { verdict: 1, ..Default::default() }),
            ("int32 exit_code = 2;", CommandOutcome { exit_code: 1, ..Default::default() }),
            ("int32 signal = 3;", CommandOutcome { signal: 1, ..Default::default() }),
            (
                "google.protobuf.Duration user_time = 4;",
                CommandOutcome { user_time: Some(protobuf::Duration::default()), ..Default::default() },
            ),
            (
                "google.protobuf.Duration system_time = 5;",
                CommandOutcome { system_time: Some(protobuf::Duration::default()), ..Default::default() },
            ),
            (
                "uint64 resident_bytes_max = 6;",
                CommandOutcome { resident_bytes_max: 1, ..Default::default() },
            ),
        ];
        for (number, (line, message)) in (1_u8..).zip(fields) {
            assert!(lines.contains(&line), "{line}");
            assert_eq!(message.encode_to_vec().first().map(|tag| tag >> 3), Some(number), "{line}");
        }
    }
}
