//! ByteStream's resource names and instances' names, as the client writes them.

use longshore_cas_store::digest::Digest;
use uuid::Uuid;

/// How a blob travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Zstd,
}

/// The name that a blob is read by.
pub(super) fn read(instance_name: &str, encoding: Encoding, digest: &Digest) -> String {
    format!("{}{}", prefix(instance_name), blob(encoding, digest))
}

/// A new name that a blob is written by.
pub(super) fn write(instance_name: &str, encoding: Encoding, digest: &Digest) -> String {
    format!("{}uploads/{}/{}", prefix(instance_name), Uuid::new_v4(), blob(encoding, digest))
}

/// The name of the instance called `suffix` below another one.
pub(super) fn below(instance_name: &str, suffix: &str) -> String {
    format!("{}{suffix}", prefix(instance_name))
}

fn prefix(instance_name: &str) -> String {
    if instance_name.is_empty() { String::new() } else { format!("{instance_name}/") }
}

fn blob(encoding: Encoding, digest: &Digest) -> String {
    let kind = match encoding {
        Encoding::Identity => "blobs",
        Encoding::Zstd => "compressed-blobs/zstd",
    };
    let function = digest.function();
    // Servers of before REAPI 2.5 take the name of a function for the hash.
    if function.is_named_in_resources() {
        format!("{kind}/{function}/{digest}")
    } else {
        format!("{kind}/{digest}")
    }
}

#[cfg(test)]
mod tests {
    use longshore_cas_store::digest::DigestFunction;

    use super::*;

    #[test]
    fn names_are_those_of_the_specification() {
        let digest = DigestFunction::Sha256.digest(b"x");
        let hash = digest.hash_hex();
        assert_eq!(read("", Encoding::Identity, &digest), format!("blobs/{hash}/1"));
        assert_eq!(read("a/b", Encoding::Zstd, &digest), format!("a/b/compressed-blobs/zstd/{hash}/1"));
        let blake3 = DigestFunction::Blake3.digest(b"x");
        assert_eq!(read("", Encoding::Identity, &blake3), format!("blobs/blake3/{}/1", blake3.hash_hex()));
        let name = write("main", Encoding::Identity, &digest);
        let parts: Vec<_> = name.split('/').collect();
        assert_eq!((parts[0], parts[1], &parts[3..]), ("main", "uploads", &["blobs", &hash, "1"][..]));
        assert_eq!(Uuid::parse_str(parts[2]).unwrap().get_version_num(), 4);
        assert_ne!(name, write("main", Encoding::Identity, &digest), "each write has an id of its own");
    }
}
