//! Generates the protocols between schedulers and workers, and Bazel's log, from `protos/`, without protoc.
//!
//! `text/` becomes descriptors: they give the text form of messages whose code is elsewhere its names.

use std::path::Path;

const PROTOS: &str = "protos";
/// Names of messages that `bazel-remote-apis` defines.
const IMPORTS: &str = "protos/imports";

const FILES: [&str; 4] = [
    "buildbarn/remoteworker/remoteworker.proto",
    "com/github/trace_machina/nativelink/remote_execution/worker_api.proto",
    "google/devtools/remoteworkers/v1test2/bots.proto",
    "remote_logging/log.proto",
];

/// Messages that are read as text.
const TEXT: &str = "text";

/// Packages that are not generated, and where their messages are.
const ELSEWHERE: [(&str, &str); 4] = [
    (".build.bazel.remote.execution.v2", "::bazel_remote_apis::build::bazel::remote::execution::v2"),
    (".google.longrunning", "::bazel_remote_apis::google::longrunning"),
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

    println!("cargo::rerun-if-changed={TEXT}");
    let text = protox::compile([Path::new(TEXT).join("remote_execution.proto")], [TEXT])?;
    let folder = std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?;
    std::fs::write(Path::new(&folder).join("text.bin"), prost::Message::encode_to_vec(&text))?;
    Ok(())
}
