//! Work cut off by a fault at each of its changes in turn.

use std::fmt;
use std::sync::Arc;

use crate::StorageRef;
use crate::storage::{Fault, FaultyStorage};

/// A power cut after whole changes, and one in the middle of a write.
pub(in crate::formats) const CUTS: [Fault; 2] = [Fault::Freeze, Fault::Tear];

/// Which change the fault came at.
#[derive(Clone, Copy)]
pub(in crate::formats) struct Crash {
    fault: Fault,
    change: u64,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at change {}", self.fault, self.change)
    }
}

/// Does `work`, which opens the file itself, on these bytes with each fault at each change in turn, and once with none; `judge` is given
/// the bytes that are left.
pub(in crate::formats) fn at_every_change(
    bytes: &[u8],
    faults: &[Fault],
    work: impl Fn(StorageRef),
    judge: impl Fn(Vec<u8>, Crash),
) {
    let full = Arc::new(FaultyStorage::new(bytes.to_vec()));
    work(full.clone());
    for change in 0..=full.changes() {
        for fault in faults.iter().copied() {
            let storage = Arc::new(FaultyStorage::new(bytes.to_vec()));
            storage.plan(change, fault);
            work(storage.clone());
            judge(storage.contents(), Crash { fault, change });
        }
    }
}
