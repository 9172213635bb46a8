//! VHD and VHDX against qemu-img, qemu-io, libvhdi and the corpus.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod support;
mod vhdx;
mod vhdx_corpus;
mod vhdx_overlays;
mod vpc;
