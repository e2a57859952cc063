//! The remote-execution worker.
//!
//! Who may import whom: `frontend -> action -> { materialize, run, output, remote }`; those four do not import
//! each other, and `main` injects the implementations. A test in `tests/` keeps it so.

pub mod action;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod connect;
pub mod environment;
pub mod frontend;
mod instance;
mod machine;
pub mod materialize;
mod memory;
pub mod output;
mod packing;
pub mod remote;
pub mod replay;
pub mod run;
mod signals;
pub mod standalone;
pub mod status;
pub mod status_line;
