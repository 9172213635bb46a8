//! The smaller formats against their peers: qemu-img and qemu-io, other readers, and the sample corpus.

#![expect(clippy::unwrap_used, reason = "tests")]

mod bochs;
mod bundle;
mod cloop;
mod cow;
mod dmg;
mod iso;
mod parallels;
mod paused;
mod qcow;
mod qed;
mod support;
mod vvfat;
