//! The content-addressable storage in general.
