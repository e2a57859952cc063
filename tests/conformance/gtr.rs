//! `GetTree`.
