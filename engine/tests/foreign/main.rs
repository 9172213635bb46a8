//! Images laid out as other programs lay them out, each built here from the numbers of its specification: what no program at hand writes.
//! Each is read, checked, written and read again; where qemu-img reads the variant as well, it must see the same.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod dmg;
mod qcow2;
mod support;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;
