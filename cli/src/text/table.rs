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
            "{indent}{:<7} {:<16} {:>8} {:>19} {:>15} {:>10}",
            s.id,
            s.name,
            size::human(s.vm_state_size),
            date::local(s.date_sec),
            date::clock(s.vm_clock_nsec),
            icount,
        );
    }
    out
}
