//! The canonical form of Directory messages.
