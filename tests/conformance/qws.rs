//! `ByteStream.QueryWriteStatus`.
