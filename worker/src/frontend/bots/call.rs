//! What goes beside the messages of a call: progress in its headers, digests in the trailers of its reply; and what
//! its failure means.

use std::time::Duration;

use longshore_proto::{Message as _, reapi};
use tonic::metadata::{BinaryMetadataKey, MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// What a lease's progress is reported under, with its id between the two.
const PROGRESS_HEADER: (&str, &str) = ("partial-execution-metadata-", "-bin");
/// Progress in one call, encoded, in bytes: servers take 8 KiB of headers in all.
const PROGRESS_BYTES_MAX: usize = 4 << 10;
/// What the server says of leases beside the reply.
const LEASES_TRAILER: &str = "executeoperationmetadata-bin";
/// How much sooner than at its deadline a call may end and still be late: clocks differ.
const LATE_SLACK: Duration = Duration::from_millis(100);

/// What a failure means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// There was no answer in time.
    Late,
    /// The server does not know the session.
    SessionLost,
    /// Another try may do.
    Passing,
}

/// What the failure of a call means that took so long, and might have taken `time_max`.
pub(super) fn fault(status: &Status, is_first: bool, took: Duration, time_max: Duration) -> Fault {
    let is_late = took + LATE_SLACK >= time_max;
    match status.code() {
        // A deadline that passes on this side is called cancelled.
        Code::DeadlineExceeded | Code::Cancelled if is_late => Fault::Late,
        Code::InvalidArgument | Code::NotFound | Code::DataLoss if !is_first => Fault::SessionLost,
        _ => Fault::Passing,
    }
}

/// Adds what there is to say of the leases with these ids, as far as it fits, and says of how many: the rest is for
/// the next call.
pub(super) fn add_progress(
    headers: &mut MetadataMap,
    progress: impl IntoIterator<Item = (String, reapi::ExecutedActionMetadata)>,
) -> usize {
    let mut left_bytes = PROGRESS_BYTES_MAX;
    let mut dealt_with = 0;
    for (id, metadata) in progress {
        // The scheduler knows who asked.
        let metadata = reapi::ExecutedActionMetadata { auxiliary_metadata: Vec::new(), ..metadata };
        let (before, after) = PROGRESS_HEADER;
        // An id that makes no header cannot have been meant to.
        let Ok(key) = BinaryMetadataKey::from_bytes(format!("{before}{id}{after}").as_bytes()) else {
            dealt_with += 1;
            continue;
        };
        let value = metadata.encode_to_vec();
        let encoded_bytes = key.as_str().len() + value.len().div_ceil(3) * 4;
        let Some(left) = left_bytes.checked_sub(encoded_bytes) else { break };
        left_bytes = left;
        dealt_with += 1;
        headers.insert_bin(key, MetadataValue::from_bytes(&value));
    }
    dealt_with
}

/// The digests of the actions that the trailers of a reply speak of.
pub(super) fn digests_in(trailers: &MetadataMap) -> Vec<reapi::Digest> {
    let values = trailers.get_all_bin(LEASES_TRAILER).iter().filter_map(|value| value.to_bytes().ok());
    let messages = values.filter_map(|bytes| reapi::ExecuteOperationMetadata::decode(bytes).ok());
    messages.filter_map(|metadata| metadata.action_digest).collect()
}

#[cfg(test)]
mod tests {
    use longshore_proto::time;

    use super::*;

    #[test]
    fn what_a_failure_means_depends_on_the_call() {
        let time_max = Duration::from_secs(4);
        let cases = [
            (Code::Unavailable, false, 0, Fault::Passing),
            (Code::Internal, false, 0, Fault::Passing),
            (Code::DeadlineExceeded, false, 4, Fault::Late),
            (Code::Cancelled, false, 4, Fault::Late),
            // At once, and again and again: not without pauses.
            (Code::DeadlineExceeded, false, 0, Fault::Passing),
            (Code::Cancelled, false, 0, Fault::Passing),
            (Code::InvalidArgument, false, 0, Fault::SessionLost),
            (Code::NotFound, false, 0, Fault::SessionLost),
            (Code::DataLoss, false, 4, Fault::SessionLost),
            // There is no session to be lost.
            (Code::InvalidArgument, true, 0, Fault::Passing),
            (Code::NotFound, true, 0, Fault::Passing),
        ];
        for (code, is_first, took_s, wanted) in cases {
            let found = fault(&Status::new(code, ""), is_first, Duration::from_secs(took_s), time_max);
            assert_eq!(found, wanted, "{code:?} after {took_s} s");
        }
    }

    // RWB-10: what the server names beside its leases is how an Action's digest is known.
    #[test]
    fn digests_are_read_and_what_is_none_is_passed_over() {
        let digests = ["a", "b"].map(|hash| reapi::Digest { hash: hash.to_owned(), size_bytes: 1 });
        let mut trailers = MetadataMap::new();
        for digest in &digests {
            let named =
                reapi::ExecuteOperationMetadata { action_digest: Some(digest.clone()), ..Default::default() };
            trailers.append_bin(LEASES_TRAILER, MetadataValue::from_bytes(&named.encode_to_vec()));
        }
        trailers.append_bin(LEASES_TRAILER, MetadataValue::from_bytes(b"\xff"));
        trailers.append_bin(LEASES_TRAILER, MetadataValue::from_bytes(b""));
        assert_eq!(digests_in(&trailers), digests);
    }

    // Servers refuse a call whose headers are too large: a full worker must not stop being heard.
    #[test]
    fn progress_is_bounded() {
        let at = Some(time::timestamp(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30)));
        let metadata = reapi::ExecutedActionMetadata {
            worker: "worker".to_owned(),
            input_fetch_start_timestamp: at,
            ..Default::default()
        };
        let mut headers = MetadataMap::new();
        let leases = (0..1000).map(|id| (format!("{id:036}"), metadata.clone()));
        assert_eq!(add_progress(&mut headers, leases), headers.len());
        assert!((10..100).contains(&headers.len()), "{}", headers.len());
        let header = headers.get_bin(format!("partial-execution-metadata-{:036}-bin", 0)).unwrap();
        let read = reapi::ExecutedActionMetadata::decode(header.to_bytes().unwrap()).unwrap();
        assert_eq!(read, metadata);
    }

    #[test]
    fn an_id_that_makes_no_header_is_passed_over() {
        let mut headers = MetadataMap::new();
        let ids = ["a b\n", "c"].map(|id| (id.to_owned(), reapi::ExecutedActionMetadata::default()));
        assert_eq!((add_progress(&mut headers, ids), headers.len()), (2, 1));
    }
}
