//! `BatchUpdateBlobs`.
