//! LUKS1 (LUKS On-Disk Format Specification 1.2.3).

mod create;
mod header;
mod layout;
mod slots;

pub(crate) use create::{create, plan};
pub(crate) use header::Header;
pub(crate) use layout::{SECTOR, SLOTS, STRIPES, field_of, text_of};

/// Least iterations of a key slot (the specification's recommendation; QEMU's and cryptsetup's bound too).
pub(crate) const MIN_SLOT_ITERATIONS: u32 = 1000;
