//! `ByteStream.Write`.
