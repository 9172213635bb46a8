//! Where metadata is: nothing is written there that is taken for guest data.

use super::metadata::Metadata;
use crate::{Error, Result};

/// Ranges of the file that do not overlap, in its order: first byte and end.
#[derive(Debug, Default)]
pub(super) struct Reserved(Vec<(u64, u64)>);

impl Reserved {
    pub fn new(metadata: &Metadata) -> Self {
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (from, to) in metadata.ranges() {
            match merged.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        Self(merged)
    }

    /// Refuses a range for guest data that lies over one of these.
    ///
    /// # Errors
    /// `Corrupt` with both places.
    pub fn refuse(&self, at: u64, len: u64) -> Result<()> {
        let behind = self.0.partition_point(|(_, end)| *end <= at);
        match self.0.get(behind) {
            Some((from, _)) if *from < at.saturating_add(len) => Err(Error::corrupt(format!(
                "guest data at {at:#x} would lie over grain tables or other metadata at {from:#x}; check can repair it"
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses grains of so many bytes at these sorted places where one lies over one of these.
    ///
    /// # Errors
    /// `Corrupt` with both places.
    pub fn refuse_grains(&self, sorted: &[u64], grain: u64) -> Result<()> {
        self.0.iter().try_for_each(|(from, to)| {
            let behind = sorted.partition_point(|at| at.saturating_add(grain) <= *from);
            match sorted.get(behind).filter(|at| *at < to) {
                Some(at) => self.refuse(*at, grain),
                None => Ok(()),
            }
        })
    }
}
