//! Output directories.
