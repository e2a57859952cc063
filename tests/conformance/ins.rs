//! `instance_name`.
