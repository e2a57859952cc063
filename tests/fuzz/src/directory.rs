//! `Directory` messages: what is accepted can be built, and says what the message says.

use std::collections::BTreeSet;

use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_cas_store::name::{NAME_LEN_MAX, PATH_LEN_MAX};
use longshore_cas_store::tree::{Decoded, NodeProperties, decode};
use longshore_proto::{Message as _, reapi};

/// Checks one input.
pub fn check(data: &[u8]) {
    let digest = DigestFunction::Sha256.digest(data);
    let Ok(decoded) = decode(digest, data) else { return };
    let wire = reapi::Directory::decode(data).expect("what is accepted is a message");
    says_the_same(&decoded, &wire);
    can_be_built(&decoded, data.len());

    // However a message was encoded, and in whatever order its lists are, the directory is the same.
    let again = decode(digest, &wire.encode_to_vec()).expect("the canonical encoding is accepted");
    assert_eq!(nodes(&again), nodes(&decoded));
    let mut sorted = wire;
    sorted.files.sort_by(|a, b| a.name.cmp(&b.name));
    sorted.directories.sort_by(|a, b| a.name.cmp(&b.name));
    sorted.symlinks.sort_by(|a, b| a.name.cmp(&b.name));
    let sorted = decode(digest, &sorted.encode_to_vec()).expect("the canonical order is accepted");
    assert_eq!(nodes(&sorted), nodes(&decoded));
}

/// Each node as a text, whatever the order.
fn nodes(decoded: &Decoded) -> BTreeSet<String> {
    let files = decoded.files.iter().map(|file| format!("{file:?}"));
    let directories = decoded.directories.iter().map(|child| format!("{child:?}"));
    let symlinks = decoded.symlinks.iter().map(|link| format!("{link:?}"));
    files.chain(directories).chain(symlinks).collect()
}

/// Nothing is left out, changed or added.
fn says_the_same(decoded: &Decoded, wire: &reapi::Directory) {
    assert_eq!(decoded.files.len(), wire.files.len());
    for (file, node) in decoded.files.iter().zip(&wire.files) {
        assert_eq!(file.name.as_str(), node.name);
        assert_eq!(Some(file.key.digest.to_wire()), node.digest);
        assert_eq!(file.key.executable, node.is_executable);
    }
    assert_eq!(decoded.directories.len(), wire.directories.len());
    for (child, node) in decoded.directories.iter().zip(&wire.directories) {
        assert_eq!(child.name.as_str(), node.name);
        assert_eq!(Some(child.digest.to_wire()), node.digest);
    }
    assert_eq!(decoded.symlinks.len(), wire.symlinks.len());
    for (link, node) in decoded.symlinks.iter().zip(&wire.symlinks) {
        assert_eq!(link.name.as_str(), node.name);
        assert_eq!(&*link.target, node.target);
    }
}

/// Each name is an entry of its own, and nothing asks for rights that no input may have.
fn can_be_built(decoded: &Decoded, message_bytes: usize) {
    let files = decoded.files.iter().map(|file| &file.name);
    let directories = decoded.directories.iter().map(|child| &child.name);
    let symlinks = decoded.symlinks.iter().map(|link| &link.name);
    let names: Vec<_> = files.chain(directories).chain(symlinks).map(|name| name.as_str()).collect();
    for name in &names {
        assert!(!["", ".", ".."].contains(name), "{name:?}");
        assert!(!name.contains(['/', '\0']) && name.len() <= NAME_LEN_MAX, "{name:?}");
    }
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "a name is used twice");
    assert!(names.len() <= message_bytes, "more nodes than bytes");
    for link in &decoded.symlinks {
        assert!(!link.target.is_empty() && !link.target.contains('\0') && link.target.len() <= PATH_LEN_MAX);
    }
    let digests = decoded.files.iter().map(|file| file.key.digest);
    for digest in digests.chain(decoded.directories.iter().map(|child| child.digest)) {
        let parsed = Digest::from_wire(digest.function(), Some(&digest.to_wire()));
        assert_eq!(parsed.as_ref(), Ok(&digest));
    }
    let own = std::iter::once(&decoded.properties);
    let of_files = decoded.files.iter().map(|file| &file.properties);
    let of_links = decoded.symlinks.iter().map(|link| &link.properties);
    own.chain(of_files).chain(of_links).for_each(grants_nothing);
}

fn grants_nothing(properties: &NodeProperties) {
    assert!(properties.unix_mode.is_none_or(|mode| mode & !0o1777 == 0), "{properties:?}");
}
