//! The last phase: the client can read everything that the result names.

use longshore_proto::reapi;

use super::journal::Leftovers;
use crate::status::Failure;

pub(super) struct Uploaded {
    /// The result, without exit code and metadata, which the journal has.
    pub(super) result: reapi::ActionResult,
    /// Why the action failed although it has a result.
    pub(super) failure: Option<Failure>,
    pub(super) leftovers: Leftovers,
}
