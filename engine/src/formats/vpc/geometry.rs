//! Cylinders, heads and sectors, and the virtual size that follows from them.
//!
//! Virtual PC takes the size of a disk from its geometry; Hyper-V, VirtualBox, Azure and others take the size field. A program that opens
//! an image has to know who made it. The rules are those of QEMU 10.

use super::layout::{MAX_SECTORS, RawFooter, SECTOR};
use crate::{Error, Result};

/// A disk geometry as the footer has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors per track.
    pub sectors: u8,
}

/// Sectors of the largest geometry; it means "larger than a geometry can say".
const LARGEST: u64 = Geometry::MAX.total();

impl Geometry {
    /// The largest.
    pub const MAX: Self = Self {
        cylinders: 65535,
        heads: 16,
        sectors: 255,
    };

    /// Sectors in all.
    pub const fn total(self) -> u64 {
        self.cylinders as u64 * self.heads as u64 * self.sectors as u64
    }

    /// The geometry for a number of sectors ("CHS Calculation" of the specification), which may hold fewer sectors than asked for.
    pub fn of(sectors: u64) -> Self {
        let total = sectors.min(LARGEST);
        let (mut heads, mut track, mut rows);
        if total >= 65535 * 16 * 63 {
            (heads, track) = (16, 255);
            rows = total / track;
        } else {
            track = 17;
            rows = total / track;
            heads = rows.div_ceil(1024).max(4);
            if rows >= heads * 1024 || heads > 16 {
                (heads, track) = (16, 31);
                rows = total / track;
            }
            if rows >= heads * 1024 {
                (heads, track) = (16, 63);
                rows = total / track;
            }
        }
        // Every quotient is below the largest geometry's field: 65535, 16, 255.
        let narrow = |n: u64| u8::try_from(n).unwrap_or(u8::MAX);
        Self {
            cylinders: u16::try_from(rows / heads).unwrap_or(u16::MAX),
            heads: narrow(heads),
            sectors: narrow(track),
        }
    }

    /// The first geometry that holds at least this many sectors, and what it holds; past the largest geometry the number itself.
    pub fn holding(sectors: u64) -> (Self, u64) {
        let mut ask = sectors.min(LARGEST);
        let mut geometry = Self::of(ask);
        while geometry.total() < sectors.min(LARGEST) {
            ask += 1;
            geometry = Self::of(ask);
        }
        match geometry.total() {
            LARGEST => (geometry, sectors),
            total => (geometry, total),
        }
    }
}

/// Which field says how large the disk is (`force_size_calc`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SizeRule {
    /// By the program that made the image.
    #[default]
    Creator,
    /// The geometry.
    Chs,
    /// The size field.
    CurrentSize,
}

/// Programs whose images have the disk's size in the geometry: Virtual PC, and QEMU where it rounds a size up.
const BY_GEOMETRY: [[u8; 4]; 2] = [*b"vpc ", *b"qemu"];

/// Whether the size of an image by this program is in the size field rather than in the geometry.
pub fn is_exact(creator: [u8; 4]) -> bool {
    !BY_GEOMETRY.contains(&creator)
}

/// Where the disk ends for those readers of the footer that show most of it: some go by the size field whoever made the image.
pub fn farthest_end(footer: &RawFooter) -> u64 {
    let field = footer.current_size.get();
    virtual_size(footer, SizeRule::Creator).map_or(field, |size| size.max(field))
}

/// Bytes that the guest sees.
///
/// # Errors
/// `Corrupt` for a size no VHD can have.
pub fn virtual_size(footer: &RawFooter, rule: SizeRule) -> Result<u64> {
    let (size, total) = (footer.current_size.get(), footer.geometry().total());
    if size > MAX_SECTORS * SECTOR {
        return Err(Error::corrupt(format!(
            "the size field says {size} bytes; a VHD has at most 2040 GiB"
        )));
    }
    let by_geometry = match rule {
        SizeRule::Creator => !is_exact(footer.creator),
        SizeRule::Chs => true,
        SizeRule::CurrentSize => false,
    };
    if !by_geometry || total == LARGEST {
        return Ok(size / SECTOR * SECTOR);
    }
    if total == 0 && size >= SECTOR {
        return Err(Error::corrupt(format!(
            "the geometry says no sectors at all, the size field {size} bytes"
        )));
    }
    Ok(total * SECTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes and geometries as qemu-img 10.0.2 writes them.
    #[test]
    fn geometries_are_those_of_qemu() {
        for (sectors, cylinders, heads, track, total) in [
            (1u64, 1, 4, 17, 68),
            (2048, 31, 4, 17, 2108),
            (204_800, 1004, 12, 17, 204_816),
            (8_388_608, 8323, 16, 63, 8_389_584),
            (66_059_280, 16191, 16, 255, 66_059_280),
            (66_059_279, 16191, 16, 255, 66_059_280),
            (272_629_760, 65535, 16, 255, 272_629_760),
            (4_278_190_080, 65535, 16, 255, 4_278_190_080),
        ] {
            let geometry = Geometry {
                cylinders,
                heads,
                sectors: track,
            };
            assert_eq!(Geometry::holding(sectors), (geometry, total), "{sectors}");
        }
    }
    /// As qemu-img 10.0.2 sizes images of 20480 sectors with a geometry of 301 x 4 x 17 that these programs made.
    #[test]
    fn two_programs_go_by_the_geometry() {
        let mut footer: RawFooter = zerocopy::FromZeros::new_zeroed();
        footer.current_size = (20480 * SECTOR).into();
        (footer.cylinders, footer.heads, footer.sectors) = (301.into(), 4, 17);
        let size = |creator: &[u8; 4]| {
            let footer = RawFooter {
                creator: *creator,
                ..footer
            };
            virtual_size(&footer, SizeRule::Creator).unwrap() / SECTOR
        };
        for creator in [b"vpc ", b"qemu"] {
            assert_eq!(size(creator), 301 * 4 * 17, "{creator:?}");
        }
        for creator in [
            b"win ",
            b"vbox",
            b"vs  ",
            b"wa\0\0",
            b"vmw ",
            b"qem2",
            b"d2v ",
            b"d2v\0",
            b"tap\0",
            b"CTXS",
            b"\0\0\0\0",
            b"Star",
        ] {
            assert_eq!(size(creator), 20480, "{creator:?}");
        }
    }
}
