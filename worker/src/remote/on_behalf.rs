//! On whose behalf calls are made: the headers that say so.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use longshore_proto::{Message as _, reapi};
use tonic::metadata::{Ascii, Binary, MetadataMap, MetadataValue};

/// The header that has a `RequestMetadata`.
const METADATA_HEADER: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";
/// The headers of the W3C's Trace Context.
const TRACE_HEADERS: [&str; 2] = ["traceparent", "tracestate"];

/// The W3C's Trace Context of a request: what makes calls that are made for it part of the client's trace.
#[derive(Clone, Debug, Default)]
pub struct TraceContext(Vec<(&'static str, MetadataValue<Ascii>)>);

impl TraceContext {
    /// Takes from `headers` those of the Trace Context that can be sent. Others say who makes a call, and are not for
    /// somebody else to set.
    pub fn of(headers: &HashMap<String, String>) -> Self {
        let sendable = |name| Some((name, MetadataValue::try_from(headers.get(name)?.as_str()).ok()?));
        Self(TRACE_HEADERS.into_iter().filter_map(sendable).collect())
    }
}

/// The headers of calls that are made for one request. Clones share them: a download has one for each blob.
#[derive(Clone)]
pub(super) struct OnBehalfOf(Arc<Headers>);

struct Headers {
    metadata: MetadataValue<Binary>,
    trace: TraceContext,
}

impl OnBehalfOf {
    /// What nobody in particular has asked for.
    pub(super) fn ourselves() -> Self {
        let tool = reapi::ToolDetails {
            tool_name: "longshore".to_owned(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let metadata = reapi::RequestMetadata { tool_details: Some(tool), ..Default::default() };
        Self::with(encode(&metadata), TraceContext::default())
    }

    /// What that request needs; who asked stays who it is where the request does not say.
    pub(super) fn request(&self, metadata: &reapi::RequestMetadata, trace: &TraceContext) -> Self {
        let is_said = *metadata != reapi::RequestMetadata::default();
        let metadata = if is_said { encode(metadata) } else { self.0.metadata.clone() };
        Self::with(metadata, trace.clone())
    }

    fn with(metadata: MetadataValue<Binary>, trace: TraceContext) -> Self {
        Self(Arc::new(Headers { metadata, trace }))
    }

    /// Adds them to those of a call.
    pub(super) fn add_to(&self, headers: &mut MetadataMap) {
        headers.insert_bin(METADATA_HEADER, self.0.metadata.clone());
        for (name, value) in &self.0.trace.0 {
            headers.insert(*name, value.clone());
        }
    }
}

fn encode(metadata: &reapi::RequestMetadata) -> MetadataValue<Binary> {
    MetadataValue::from_bytes(&metadata.encode_to_vec())
}

impl fmt::Debug for OnBehalfOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnBehalfOf").field(&self.0.trace).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A scheduler says in whose trace a call is, not who makes it or where it goes.
    #[test]
    fn only_the_trace_context_becomes_headers_and_only_what_can_be_sent() {
        let pairs = [
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            ("tracestate", "a=b\r\nauthorization: Bearer x"),
            ("authorization", "Bearer x"),
            ("TraceParent", "another"),
            ("grpc-timeout", "1n"),
        ];
        let context = TraceContext::of(&pairs.map(|(name, value)| (name.into(), value.into())).into());
        let mut headers = MetadataMap::new();
        OnBehalfOf::ourselves().request(&reapi::RequestMetadata::default(), &context).add_to(&mut headers);
        assert_eq!(headers.get("traceparent").unwrap(), pairs[0].1);
        assert_eq!(headers.len(), 2, "the trace and the metadata: {headers:?}");
    }

    // Where a scheduler does not pass on who asked, servers are still told who makes the call.
    #[test]
    fn a_call_says_who_makes_it_where_nobody_says_who_asked() {
        let said = |metadata: &reapi::RequestMetadata| {
            let mut headers = MetadataMap::new();
            let whom = OnBehalfOf::ourselves().request(metadata, &TraceContext::default());
            whom.add_to(&mut headers);
            let bytes = headers.get_bin(METADATA_HEADER).unwrap().to_bytes().unwrap();
            reapi::RequestMetadata::decode(bytes).unwrap()
        };
        let tool = said(&reapi::RequestMetadata::default()).tool_details.unwrap();
        assert_eq!(tool.tool_name, "longshore");
        let metadata = reapi::RequestMetadata { target_id: "//a".to_owned(), ..Default::default() };
        assert_eq!(said(&metadata), metadata);
    }
}
