//! The protocols between schedulers and workers, and Bazel's log of its calls, generated from `protos/`.

#![expect(
    missing_docs,
    unused_qualifications,
    clippy::pedantic,
    clippy::large_enum_variant,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto files say what there is to say"
)]

/// Buildbarn: `buildbarn.remoteworker`.
pub mod remoteworker {
    tonic::include_proto!("buildbarn.remoteworker");
}

/// `NativeLink`: `com.github.trace_machina.nativelink.remote_execution`.
pub mod nativelink {
    tonic::include_proto!("com.github.trace_machina.nativelink.remote_execution");
}

/// The Bots API: `google.devtools.remoteworkers.v1test2`.
pub mod bots {
    tonic::include_proto!("google.devtools.remoteworkers.v1test2");
}

/// Bazel's log of its gRPC calls: `remote_logging`.
pub mod remote_logging {
    tonic::include_proto!("remote_logging");
}
