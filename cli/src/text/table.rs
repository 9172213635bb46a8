//! The table of internal snapshots.

use std::fmt::Write as _;

use vdisk_engine::image::SnapshotInfo;

use super::{date, size};

/// The snapshots under a heading, each line after `indent`.
pub fn snapshots(list: &[SnapshotInfo], indent: &str) -> String {
    let mut out = format!("{indent}Snapshot list:\n{indent}");
    out.push_str("ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT\n");
    for s in list {
        let icount = s.icount.map(|n| n.to_string()).unwrap_or_default();
        let _ = writeln!(
            out,
            "{indent}{} {} {:>8} {:>19} {:>15} {:>10}",
            padded(&s.id, 7),
            padded(&s.name, 16),
            size::human(s.vm_state_size),
            date::local(s.date_sec),
            date::clock(s.vm_clock_nsec),
            icount,
        );
    }
    out
}

/// Filled up to so many bytes, not characters: as C's `printf` does it.
fn padded(text: &str, bytes: usize) -> String {
    format!("{text}{}", " ".repeat(bytes.saturating_sub(text.len())))
}
