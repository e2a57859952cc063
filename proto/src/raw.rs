//! Messages whose parts are left as the bytes that were sent: what is hashed must not be encoded anew.

use prost::Message;

/// `build.bazel.remote.execution.v2.Tree` with its directories encoded.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RawTree {
    /// The root, a `Directory`.
    #[prost(bytes = "vec", tag = "1")]
    pub root: Vec<u8>,
    /// The directories below it, each a `Directory`.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub children: Vec<Vec<u8>>,
}
