//! What `check` says about a volume.

use crate::crypto::luks::{LuksHeader, VolumeLayout};
use crate::image::CheckReport;
use crate::{Result, StorageRef};

/// The header was checked when it was read; what is left are its key slots and the length of the file.
pub(super) fn check(header: &LuksHeader, layout: &VolumeLayout, file: &StorageRef) -> Result<CheckReport> {
    let mut report = CheckReport {
        image_end_offset: Some(file.len()?),
        ..CheckReport::default()
    };
    if let Some(damage) = header.damaged_copy() {
        report.corruptions += 1;
        report.messages.push(damage.to_owned());
    }
    if !header.info().slots.iter().any(|slot| slot.holds_key) {
        report.corruptions += 1;
        report
            .messages
            .push("no key slot holds a key of the data that can be read here".to_owned());
    }
    // A file counts in sectors of 512 bytes: what is missing of the last one reads as zeroes.
    let data = file.len()?.saturating_sub(layout.payload_offset).div_ceil(512);
    let ragged = data % u64::from(layout.sector_size / 512) * 512;
    if ragged != 0 {
        report.corruptions += 1;
        report.messages.push(format!(
            "the file ends {ragged} bytes into a sector, which cannot be read"
        ));
    }
    Ok(report)
}
