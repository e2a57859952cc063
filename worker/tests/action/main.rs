//! Whole actions on the real store, cache, materializer and spawner.

mod bench;
#[path = "../kit/mod.rs"]
mod kit;
mod life;
mod pump;
mod refusals;
mod room;
