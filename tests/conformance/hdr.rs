//! The headers of requests.
