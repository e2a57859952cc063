//! gRPC hygiene.
