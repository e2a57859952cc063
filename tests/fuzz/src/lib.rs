//! What the parsers of longshore promise for any input; one module a target.

pub mod command_outputs;
pub mod directory;
pub mod resource_name;
pub mod tree;
