//! Outputs that are symbolic links.
