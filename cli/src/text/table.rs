//! The table of internal snapshots.

use std::fmt::Write as _;

use vdisk_engine::image::SnapshotInfo;

use super::{date, size};

/// The snapshots under a heading, each line after `indent`.
pub fn snapshots(list: &[SnapshotInfo], indent: &str) -> String {
    let mut out = format!("{indent}Snapshot list:\n{indent}");
    out.push_str("ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT\n");
    for s in list {
        let icount = s.icount.map_or_else(|| "--".to_owned(), |n| n.to_string());
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

#[cfg(test)]
mod tests {
    use super::*;

    /// In all of qemu-img's columns.
    #[test]
    fn a_snapshot_without_an_instruction_count_says_so() {
        let of = |icount| SnapshotInfo {
            id: "1".into(),
            name: "s".into(),
            icount,
            ..SnapshotInfo::default()
        };
        let text = snapshots(&[of(None), of(Some(0)), of(Some(7))], "");
        let last: Vec<&str> = text.lines().skip(2).map(|line| &line[line.len() - 11..]).collect();
        assert_eq!(last, ["         --", "          0", "          7"]);
    }
}
