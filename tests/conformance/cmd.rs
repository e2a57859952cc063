//! Commands: environment, arguments, working directory.
