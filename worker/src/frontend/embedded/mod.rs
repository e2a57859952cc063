//! The standalone mode: a REAPI server whose only worker is this process.
