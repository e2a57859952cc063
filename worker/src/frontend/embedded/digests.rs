//! The digests of a request, and the one digest function that they share.

use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::reapi;

use crate::status::Failure;

/// The function of a request: the one it names, else the one that the first hash's length implies.
pub(super) fn function(named: i32, first: Option<&reapi::Digest>) -> Result<DigestFunction, Failure> {
    if named != reapi::digest_function::Value::Unknown as i32 {
        return DigestFunction::from_wire(named)
            .ok_or_else(|| Failure::invalid(format!("digest_function {named} is not supported")));
    }
    let Some(first) = first else { return Ok(DigestFunction::Sha256) };
    DigestFunction::implied_by(first.hash.len()).ok_or_else(|| {
        Failure::invalid(format!("digest.hash has {} characters, which no function gives", first.hash.len()))
    })
}

/// The one digest of a request.
pub(super) fn one(named: i32, digest: Option<&reapi::Digest>, field: &str) -> Result<Digest, Failure> {
    let function = function(named, digest)?;
    Digest::from_wire(function, digest).map_err(|error| Failure::invalid(format!("{field}: {error}")))
}

/// Every digest of a request, all of one function.
pub(super) fn all(named: i32, digests: &[reapi::Digest], field: &str) -> Result<Vec<Digest>, Failure> {
    let function = function(named, digests.first())?;
    let parse = |(index, digest)| {
        Digest::from_wire(function, Some(digest))
            .map_err(|error| Failure::invalid(format!("{field}[{index}]: {error}")))
    };
    digests.iter().enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(function: DigestFunction) -> reapi::Digest {
        function.digest(b"x").to_wire()
    }

    #[test]
    fn a_length_implies_only_the_old_functions() {
        let implied = |of: DigestFunction| function(0, Some(&wire(of))).unwrap();
        assert_eq!(implied(DigestFunction::Sha512), DigestFunction::Sha512);
        assert_eq!(implied(DigestFunction::Blake3), DigestFunction::Sha256);
        assert_eq!(function(0, None).unwrap(), DigestFunction::Sha256);
    }

    #[test]
    fn functions_do_not_mix() {
        let mixed = [wire(DigestFunction::Sha256), wire(DigestFunction::Sha1)];
        assert!(all(0, &mixed, "blob_digests").is_err());
        let md5 = reapi::digest_function::Value::Md5 as i32;
        assert!(all(md5, &mixed[..1], "blob_digests").is_err());
    }
}
