//! Images made to break a reader, for every format: each number of every header and table set to values that hurt, files cut anywhere,
//! bytes changed at random. Through info, check, map, read, convert and writing each gives a typed error or a clean answer, quickly, in
//! little memory, and opens no second file.
//!
//! [`cases`] is the catalogue by number; [`kept`] answers what the fuzzer (`fuzz/`) found.
//!
//! `VDISK_MUTATIONS` sets the number of random changes of each format (30 without it), `VDISK_SEED` which.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

use std::sync::{Mutex, MutexGuard, PoisonError};

mod cases;
mod corpus;
mod exercise;
mod fields;
mod give_back;
mod inputs;
mod kept;
mod names;
mod samples;
mod seeds;
mod sweeps;

/// What a test takes of memory is what the process grows by: one after the other.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
