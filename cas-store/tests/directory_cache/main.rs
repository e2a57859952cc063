//! The directory cache with a real store and real files.

mod concurrency;
mod contents;
mod kit;
mod restart;
mod room;
mod sources;
