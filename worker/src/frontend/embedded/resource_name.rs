//! Resource names of ByteStream: text from outside to what is to be read or written.

use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::reapi;

use super::digests;
use crate::frontend::instance;
use crate::status::Failure;

/// The longest resource name that is looked at, in bytes.
const NAME_BYTES_MAX: usize = 4096;

/// What a resource name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceName {
    /// The blob.
    pub digest: Digest,
    /// In which form it travels.
    pub form: Form,
}

/// The form of a blob on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Its bytes.
    Plain,
    /// zstd frames (`compressed-blobs/zstd`).
    Zstd,
}

/// Parses `[{instance}/]blobs/[{function}/]{hash}/{size}`, or `compressed-blobs/{compressor}` for `blobs`.
pub fn parse_read(name: &str) -> Result<ResourceName, Failure> {
    let segments = segments(name)?;
    let start = keyword(name, &segments, &["blobs", "compressed-blobs"])?;
    let (resource, rest) = blob(name, &segments[start..])?;
    if rest.is_empty() { Ok(resource) } else { Err(wrong(name, "has segments behind the size")) }
}

/// Parses `[{instance}/]uploads/{uuid}/blobs/[{function}/]{hash}/{size}[/{metadata}]`, or
/// `compressed-blobs/{compressor}` for `blobs`.
pub fn parse_write(name: &str) -> Result<ResourceName, Failure> {
    let segments = segments(name)?;
    let start = keyword(name, &segments, &["uploads"])?;
    match segments[start..] {
        ["uploads", uuid, ref rest @ ..] if !uuid.is_empty() => {
            blob(name, rest).map(|(resource, _)| resource)
        }
        _ => Err(wrong(name, "has no upload id")),
    }
}

fn segments(name: &str) -> Result<Vec<&str>, Failure> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Failure::invalid(format!("resource_name is {} bytes long", name.len())));
    }
    Ok(name.split('/').collect())
}

/// Where the instance name ends.
fn keyword(name: &str, segments: &[&str], keywords: &[&str]) -> Result<usize, Failure> {
    let start = segments.iter().position(|segment| keywords.contains(segment));
    let start = start.ok_or_else(|| wrong(name, &format!("has no segment {}", keywords.join(" or "))))?;
    let instance_name = segments[..start].join("/");
    if start > 0 && instance_name.is_empty() {
        return Err(wrong(name, "begins with a slash"));
    }
    instance::check_in("resource_name", &instance_name)?;
    Ok(start)
}

fn blob<'a>(name: &str, segments: &'a [&'a str]) -> Result<(ResourceName, &'a [&'a str]), Failure> {
    let (form, rest) = match segments {
        ["blobs", rest @ ..] => (Form::Plain, rest),
        ["compressed-blobs", "zstd", rest @ ..] => (Form::Zstd, rest),
        ["compressed-blobs", "identity", ..] => {
            return Err(wrong(name, "has the compressor identity: say blobs"));
        }
        ["compressed-blobs", ..] => return Err(wrong(name, "has a compressor that is not offered")),
        _ => return Err(wrong(name, "has no segment blobs or compressed-blobs")),
    };
    let named = rest.first().and_then(|segment| DigestFunction::from_name(segment));
    let (function, rest) = match named {
        Some(function) if function.is_named_in_resources() => (Some(function), &rest[1..]),
        Some(function) => return Err(wrong(name, &format!("must not name the function {function}"))),
        None => (None, rest),
    };
    let [hash, size, rest @ ..] = rest else { return Err(wrong(name, "has no hash and size")) };
    let is_number = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_digit());
    let size_bytes =
        size.parse().ok().filter(|_| is_number).ok_or_else(|| wrong(name, "has no valid size"))?;
    let wire = reapi::Digest { hash: (*hash).to_owned(), size_bytes };
    let named = function.map_or(0, |function| function.to_wire() as i32);
    let digest = digests::one(named, Some(&wire), "resource_name")?;
    Ok((ResourceName { digest, form }, rest))
}

fn wrong(name: &str, reason: &str) -> Failure {
    Failure::invalid(format!("resource_name {name:?} {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn reads_and_writes_are_understood() {
        let digest = Digest::parse(DigestFunction::Sha256, HASH, 12).unwrap();
        for name in ["blobs/{}/12", "main/blobs/{}/12", "a/b/blobs/{}/12"] {
            assert_eq!(parse_read(&name.replace("{}", HASH)).unwrap().digest, digest, "{name}");
        }
        for name in ["uploads/id/blobs/{}/12", "main/uploads/id/blobs/{}/12/meta/data"] {
            assert_eq!(parse_write(&name.replace("{}", HASH)).unwrap().digest, digest, "{name}");
        }
        let blake3 = parse_read(&format!("blobs/blake3/{HASH}/12")).unwrap().digest;
        assert_eq!(blake3.function(), DigestFunction::Blake3);
        let zstd = parse_read(&format!("a/compressed-blobs/zstd/blake3/{HASH}/12")).unwrap();
        assert_eq!((zstd.digest, zstd.form), (blake3, Form::Zstd));
        let zstd = parse_write(&format!("uploads/id/compressed-blobs/zstd/{HASH}/12/meta")).unwrap();
        assert_eq!((zstd.digest, zstd.form), (digest, Form::Zstd));
    }

    #[test]
    fn anything_else_is_an_invalid_argument() {
        for name in [
            "",
            "/",
            "blobs",
            "blobs/{}",
            "/blobs/{}/12",
            "blobs/{}/-1",
            "blobs/{}/+1",
            "blobs/{}/x",
            "blobs/{}/99999999999999999999",
            "blobs/sha256/{}/12",
            "blobs/{}/12/more",
            "blobs/..%2f/12",
            "uploads/id/blobs/{}/12",
            "a//blobs/{}/12",
            "actions/blobs/{}/12",
            "compressed-blobs/{}/12",
            "compressed-blobs/identity/{}/12",
            "compressed-blobs/deflate/{}/12",
            "compressed-blobs/ZSTD/{}/12",
            "compressed-blobs/zstd/{}/12/more",
            "blobs/zstd/{}/12",
        ] {
            assert!(parse_read(&name.replace("{}", HASH)).is_err(), "{name}");
        }
        for name in ["blobs/{}/12", "uploads/blobs/{}/12", "uploads//blobs/{}/12", "uploads/id/{}/12"] {
            assert!(parse_write(&name.replace("{}", HASH)).is_err(), "{name}");
        }
        assert!(parse_read(&"a/".repeat(1 << 20)).is_err());
    }
}
