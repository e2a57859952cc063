//! Whole actions on the real store, cache, materializer and spawner.

mod bench;
mod life;
mod pump;
mod refusals;
