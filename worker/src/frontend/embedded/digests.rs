//! Digests as requests carry them: which function they are by, and what is wrong with them.
//!
//! All digests of one request are by one function: the one it names, or the one that the lengths of its hashes
//! imply (REAPI, the `digest_function` fields).

use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::reapi;

use crate::status::Failure;

/// The function of a request whose field `digest_function` is `value` and that carries `digests`.
pub(super) fn function_of<'a>(
    value: i32,
    digests: impl IntoIterator<Item = &'a reapi::Digest>,
) -> Result<DigestFunction, Failure> {
    if value != reapi::digest_function::Value::Unknown as i32 {
        return DigestFunction::from_wire(value).ok_or_else(|| {
            let name = reapi::digest_function::Value::try_from(value)
                .map_or_else(|_| value.to_string(), |value| value.as_str_name().to_owned());
            Failure::invalid(format!("digest_function: {name} is not offered"))
        });
    }
    let mut implied = digests.into_iter().filter_map(|wire| DigestFunction::implied_by(wire.hash.len()));
    // Where no length implies anything the digests are malformed, as each of them will be told.
    let Some(function) = implied.next() else { return Ok(DigestFunction::Sha256) };
    match implied.find(|other| *other != function) {
        None => Ok(function),
        Some(other) => Err(Failure::invalid(format!(
            "digest_function: is not set, and the request has digests by {function} and by {other}"
        ))),
    }
}

/// Parses the digest in `field`.
pub(super) fn digest(
    function: DigestFunction,
    field: &str,
    wire: Option<&reapi::Digest>,
) -> Result<Digest, Failure> {
    Digest::from_wire(function, wire).map_err(|error| Failure::invalid(format!("{field}: {error}")))
}

/// The one digest of a request, in `field`.
pub(super) fn one(named: i32, wire: Option<&reapi::Digest>, field: &str) -> Result<Digest, Failure> {
    digest(function_of(named, wire)?, field, wire)
}

/// Every digest of a request, the list in `field`.
pub(super) fn all(named: i32, wire: &[reapi::Digest], field: &str) -> Result<Vec<Digest>, Failure> {
    let function = function_of(named, wire)?;
    let parse = |(index, wire)| digest(function, &format!("{field}[{index}]"), Some(wire));
    wire.iter().enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(function: DigestFunction) -> reapi::Digest {
        function.digest(b"x").to_wire()
    }

    #[test]
    fn a_function_is_named_or_implied_by_the_lengths() {
        for function in DigestFunction::ALL {
            let named = function_of(function.to_wire() as i32, &[wire(function)]).unwrap();
            assert_eq!(named, function);
            if !function.is_named_in_resources() {
                assert_eq!(function_of(0, &[wire(function)]).unwrap(), function);
            }
        }
        assert_eq!(function_of(0, &[]).unwrap(), DigestFunction::Sha256);
        assert_eq!(function_of(0, &[wire(DigestFunction::Blake3)]).unwrap(), DigestFunction::Sha256);
    }

    // What is not announced must not be taken for something that is.
    #[test]
    fn functions_that_are_not_offered_are_refused_by_name() {
        let md5 = reapi::digest_function::Value::Md5 as i32;
        let error = function_of(md5, &[]).unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        assert!(error.message().contains("MD5"), "{}", error.message());
        assert!(function_of(4711, &[]).unwrap_err().message().contains("4711"));
    }

    #[test]
    fn a_mixture_is_refused() {
        let mixture = [wire(DigestFunction::Sha256), wire(DigestFunction::Sha1)];
        assert!(function_of(0, &mixture).is_err());
        let named = DigestFunction::Sha1.to_wire() as i32;
        assert!(all(named, &mixture, "blob_digests").unwrap_err().message().starts_with("blob_digests[0]"));
    }

    #[test]
    fn an_error_names_the_field_and_the_value() {
        let error = one(0, None, "action_digest").unwrap_err();
        assert!(error.message().starts_with("action_digest: "), "{}", error.message());
        let bad = reapi::Digest { hash: "beef".to_owned(), size_bytes: 1 };
        let error = one(0, Some(&bad), "root_digest").unwrap_err();
        assert!(error.message().contains("beef"), "{}", error.message());
    }
}
