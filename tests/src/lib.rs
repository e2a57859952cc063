//! The test kit: a running `longshore`, a client for it, and input trees of every shape.
//!
//! What belongs here is used by more than one test. The kit asserts nothing by itself: it returns what
//! happened, and leaves no process and no file behind when its values are dropped.

pub mod action;
pub mod client;
pub mod cold;
pub mod fake_bots;
pub mod fake_buildbarn;
pub mod fake_cas;
pub mod fake_nativelink;
pub mod grpc_log;
pub mod longshore;
pub mod place;
pub mod process;
pub mod proxy;
pub mod source;
pub mod transcript;
pub mod tree;
pub mod wait;
