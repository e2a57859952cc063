//! The `longshore` binary: wiring, nothing else.

fn main() {
    longshore_worker::run::run_if_helper();
}
