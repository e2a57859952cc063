//! The only place where an error becomes a `google.rpc.Status`.
