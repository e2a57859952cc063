//! Resource names of ByteStream: what is understood is a digest, and written down again it is understood the same.

use longshore_cas_store::digest::Digest;
use longshore_worker::frontend::embedded::{Form, ResourceName, parse_read, parse_write};
use longshore_worker::status::Failure;

/// The longest message about a name: a client must be able to receive it.
const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// Checks one input.
pub fn check(data: &[u8]) {
    let Ok(name) = std::str::from_utf8(data) else { return };
    understands(name, parse_read(name), |canonical| parse_read(canonical), "");
    understands(name, parse_write(name), |canonical| parse_write(canonical), "uploads/id/");
}

fn understands(
    name: &str,
    outcome: Result<ResourceName, Failure>,
    parse: impl Fn(&str) -> Result<ResourceName, Failure>,
    prefix: &str,
) {
    let resource = match outcome {
        Ok(resource) => resource,
        Err(failure) => {
            assert!(failure.message().len() <= MESSAGE_BYTES_MAX, "{} bytes", failure.message().len());
            return;
        }
    };
    let ResourceName { digest, form } = &resource;
    // Nothing is understood that the name does not say.
    let parts: Vec<&str> = name.split('/').collect();
    assert!(parts.contains(&digest.hash_hex().as_str()), "{name:?}: {resource:?}");
    assert!(parts.iter().any(|part| part.parse() == Ok(digest.size_bytes())), "{name:?}: {resource:?}");
    assert_eq!(*form == Form::Zstd, is_zstd(&parts), "{name:?}: {resource:?}");
    assert_eq!(Digest::from_wire(digest.function(), Some(&digest.to_wire())).as_ref(), Ok(digest));
    let canonical = format!("{prefix}{}", canonical(&resource));
    assert_eq!(parse(&canonical).as_ref(), Ok(&resource), "{canonical:?}");
    // An instance of any name that may be one changes nothing.
    assert_eq!(parse(&format!("some/instance/{canonical}")).as_ref(), Ok(&resource));
}

fn is_zstd(parts: &[&str]) -> bool {
    let form = parts.iter().find(|part| ["blobs", "compressed-blobs"].contains(part));
    form == Some(&"compressed-blobs")
}

fn canonical(resource: &ResourceName) -> String {
    let ResourceName { digest, form } = resource;
    let form = match form {
        Form::Plain => "blobs",
        Form::Zstd => "compressed-blobs/zstd",
    };
    let function = digest.function();
    let function = if function.is_named_in_resources() { format!("{function}/") } else { String::new() };
    format!("{form}/{function}{}/{}", digest.hash_hex(), digest.size_bytes())
}
