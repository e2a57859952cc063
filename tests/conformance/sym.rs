//! Symbolic links in the input tree.
