//! `FindMissingBlobs`.
