//! Input files and how they are laid out.
