//! Exit codes, standard output and error.
