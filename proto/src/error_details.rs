//! The messages of `google/rpc/error_details.proto` that travel in `google.rpc.Status.details`.
//!
//! `bazel-remote-apis` generates what REAPI's own files import, and these are not among them.

use std::time::Duration;

use prost::Message;

use crate::{protobuf, rpc, time};

/// The violation type by which REAPI reports a blob that is in no store (`Execution.Execute`).
pub const MISSING: &str = "MISSING";

/// `google.rpc.PreconditionFailure`.
#[derive(Clone, PartialEq, Message)]
pub struct PreconditionFailure {
    /// What has to be put right before a retry can help.
    #[prost(message, repeated, tag = "1")]
    pub violations: Vec<Violation>,
}

/// `google.rpc.PreconditionFailure.Violation`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Violation {
    /// The kind of violation, such as [`MISSING`].
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// What violates it.
    #[prost(string, tag = "2")]
    pub subject: String,
    /// How, for people.
    #[prost(string, tag = "3")]
    pub description: String,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
pub struct RetryInfo {
    /// How long to wait before the next attempt.
    #[prost(message, optional, tag = "1")]
    pub retry_delay: Option<protobuf::Duration>,
}

/// A message that can be packed into a `google.protobuf.Any`.
pub trait Detail: Message + Default {
    /// The type URL that names it.
    const TYPE_URL: &'static str;

    /// Packs it.
    fn to_any(&self) -> protobuf::Any {
        protobuf::Any { type_url: Self::TYPE_URL.to_owned(), value: self.encode_to_vec() }
    }

    /// Unpacks it; nothing if `any` holds another message, or bytes that are none.
    fn from_any(any: &protobuf::Any) -> Option<Self> {
        if any.type_url != Self::TYPE_URL {
            return None;
        }
        Self::decode(any.value.as_slice()).ok()
    }
}

/// How long a status asks to wait for another attempt; nothing if it does not say that one can help.
pub fn retry_delay(status: &rpc::Status) -> Option<Duration> {
    let info = status.details.iter().find_map(RetryInfo::from_any)?;
    time::from_duration(&info.retry_delay?)
}

impl Detail for PreconditionFailure {
    const TYPE_URL: &'static str = "type.googleapis.com/google.rpc.PreconditionFailure";
}

impl Detail for RetryInfo {
    const TYPE_URL: &'static str = "type.googleapis.com/google.rpc.RetryInfo";
}

#[cfg(test)]
mod tests {
    use super::*;

    // The field numbers are the contract: these bytes were written down from the published definition.
    #[test]
    fn details_have_the_published_encoding() {
        let violation =
            Violation { r#type: "M".to_owned(), subject: "s".to_owned(), description: String::new() };
        let any = PreconditionFailure { violations: vec![violation] }.to_any();
        assert_eq!(any.value, [0x0a, 6, 0x0a, 1, b'M', 0x12, 1, b's']);
        let retry = RetryInfo { retry_delay: Some(protobuf::Duration { seconds: 3, nanos: 0 }) };
        assert_eq!(retry.to_any().value, [0x0a, 2, 0x08, 3]);
    }

    #[test]
    fn a_detail_is_unpacked_only_as_what_it_is() {
        let any = RetryInfo { retry_delay: None }.to_any();
        assert_eq!(RetryInfo::from_any(&any), Some(RetryInfo { retry_delay: None }));
        assert_eq!(PreconditionFailure::from_any(&any), None);
    }
}
