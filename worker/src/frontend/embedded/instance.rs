//! Instance names: any valid one is served, with an action cache of its own over the one CAS.

use crate::status::Failure;

/// Segments that resource names use themselves (REAPI, `instance_name`).
const RESERVED: [&str; 7] =
    ["blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs"];

/// Checks the `instance_name` of a request.
pub(super) fn check(name: &str) -> Result<(), Failure> {
    if name.is_empty() {
        return Ok(());
    }
    for segment in name.split('/') {
        if segment.is_empty() {
            return Err(Failure::invalid(format!("instance_name {name:?} has an empty segment")));
        }
        if RESERVED.contains(&segment) {
            return Err(Failure::invalid(format!(
                "instance_name {name:?} has the reserved segment {segment:?}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_and_empty_segments_are_refused() {
        for name in ["", "main", "a/b-c/d"] {
            assert!(check(name).is_ok(), "{name:?}");
        }
        for name in ["blobs", "a/uploads", "a//b", "/a", "a/", "compressed-blobs/x"] {
            assert!(check(name).is_err(), "{name:?}");
        }
    }
}
