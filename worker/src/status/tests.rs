use longshore_cas_store::digest::DigestFunction;
use longshore_cas_store::dir::Op;
use longshore_cas_store::tree::MalformedTree;

use super::*;

fn digest(content: &str) -> Digest {
    DigestFunction::Sha256.digest(content.as_bytes())
}

fn subjects(failure: &Failure) -> Vec<String> {
    let status = failure.to_rpc();
    let details: Vec<_> = status.details.iter().filter_map(PreconditionFailure::from_any).collect();
    assert_eq!(details.len(), status.details.len(), "a client retries only if it knows every detail");
    let violations = details.into_iter().flat_map(|detail| detail.violations);
    violations
        .map(|violation| {
            assert_eq!(violation.r#type, "MISSING");
            violation.subject
        })
        .collect()
}

// ERR-03, ERR-04: the subject has no instance name, and names only functions that a hash cannot imply.
#[test]
fn missing_blobs_are_named_as_clients_parse_them() {
    let sha = digest("x");
    let failure = Failure::missing("the Command", &[sha]);
    assert_eq!(failure.code(), Code::FailedPrecondition);
    assert_eq!(subjects(&failure), [format!("blobs/{}/1", sha.hash_hex())]);

    let blake = DigestFunction::Blake3.digest(b"x");
    let subjects = subjects(&Failure::missing("the Command", &[blake]));
    assert_eq!(subjects, [format!("blobs/blake3/{}/1", blake.hash_hex())]);
}

// INP-11: all that is missing is reported, not only what was found first.
#[test]
fn missing_blobs_of_several_parts_are_reported_together() {
    let (a, b) = (digest("a"), digest("b"));
    let both = Failure::missing("the Command", &[a]).and(Failure::missing("the input root", &[b, a]));
    let mut expected = [format!("blobs/{a}"), format!("blobs/{b}")];
    expected.sort();
    assert_eq!(subjects(&both), expected);
}

// A client that uploads and tries again must not be sent round for an action that is wrong anyway.
#[test]
fn a_wrong_action_is_wrong_whatever_is_missing() {
    let wrong = Failure::invalid("wrong");
    let missing = Failure::missing("the input root", &[digest("a")]);
    assert_eq!(wrong.clone().and(missing.clone()), wrong);
    assert_eq!(missing.and(wrong.clone()), wrong);
}

#[test]
fn whose_fault_it_is_decides_the_code() {
    let root = digest("root");
    let path = |errno| PathError { op: Op::Write, path: "x".into(), errno };
    let unavailable = FetchError::Unavailable { origin: "cas".into(), reason: "reset".into() };
    let malformed =
        MalformedTree::Directory { digest: root, field: "files".into(), reason: "is wrong".into() };
    let full = StoreError::NoSpace { needed_bytes: 1, reason: "full".into() };
    let too_large = StoreError::TooLarge { digest: root, size_bytes_max: 1 };
    let collect = |precondition| CollectError::Undeclarable {
        path: "out".into(),
        reason: "is a socket".into(),
        precondition,
    };
    let cases: [(Failure, Code); 16] = [
        (TreeError::Malformed(malformed).into(), Code::InvalidArgument),
        (TreeError::Fetch { root, reason: unavailable }.into(), Code::Unavailable),
        (TreeError::Fetch { root, reason: FetchError::Missing }.into(), Code::FailedPrecondition),
        (TreeError::Store { root, reason: full.clone() }.into(), Code::ResourceExhausted),
        (TreeError::Aborted { root }.into(), Code::Internal),
        (too_large.clone().into(), Code::InvalidArgument),
        (Failure::of_store("an output", &too_large), Code::ResourceExhausted),
        (StoreError::from(path(Errno::EIO)).into(), Code::Internal),
        (StoreError::from(path(Errno::ENOSPC)).into(), Code::ResourceExhausted),
        (StoreError::NotFound(root).into(), Code::NotFound),
        (MaterializeError::Store(StoreError::NotFound(root)).into(), Code::FailedPrecondition),
        (RunError::TooLong(1 << 30).into(), Code::InvalidArgument),
        (RunError::Start { stage: "fork".into(), errno: Errno::EAGAIN }.into(), Code::Unavailable),
        (RunError::Lost("gone".into()).into(), Code::Unavailable),
        (collect(true).into(), Code::FailedPrecondition),
        (collect(false).into(), Code::InvalidArgument),
    ];
    for (failure, code) in cases {
        assert_eq!(failure.code(), code, "{failure:?}");
    }
    let retry = Failure::from(full).to_rpc().details;
    assert!(RetryInfo::from_any(&retry[0]).is_some_and(|retry| retry.retry_delay.is_some()));
}

// ERR-06: what an ExecuteResponse carries, a failed call carries too.
#[test]
fn a_failed_call_carries_the_same_details() {
    let failure = Failure::missing("the Action", &[digest("x")]);
    let status = failure.to_tonic();
    assert_eq!(rpc::Status::decode(status.details()).unwrap(), failure.to_rpc());
    assert!(Failure::invalid("x").to_tonic().details().is_empty());
}

#[test]
fn a_long_message_is_cut_between_characters() {
    let failure = Failure::invalid("é".repeat(MESSAGE_LEN_MAX));
    assert!(failure.message().len() <= MESSAGE_LEN_MAX + '…'.len_utf8());
    assert!(failure.message().ends_with("é…"));
}

// Ten thousand missing blobs must fit into the message, and those of a call into its headers.
#[test]
fn violations_are_bounded() {
    let digests: Vec<_> =
        (0..100_000_u32).map(|number| DigestFunction::Sha512.digest(&number.to_le_bytes())).collect();
    let failure = Failure::missing("the input root", &digests);
    let status = failure.to_rpc();
    assert!(status.encoded_len() <= VIOLATIONS_BYTES_MAX + MESSAGE_LEN_MAX);
    let violations = PreconditionFailure::from_any(&status.details[0]).unwrap().violations;
    assert!(violations.len() > 10_000, "{}", violations.len());
    let in_headers = failure.to_tonic();
    assert!(in_headers.details().len() < HEADER_VIOLATIONS_BYTES_MAX + 512);
    let status = rpc::Status::decode(in_headers.details()).unwrap();
    assert!(!PreconditionFailure::from_any(&status.details[0]).unwrap().violations.is_empty());
}
