//! Instance names: what is one, whoever says it.

/// The longest name that is taken, in bytes.
const NAME_BYTES_MAX: usize = 1024;

/// Segments that resource names use themselves (REAPI, `instance_name`).
const RESERVED: [&str; 7] =
    ["blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs"];

/// Checks that `name` is an instance's; the empty one is.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Ok(());
    }
    if name.len() > NAME_BYTES_MAX {
        let length = name.len();
        return Err(format!("the instance name has {length} bytes, at most {NAME_BYTES_MAX} are taken"));
    }
    for segment in name.split('/') {
        if segment.is_empty() {
            return Err(format!("{name:?} has an empty segment"));
        }
        if RESERVED.contains(&segment) {
            return Err(format!("{name:?} has the reserved segment {segment:?}"));
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
        assert!(check(&"a".repeat(NAME_BYTES_MAX)).is_ok());
        assert!(check(&"a".repeat(NAME_BYTES_MAX + 1)).is_err());
    }
}
