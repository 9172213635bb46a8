//! The sectors that describe the volume: partition table, boot sector, FAT32's information sector.

use super::geometry::{FatType, Geometry, SECTOR};
use super::names::put;

/// Serial number of the volume, as QEMU's.
const SERIAL: u32 = 0xfabe_1afd;

/// Low bytes of a number, for fields that were checked to hold it.
fn low(n: u64) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes()
}

/// A partition table with one active partition.
pub(super) fn partition_table(geometry: &Geometry) -> Vec<u8> {
    let mut sector = vec![0; 512];
    let kind = match geometry.fat {
        FatType::Fat12 => 0x01,
        FatType::Fat16 => 0x0e,
        FatType::Fat32 => 0x0c,
    };
    put(&mut sector, 440, &0xbe1a_fdfau32.to_le_bytes());
    put(&mut sector, 446, &[0x80, 1, 1, 0, kind, 0xfe, 0xff, 0xff]);
    put(&mut sector, 454, &low(geometry.start));
    put(&mut sector, 458, &low(geometry.volume()));
    put(&mut sector, 510, &[0x55, 0xaa]);
    sector
}

pub(super) fn boot_sector(geometry: &Geometry, label: &str) -> Vec<u8> {
    let mut sector = vec![0; 512];
    let volume = geometry.volume();
    let small = if volume < 0x1_0000 { volume } else { 0 };
    let low16 = |n: u64| [low(n)[0], low(n)[1]];
    let is32 = geometry.fat == FatType::Fat32;
    let (track, heads) = match (geometry.floppy, geometry.total) {
        (true, 2880) => (18, 2),
        (true, _) => (36, 2),
        (false, _) => (63, 16),
    };
    let media = if geometry.floppy { 0xf0 } else { 0xf8 };
    put(&mut sector, 0, &[0xeb, if is32 { 0x58 } else { 0x3c }, 0x90]);
    put(&mut sector, 3, b"MSWIN4.1");
    put(&mut sector, 11, &low16(SECTOR));
    put(&mut sector, 13, &low(geometry.cluster_sectors)[..1]);
    put(&mut sector, 14, &low16(geometry.reserved));
    put(&mut sector, 16, &[2]);
    put(&mut sector, 17, &low16(geometry.root_entries));
    put(&mut sector, 19, &low16(small));
    put(&mut sector, 21, &[media]);
    put(
        &mut sector,
        22,
        &if is32 { [0, 0] } else { low16(geometry.fat_sectors) },
    );
    put(&mut sector, 24, &low16(track));
    put(&mut sector, 26, &low16(heads));
    put(&mut sector, 28, &low(geometry.start));
    put(&mut sector, 32, &low(if small == 0 { volume } else { 0 }));
    let extended = if is32 {
        put(&mut sector, 36, &low(geometry.fat_sectors));
        put(&mut sector, 44, &low(2)); // cluster of the root folder
        put(&mut sector, 48, &low16(1)); // information sector
        put(&mut sector, 50, &low16(6)); // copy of the boot sector
        64
    } else {
        36
    };
    put(
        &mut sector,
        extended,
        &[if geometry.floppy { 0 } else { 0x80 }, 0, 0x29],
    );
    put(&mut sector, extended + 3, &SERIAL.to_le_bytes());
    put(&mut sector, extended + 7, format!("{label:<11}").as_bytes());
    let kind: &[u8] = match geometry.fat {
        FatType::Fat12 => b"FAT12   ",
        FatType::Fat16 => b"FAT16   ",
        FatType::Fat32 => b"FAT32   ",
    };
    put(&mut sector, extended + 18, kind);
    put(&mut sector, 510, &[0x55, 0xaa]);
    sector
}

/// FAT32's information sector: free clusters and the next free one.
pub(super) fn info_sector(geometry: &Geometry, next: u64) -> Vec<u8> {
    let mut sector = vec![0; 512];
    put(&mut sector, 0, b"RRaA");
    put(&mut sector, 484, b"rrAa");
    put(&mut sector, 488, &low(geometry.clusters + 2 - next));
    put(&mut sector, 492, &low(next));
    put(&mut sector, 510, &[0x55, 0xaa]);
    sector
}
