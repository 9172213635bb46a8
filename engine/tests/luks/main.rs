//! LUKS and the older encryption of qcow against qemu-img, qemu-io and cryptsetup, the corpus, and damaged headers.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod corpus;
mod crash;
mod create;
mod hostile;
mod keys;
mod luks2;
mod luks2_hostile;
mod luks2_slots;
mod mutations;
mod peers;
mod support;
