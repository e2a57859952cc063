//! The test kit: a store full of trees, a running `longshore`, and clients for it.
