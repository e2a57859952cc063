//! Values as people write them, on the command line and in a file: parsed once, and refused with what is allowed.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};

use crate::connect::{self, Target};
use crate::instance;

/// A size such as `50GB` or `10GiB`: a number and a unit, of 1000 or of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// In bytes.
    pub bytes: u64,
}

/// More than any disk has, in bytes: whoever says more has mistaken the unit.
const SIZE_MAX: u64 = 1 << 60;

impl Size {
    /// The smallest store that is of any use.
    pub const MIN: Self = Self { bytes: 1 << 20 };
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits_end);
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" => 1_000,
            "m" | "mb" => 1_000_000,
            "g" | "gb" => 1_000_000_000,
            "t" | "tb" => 1_000_000_000_000,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "tib" => 1 << 40,
            _ => return Err("expected a number with kB, MB, GB, TB, KiB, MiB, GiB or TiB".to_owned()),
        };
        let number: f64 =
            number.parse().map_err(|_| "expected a number such as 50GB or 1.5TiB".to_owned())?;
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "digits and a dot make no negative number, and a size needs no precision of one byte"
        )]
        let bytes = (number * factor as f64) as u64;
        if bytes < Self::MIN.bytes {
            return Err(format!("{bytes} bytes are too few; at least 1MiB"));
        }
        if bytes > SIZE_MAX {
            return Err(format!("{text} is more than any disk has; at most {}TiB", SIZE_MAX >> 40));
        }
        Ok(Self { bytes })
    }
}

/// The longest span of time, in seconds: a hundred years, which can be added to any time.
const SPAN_S_MAX: u64 = 100 * 365 * 24 * 60 * 60;

/// A span of time such as `90s`, `15m` or `2h`: a whole number and a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected a time such as 90s, 15m or 2h".to_owned();
        let text = text.trim();
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?);
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 60 * 60,
            _ => return Err(expected()),
        };
        let number: u64 = number.parse().map_err(|_| expected())?;
        match number.checked_mul(seconds) {
            Some(seconds @ 1..=SPAN_S_MAX) => Ok(Self(Duration::from_secs(seconds))),
            Some(0) => Err(expected()),
            _ => Err(format!("{text} is too long; at most {}h", SPAN_S_MAX / (60 * 60))),
        }
    }
}

/// A number of actions at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jobs(u16);

impl Jobs {
    /// The number.
    pub fn get(self) -> usize {
        self.0.into()
    }

    fn expected() -> String {
        format!("expected a number from 1 to {}", u16::MAX)
    }
}

impl FromStr for Jobs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let jobs = text.trim().parse().ok().filter(|jobs| *jobs > 0);
        jobs.map(Self).ok_or_else(Self::expected)
    }
}

/// A name that a shell takes for a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable(pub String);

impl FromStr for Variable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_';
        if text.starts_with(is_letter) && text.chars().all(|c| is_letter(c) || c.is_ascii_digit()) {
            Ok(Self(text.to_owned()))
        } else {
            Err("expected the name of a variable, such as BAZEL_REMOTE_PLATFORM".to_owned())
        }
    }
}

/// What results and schedulers know a worker by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(pub String);

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() || text.contains(char::is_control) {
            Err("expected a name such as worker-1, on one line".to_owned())
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

/// The name of an instance (REAPI, `instance_name`); the empty one is one, too.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct InstanceName(pub String);

impl FromStr for InstanceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        instance::check(text)?;
        Ok(Self(text.to_owned()))
    }
}

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// As it was written.
    pub uri: String,
    /// Where it leads, however it is written.
    pub target: String,
    /// Whether it is reached by TLS.
    pub is_secure: bool,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match connect::target(text) {
            Ok(Target { uri: target, is_secure }) => Ok(Self { uri: text.to_owned(), target, is_secure }),
            Err(reason) => Err(format!(
                "{text:?}: {reason}; expected grpc://HOST:PORT, grpcs://HOST:PORT (TLS) or unix:PATH"
            )),
        }
    }
}

/// The values of a property of a platform: `"linux"`, or `["ubuntu", "debian"]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values(pub Vec<String>);

/// Reads from a file what the command line reads from text. Whoever writes something else is shown an example.
macro_rules! deserialize_from_text {
    ($($type:ty, $example:literal);*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;

                impl Visitor<'_> for Text {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "a text such as {:?}", $example)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }

                deserializer.deserialize_str(Text)
            }
        }
    )*};
}

deserialize_from_text!(
    Size, "50GB";
    Span, "15m";
    Variable, "BAZEL_REMOTE_PLATFORM";
    Name, "worker-1";
    InstanceName, "main";
    Address, "grpc://HOST:PORT"
);

impl<'de> Deserialize<'de> for Jobs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;

        impl Visitor<'_> for Number {
            type Value = Jobs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number from 1 to {}", u16::MAX)
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Jobs, E> {
                let jobs = u16::try_from(number).ok().filter(|jobs| *jobs > 0);
                jobs.map(Jobs).ok_or_else(|| E::custom(Jobs::expected()))
            }
        }

        deserializer.deserialize_i64(Number)
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;

        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Values;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Values, E> {
                Ok(Values(vec![value.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Values, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = sequence.next_element()? {
                    values.push(value);
                }
                Ok(Values(values))
            }
        }

        deserializer.deserialize_any(OneOrMany)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1000_and_of_1024() {
        let cases = [
            ("50GB", 50_000_000_000),
            ("10GiB", 10 << 30),
            ("1.5tib", 3 << 39),
            ("2000000", 2_000_000),
            ("3 M", 3_000_000),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(Size { bytes }), "{text}");
        }
        for text in ["", "GB", "-5GB", "5 parsecs", "1..2GB", "12", "0GB", "99999999999999TB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn times_have_units() {
        for (text, seconds) in [("90s", 90), ("15m", 900), (" 2h ", 7200)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_secs(seconds))), "{text}");
        }
        for text in
            ["", "s", "5", "0s", "-1s", "1.5s", "1d", "1 s", "99999999999999999999s", "5124095576030432h"]
        {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        // What could not be added to the time of the day.
        let error = format!("{}s", u64::MAX).parse::<Span>().unwrap_err();
        assert!(error.contains("at most 876000h"), "{error}");
    }

    #[test]
    fn at_least_one_action_runs() {
        assert_eq!(("1".parse(), "65535".parse()), (Ok(Jobs(1)), Ok(Jobs(65535))));
        for text in ["", "0", "-1", "65536", "all"] {
            assert!(text.parse::<Jobs>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_is_one_line() {
        assert_eq!("worker 1".parse(), Ok(Name("worker 1".to_owned())));
        for text in ["", " ", "a\nb", "\u{1b}[2J"] {
            assert!(text.parse::<Name>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn variables_have_names_that_shells_take() {
        for text in ["A", "_", "BAZEL_REMOTE_PLATFORM", "a1"] {
            assert_eq!(text.parse(), Ok(Variable(text.to_owned())));
        }
        for text in ["", "1a", "A=B", "A B", "Ä"] {
            assert!(text.parse::<Variable>().is_err(), "{text}");
        }
    }
}
