//! The instance names of requests.

use crate::instance;
use crate::status::Failure;

/// Checks the `instance_name` of a request.
pub(super) fn check(name: &str) -> Result<(), Failure> {
    check_in("instance_name", name)
}

/// Checks the instance name that stands in another field.
pub(super) fn check_in(field: &str, name: &str) -> Result<(), Failure> {
    instance::check(name).map_err(|reason| Failure::invalid(reason).within(field))
}
