//! Wire types of longshore, and nothing else.
//!
//! The crate gives short names to the modules of `bazel-remote-apis`, so that the rest of the code reads
//! `reapi::Directory` and not six path segments. It knows no store, no worker and no scheduler.

pub mod command_outcome;
pub mod error_details;
mod generated;
pub mod raw;
pub mod text;
pub mod time;

pub use generated::{bots, nativelink, remote_logging, remoteworker};

pub use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
pub use bazel_remote_apis::build::bazel::semver;
pub use bazel_remote_apis::google::{bytestream, longrunning, protobuf, rpc};
pub use prost::Message;
