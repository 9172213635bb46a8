//! Sizes of the disk and its parts. Source: Microsoft's FAT specification (fatgen103); disk sizes as QEMU's vvfat.

use crate::{Error, Result};

/// Bytes of a sector.
pub(super) const SECTOR: u64 = 512;
/// Sectors before the file system of a hard disk: the first track, with the partition table.
const TRACK: u64 = 63;
/// Sectors of a cylinder of 16 heads.
const CYLINDER: u64 = 16 * TRACK;

/// Bits of a table entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FatType {
    /// FAT12.
    Fat12,
    /// FAT16.
    Fat16,
    /// FAT32.
    Fat32,
}

/// How a folder is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderOptions {
    /// Bits of a table entry; `None` takes FAT16, or FAT32 for folders that do not fit.
    pub fat_type: Option<FatType>,
    /// A floppy disk without a partition table: 1.44 MB for FAT12, 2.88 MB for FAT16.
    pub floppy: bool,
    /// Volume label, at most 11 bytes of ASCII.
    pub label: String,
    /// Files and folders at most.
    pub entries: usize,
}

impl Default for FolderOptions {
    fn default() -> Self {
        Self {
            fat_type: None,
            floppy: false,
            label: "QEMU VVFAT".to_owned(),
            entries: 65_536,
        }
    }
}

/// Where the parts of the file system are, in sectors from the start of the disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub fat: FatType,
    pub floppy: bool,
    /// Sectors of the whole disk.
    pub total: u64,
    /// First sector of the file system.
    pub start: u64,
    pub reserved: u64,
    /// Sectors of one of the two tables.
    pub fat_sectors: u64,
    pub root_entries: u64,
    pub cluster_sectors: u64,
    pub clusters: u64,
}

impl Geometry {
    /// First sector of the first table.
    pub fn fat_at(&self) -> u64 {
        self.start + self.reserved
    }
    /// First sector of a root folder with its own place.
    pub fn root_at(&self) -> u64 {
        self.fat_at() + 2 * self.fat_sectors
    }
    /// First sector of cluster 2.
    pub fn data_at(&self) -> u64 {
        self.root_at() + self.root_entries * 32 / SECTOR
    }
    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        self.cluster_sectors * SECTOR
    }
    /// Sectors of the file system.
    pub fn volume(&self) -> u64 {
        self.total - self.start
    }

    /// For content that takes `bytes_in(cluster size)` bytes in whole clusters.
    ///
    /// # Errors
    /// `LimitExceeded` when it does not fit.
    pub fn choose(options: &FolderOptions, bytes_in: impl Fn(u64) -> u64) -> Result<Self> {
        let fits = |g: &Self| bytes_in(g.cluster()).div_ceil(g.cluster()) <= g.clusters;
        let fixed = match (options.floppy, options.fat_type) {
            (true, None | Some(FatType::Fat12)) => Self::of(FatType::Fat12, true, 2880, 1),
            (true, Some(FatType::Fat16)) => Self::of(FatType::Fat16, true, 5760, 1),
            (true, Some(FatType::Fat32)) => {
                return Err(Error::invalid("a floppy disk has FAT12 or FAT16, not FAT32"));
            }
            (false, Some(FatType::Fat12)) => Self::of(FatType::Fat12, false, 64 * CYLINDER, 16),
            (false, Some(FatType::Fat16) | None) => Self::of(FatType::Fat16, false, 1024 * CYLINDER, 16),
            (false, Some(FatType::Fat32)) => return Self::fat32(bytes_in),
        };
        if fits(&fixed) {
            return Ok(fixed);
        }
        if !options.floppy && options.fat_type.is_none() {
            return Self::fat32(bytes_in);
        }
        let (need, have) = (bytes_in(fixed.cluster()), fixed.clusters * fixed.cluster());
        Err(Error::limit(format!(
            "the folder takes {need} bytes of a disk that has {have}"
        )))
    }

    /// FAT32 grows with the content: clusters from 4 KiB up, and an eighth of room.
    fn fat32(bytes_in: impl Fn(u64) -> u64) -> Result<Self> {
        // Sectors up to which a cluster size is taken: larger disks have larger clusters, so that tables stay small.
        let sizes = [(8, 16 << 20), (16, 32 << 20), (32, 64 << 20), (64, u64::from(u32::MAX))];
        for (cluster_sectors, most) in sizes {
            let bytes = bytes_in(cluster_sectors * SECTOR);
            let sectors = (bytes / SECTOR).saturating_mul(9) / 8 + 65_536;
            let total = sectors.max(1024 * CYLINDER).next_multiple_of(CYLINDER);
            if total <= most {
                return Ok(Self::of(FatType::Fat32, false, total, cluster_sectors));
            }
        }
        Err(Error::limit("the folder is too large for a FAT32 disk"))
    }

    fn of(fat: FatType, floppy: bool, total: u64, cluster_sectors: u64) -> Self {
        let start = if floppy { 0 } else { TRACK };
        let reserved = if fat == FatType::Fat32 { 32 } else { 1 };
        let root_entries = match fat {
            FatType::Fat32 => 0,
            _ if floppy => 224,
            _ => 512,
        };
        let rest = total - start - reserved - root_entries * 32 / SECTOR;
        let table = |clusters: u64| {
            let bits = match fat {
                FatType::Fat12 => 12,
                FatType::Fat16 => 16,
                FatType::Fat32 => 32,
            };
            ((clusters + 2) * bits).div_ceil(8 * SECTOR)
        };
        let fat_sectors = table(rest / cluster_sectors);
        Self {
            fat,
            floppy,
            total,
            start,
            reserved,
            fat_sectors,
            root_entries,
            cluster_sectors,
            clusters: (rest - 2 * fat_sectors) / cluster_sectors,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The count of clusters alone tells the type (fatgen103): below 4085, below 65525, or above.
    #[test]
    fn the_count_of_clusters_says_the_type() {
        for (fat_type, floppy, range) in [
            (FatType::Fat12, true, 1..4085),
            (FatType::Fat16, true, 4085..65525),
            (FatType::Fat12, false, 1..4085),
            (FatType::Fat16, false, 4085..65525),
            (FatType::Fat32, false, 65525..0x0fff_fff5),
        ] {
            let options = FolderOptions {
                fat_type: Some(fat_type),
                floppy,
                ..FolderOptions::default()
            };
            let geometry = Geometry::choose(&options, |_| 0).unwrap();
            assert!(range.contains(&geometry.clusters), "{geometry:?}");
        }
    }
}
