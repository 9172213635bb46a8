//! Power cuts and failing disks, for every verb that changes an image and every format that can be written.
//!
//! A scenario runs once on storages that log every change. From the log, states are built that a power cut could leave: everything before
//! the last flush, and of what came after it all, nothing, all but one, a random part, or a torn last write. Each state is opened, read,
//! checked, and compared with what a model allows. Then the scenario runs again with one change failing.
//!
//! `VDISK_CRASH_STATES` sets the number of states of each scenario (40 without it), `VDISK_SEED` which are chosen.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod commits;
mod faults;
mod formats;
mod lab;
mod model;
mod qcow2;
mod states;
