//! What passes between longshore, the helper and the keepers: a specification one way, a report the other.
//!
//! Both ends are one binary, so the form is private and has no version. A specification travels in a memory
//! file, because arguments and environment may be megabytes long; a report fits in one write.

use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use longshore_cas_store::dir::Owner;
use nix::errno::Errno;

use super::{RunOutcome, Usage, Verdict};

/// What a keeper is to run; the files for the streams travel as descriptors beside it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Spec {
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
    pub(super) working_directory: PathBuf,
    pub(super) timeout: Option<Duration>,
    pub(super) owner: Option<Owner>,
}

/// A step between the fork and the program, where starting a command can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Prepare,
    Fork,
    Streams,
    Identity,
    WorkingDirectory,
    Execute,
}

impl Stage {
    const ALL: [Self; 6] =
        [Self::Prepare, Self::Fork, Self::Streams, Self::Identity, Self::WorkingDirectory, Self::Execute];

    /// What the step does, for an error message.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Prepare => "prepare the keeper",
            Self::Fork => "fork",
            Self::Streams => "connect the streams",
            Self::Identity => "take on the action's user",
            Self::WorkingDirectory => "enter the working directory",
            Self::Execute => "execute",
        }
    }
}

/// What a keeper says at its end.
#[derive(Clone, Debug)]
pub(super) enum Report {
    /// The command ran, and all its descendants are dead.
    Ended(RunOutcome),
    /// It was not started.
    Failed(Stage, Errno),
}

/// The numbers of a report, of either kind.
const REPORT_NUMBERS: usize = 8;
/// The length of a report.
pub(super) const REPORT_BYTES: usize = REPORT_NUMBERS * size_of::<u64>();

const NO_TIMEOUT: u64 = u64::MAX;
const NO_OWNER: u64 = u64::MAX;

impl Spec {
    pub(super) fn encode(&self) -> Vec<u8> {
        let timeout_ns = self.timeout.map_or(NO_TIMEOUT, saturating_nanos);
        let owner = self.owner.map_or(NO_OWNER, |owner| u64::from(owner.uid) << 32 | u64::from(owner.gid));
        let mut bytes = Vec::new();
        for number in [timeout_ns, owner, self.arguments.len() as u64] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(self.working_directory.as_os_str().as_encoded_bytes());
        bytes.push(0);
        for text in self.arguments.iter().chain(&self.environment) {
            bytes.extend_from_slice(text.as_bytes_with_nul());
        }
        bytes
    }

    /// Decodes what [`Spec::encode`] wrote; nothing for anything else.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let timeout_ns = reader.number()?;
        let owner = reader.number()?;
        let arguments_len = usize::try_from(reader.number()?).ok()?;
        let directory = reader.text()?;
        let mut texts = Vec::new();
        while !reader.0.is_empty() {
            texts.push(reader.text()?);
        }
        let environment = (arguments_len <= texts.len()).then(|| texts.split_off(arguments_len))?;
        Some(Self {
            arguments: texts,
            environment,
            working_directory: PathBuf::from(std::ffi::OsString::from(directory.into_string().ok()?)),
            timeout: (timeout_ns != NO_TIMEOUT).then(|| Duration::from_nanos(timeout_ns)),
            owner: (owner != NO_OWNER).then_some(Owner { uid: high(owner), gid: low(owner) }),
        })
    }
}

impl Report {
    pub(super) fn encode(&self) -> [u8; REPORT_BYTES] {
        let numbers: [u64; REPORT_NUMBERS] = match self {
            Self::Failed(stage, errno) => {
                [0, *stage as u64, u64::from((*errno as i32).unsigned_abs()), 0, 0, 0, 0, 0]
            }
            Self::Ended(outcome) => {
                let (kind, value) = match outcome.verdict {
                    Verdict::Exited(code) => (1, code),
                    Verdict::Signaled(signal) => (2, signal),
                    Verdict::TimedOut => (3, 0),
                    Verdict::Cancelled => (4, 0),
                };
                [
                    kind,
                    u64::from(value.unsigned_abs()),
                    since_epoch(outcome.started),
                    since_epoch(outcome.completed),
                    saturating_nanos(outcome.duration),
                    saturating_nanos(outcome.usage.user_time),
                    saturating_nanos(outcome.usage.system_time),
                    outcome.usage.resident_bytes_max,
                ]
            }
        };
        let mut bytes = [0; REPORT_BYTES];
        for (place, number) in bytes.chunks_exact_mut(size_of::<u64>()).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Decodes what [`Report::encode`] wrote; nothing for anything shorter, such as a keeper that died.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes.get(..REPORT_BYTES)?);
        let kind = reader.number()?;
        let value = i32::try_from(reader.number()?).ok()?;
        let verdict = match kind {
            0 => {
                let stage = *Stage::ALL.get(usize::try_from(value).ok()?)?;
                let errno = Errno::from_raw(i32::try_from(reader.number()?).ok()?);
                return Some(Self::Failed(stage, errno));
            }
            1 => Verdict::Exited(value),
            2 => Verdict::Signaled(value),
            3 => Verdict::TimedOut,
            4 => Verdict::Cancelled,
            _ => return None,
        };
        Some(Self::Ended(RunOutcome {
            verdict,
            started: SystemTime::UNIX_EPOCH + reader.duration()?,
            completed: SystemTime::UNIX_EPOCH + reader.duration()?,
            duration: reader.duration()?,
            usage: Usage {
                user_time: reader.duration()?,
                system_time: reader.duration()?,
                resident_bytes_max: reader.number()?,
            },
        }))
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    fn duration(&mut self) -> Option<Duration> {
        self.number().map(Duration::from_nanos)
    }

    fn text(&mut self) -> Option<CString> {
        let text = CStr::from_bytes_until_nul(self.0).ok()?;
        self.0 = &self.0[text.count_bytes() + 1..];
        Some(text.to_owned())
    }
}

fn high(number: u64) -> u32 {
    u32::try_from(number >> 32).unwrap_or(u32::MAX)
}

fn low(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

fn saturating_nanos(duration: Duration) -> u64 {
    // The largest value means "none" in a specification.
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX - 1)
}

fn since_epoch(time: SystemTime) -> u64 {
    saturating_nanos(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> CString {
        CString::new(text).unwrap()
    }

    #[test]
    fn a_specification_survives_the_way() {
        let spec = Spec {
            arguments: vec![text("sh"), text(""), text("a b\n")],
            environment: vec![text("A=1"), text("B=")],
            working_directory: PathBuf::from("/some where/ü"),
            timeout: Some(Duration::from_millis(1500)),
            owner: Some(Owner { uid: 65534, gid: 7 }),
        };
        assert_eq!(Spec::decode(&spec.encode()), Some(spec));
    }

    // No timeout and no owner are not the same as a timeout of nothing and root.
    #[test]
    fn absent_is_not_zero() {
        let spec = |timeout, owner| Spec {
            arguments: vec![text("x")],
            environment: vec![],
            working_directory: PathBuf::from("/"),
            timeout,
            owner,
        };
        for spec in [spec(None, None), spec(Some(Duration::ZERO), Some(Owner { uid: 0, gid: 0 }))] {
            assert_eq!(Spec::decode(&spec.encode()), Some(spec));
        }
    }

    #[test]
    fn a_keeper_that_died_has_reported_nothing() {
        let failed = Report::Failed(Stage::Execute, Errno::ENOENT).encode();
        assert!(matches!(Report::decode(&failed), Some(Report::Failed(Stage::Execute, Errno::ENOENT))));
        assert!(Report::decode(&failed[..failed.len() - 1]).is_none());
        assert!(Report::decode(&[]).is_none());
    }
}
