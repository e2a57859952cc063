//! Digests and the encoding that they are of.
