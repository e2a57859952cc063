//! The resource names of `ByteStream`.
