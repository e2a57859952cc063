//! `ByteStream.Read`.
