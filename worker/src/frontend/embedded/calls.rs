//! What every call goes through: a span that says who calls, so that each of its log lines does, and its deadline.
//!
//! `RequestMetadata` and the W3C trace context serve logs alone: nothing is decided by them, and what cannot be
//! decoded says nothing. A call that has not answered when its deadline passes is dropped, which stops its work; a
//! stream that is already open is ended by its client.

use std::time::Duration;

use futures::FutureExt as _;
use longshore_proto::{Message as _, reapi};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};
use tracing::{Instrument as _, Span};

use super::around::{Answer, Around, Services};

const METADATA_HEADER: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";
const TIMEOUT_HEADER: &str = "grpc-timeout";
const TRACE_HEADER: &str = "traceparent";

/// What every call goes through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Calls;

impl Around for Calls {
    fn call<S: Services>(&self, services: &mut S, mut request: http::Request<Body>) -> Answer<S> {
        let metadata = request_metadata(request.headers());
        let span = span(&request, &metadata);
        request.extensions_mut().insert(metadata);
        let timeout = request.headers().get(TIMEOUT_HEADER);
        let timeout = timeout.and_then(|text| parse_timeout(text.to_str().ok()?));
        // In the span too, for what services do before they wait.
        let call = span.in_scope(|| services.call(request));
        let Some(timeout) = timeout else { return call.instrument(span).boxed() };
        let call = tokio::time::timeout(timeout, call);
        let answer = async move { call.await.unwrap_or_else(|_| Ok(expired().into_http())) };
        answer.instrument(span).boxed()
    }
}

fn span(request: &http::Request<Body>, metadata: &reapi::RequestMetadata) -> Span {
    let tool = metadata.tool_details.as_ref();
    let trace = request.headers().get(TRACE_HEADER).and_then(|trace| trace.to_str().ok());
    tracing::info_span!(
        "call",
        method = request.uri().path(),
        tool = tool.map(|tool| tool.tool_name.as_str()),
        target = said(&metadata.target_id),
        mnemonic = said(&metadata.action_mnemonic),
        invocation = said(&metadata.tool_invocation_id),
        trace,
    )
}

fn said(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// Who makes a call, as far as it says (REAPI, `RequestMetadata`).
fn request_metadata(headers: &http::HeaderMap) -> reapi::RequestMetadata {
    let Some(value) = headers.get(METADATA_HEADER) else { return reapi::RequestMetadata::default() };
    let headers =
        http::HeaderMap::from_iter([(http::HeaderName::from_static(METADATA_HEADER), value.clone())]);
    let bytes =
        MetadataMap::from_headers(headers).get_bin(METADATA_HEADER).map(BinaryMetadataValue::to_bytes);
    let metadata = bytes.and_then(Result::ok).and_then(|bytes| reapi::RequestMetadata::decode(bytes).ok());
    metadata.unwrap_or_else(|| {
        tracing::debug!("a RequestMetadata cannot be decoded and is ignored");
        reapi::RequestMetadata::default()
    })
}

/// Parses the value of `grpc-timeout`: up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    const DIGITS_MAX: usize = 8;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.is_empty() || number.len() > DIGITS_MAX || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

fn expired() -> Status {
    Status::deadline_exceeded("the deadline of the call has passed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let cases = [
            ("2H", Some(Duration::from_hours(2))),
            ("3M", Some(Duration::from_mins(3))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("100m", Some(Duration::from_millis(100))),
            ("7u", Some(Duration::from_micros(7))),
            ("0n", Some(Duration::ZERO)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_timeout(text), expected, "{text}");
        }
        for text in ["", "S", "1", "1s", "-1S", "+1S", "100000000S", "1é", "1 S"] {
            assert_eq!(parse_timeout(text), None, "{text}");
        }
    }

    // The gRPC protocol leaves the padding of binary headers to the sender.
    #[test]
    fn metadata_is_read_with_and_without_padding() {
        let sent = reapi::RequestMetadata { target_id: "//a".to_owned(), ..Default::default() };
        for text in ["MgMvL2E", "MgMvL2E="] {
            let header = (http::HeaderName::from_static(METADATA_HEADER), text.parse().unwrap());
            assert_eq!(request_metadata(&http::HeaderMap::from_iter([header])), sent, "{text}");
        }
        for text in ["not base64!", "/////w", ""] {
            let header = (http::HeaderName::from_static(METADATA_HEADER), text.parse().unwrap());
            let read = request_metadata(&http::HeaderMap::from_iter([header]));
            assert_eq!(read, reapi::RequestMetadata::default(), "{text}");
        }
        assert_eq!(request_metadata(&http::HeaderMap::new()), reapi::RequestMetadata::default());
    }
}
