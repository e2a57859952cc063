//! Every cached byte on disk: the content-addressed store, and the directory cache that builds input trees
//! from it.
//!
//! The crate knows no gRPC service, no scheduler and no action. It starts no thread and no task by itself:
//! the [`io::IoPool`], the [`io::Executor`] and the [`io::Clock`] are passed in, so that the code that ships is
//! the code that runs under fault injection.
//!
//! The rooms, from the ground up: [`digest`] and [`name`] parse what comes from outside; [`dir`] is the only
//! place with file-system system calls; [`root`] says who owns a folder of data and whether it can be trusted;
//! [`blob`] keeps blobs and counts their bytes; [`tree`] turns `Directory` messages into plans; [`tree_cache`]
//! turns plans into directories; [`source`] is the remote CAS as seen from here; [`reap`] removes what nobody needs.

pub mod blob;
pub mod digest;
pub mod dir;
pub mod io;
pub mod name;
pub mod reap;
pub mod record;
pub mod root;
pub mod source;

pub mod tree;
pub mod tree_cache;
