//! VMDK against qemu-img, qemu-io and the corpus.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod corpus;
mod create;
mod esx;
mod overlay;
mod peer;
mod support;
