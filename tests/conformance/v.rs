//! What each version of REAPI brought.
