//! `ExecutedActionMetadata`.
