//! What stands at the beginning of a file that is no image of any format: an archive, which is no disk, or a partition table.

/// Bytes that are looked at.
pub(super) const HEAD: usize = 1024;

/// The kinds of archives and of compressed files: name, place and bytes of the magic.
const ARCHIVES: &[(&str, usize, &[u8])] = &[
    ("a gzip file", 0, &[0x1f, 0x8b, 8]),
    ("an xz file", 0, &[0xfd, b'7', b'z', b'X', b'Z', 0]),
    ("a bzip2 file", 4, b"1AY&SY"),
    ("a zstd file", 0, &[0x28, 0xb5, 0x2f, 0xfd]),
    ("an lz4 file", 0, &[4, 0x22, 0x4d, 0x18]),
    ("a zip archive", 0, b"PK\x03\x04"),
    ("a 7z archive", 0, &[b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c]),
    ("a rar archive", 0, b"Rar!\x1a\x07"),
    ("a tar archive (an appliance in an ova file is one)", 257, b"ustar"),
];

/// The archive that a file is.
pub(super) fn archive(head: &[u8]) -> Option<&'static str> {
    let is = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    ARCHIVES
        .iter()
        .find(|(_, at, magic)| is(*at, magic))
        .map(|(name, ..)| *name)
}

const SECTOR: usize = 512;
const TABLE: usize = 446;
const ENTRY: usize = 16;
/// The type of the entry that guards a GUID partition table.
const PROTECTIVE: u8 = 0xee;

/// What is odd about the partition table in the first sector; `None` where there is none, or nothing odd.
pub(super) fn odd_partitions(head: &[u8]) -> Option<&'static str> {
    let sector = head.get(..SECTOR)?;
    if !sector.ends_with(&[0x55, 0xaa]) || is_boot_record(sector) {
        return None;
    }
    let entries: Vec<_> = sector.get(TABLE..TABLE + 4 * ENTRY)?.chunks(ENTRY).collect();
    let flag = |entry: &&[u8]| entry.first().copied().unwrap_or(0);
    let kind = |entry: &&[u8]| entry.get(4).copied().unwrap_or(0);
    if entries.iter().any(|entry| ![0, 0x80].contains(&flag(entry))) {
        return Some("an entry of the partition table has a boot flag that is neither 0 nor 0x80");
    }
    let used = entries.iter().filter(|entry| kind(entry) != 0).count();
    if used > 1 && entries.iter().any(|entry| kind(entry) == PROTECTIVE) {
        return Some("the protective entry of a GUID partition table is not the only one");
    }
    None
}

/// The first sector of a file system of DOS or Windows: code stands where a partition table would.
fn is_boot_record(sector: &[u8]) -> bool {
    let jumps = matches!(sector, [0xeb, _, 0x90, ..] | [0xe9, ..]);
    jumps
        && sector
            .get(11..13)
            .is_some_and(|bytes| matches!(bytes, [0, 2 | 4 | 8 | 16]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_known_by_their_magic() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (head, name) in [
            (&b"\x1f\x8b\x08\x00"[..], "gzip"),
            (b"PK\x03\x04", "zip"),
            (b"BZh91AY&SY", "bzip2"),
            (&tar, "tar"),
        ] {
            assert!(archive(head).is_some_and(|found| found.contains(name)), "{name}");
        }
        assert_eq!(archive(&[0; 1024]), None);
        assert_eq!(archive(b"\x1f"), None);
    }

    #[test]
    fn odd_partition_tables_are_told() {
        let table = |entries: &[(usize, u8, u8)]| {
            let mut sector = vec![0; 512];
            sector[510..].copy_from_slice(&[0x55, 0xaa]);
            for (number, flag, kind) in entries {
                sector[TABLE + number * ENTRY] = *flag;
                sector[TABLE + number * ENTRY + 4] = *kind;
            }
            sector
        };
        assert_eq!(odd_partitions(&table(&[(0, 0x80, 0x83), (1, 0, 0x82)])), None);
        assert_eq!(odd_partitions(&table(&[(0, 0, PROTECTIVE)])), None);
        assert!(odd_partitions(&table(&[(0, 0x7f, 0x83)])).is_some());
        assert!(odd_partitions(&table(&[(0, 0, PROTECTIVE), (1, 0, 0x83)])).is_some());
        let mut fat = table(&[(0, 0x33, 0x83)]);
        fat[..13].copy_from_slice(b"\xeb\x3c\x90mkfs.fat\x00\x02");
        assert_eq!(odd_partitions(&fat), None);
    }
}
