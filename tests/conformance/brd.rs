//! `BatchReadBlobs`.
