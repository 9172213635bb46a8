//! Operations on images: one file an operation, each a function over the traits.
