//! LUKS against qemu-img, qemu-io and cryptsetup, the corpus, and damaged headers.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod corpus;
mod crash;
mod hostile;
mod keys;
mod peers;
mod support;
