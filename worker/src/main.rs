//! The `longshore` binary: wiring, nothing else.

fn main() {}
