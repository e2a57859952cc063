//! Generates the protocols between schedulers and workers from `protos/`, without protoc.

use std::path::Path;

const PROTOS: &str = "protos";
/// Names of messages that `bazel-remote-apis` defines.
const IMPORTS: &str = "protos/imports";

const FILES: [&str; 3] = [
    "buildbarn/remoteworker/remoteworker.proto",
    "com/github/trace_machina/nativelink/remote_execution/worker_api.proto",
    "google/devtools/remoteworkers/v1test2/bots.proto",
];

/// Packages that are not generated, and where their messages are.
const ELSEWHERE: [(&str, &str); 3] = [
    (".build.bazel.remote.execution.v2", "::bazel_remote_apis::build::bazel::remote::execution::v2"),
    (".google.protobuf", "::bazel_remote_apis::google::protobuf"),
    (".google.rpc", "::bazel_remote_apis::google::rpc"),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed={PROTOS}");
    let files = protox::compile(FILES.map(|file| Path::new(PROTOS).join(file)), [PROTOS, IMPORTS])?;
    let mut builder = tonic_prost_build::configure().compile_well_known_types(true);
    for (package, module) in ELSEWHERE {
        builder = builder.extern_path(package, module);
    }
    builder.compile_fds(files)?;
    Ok(())
}
